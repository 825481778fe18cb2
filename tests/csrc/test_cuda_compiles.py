"""The CUDA sources for every architecture: warnings are errors, nothing spills, registers stay under a stated limit."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest
import torch

from hrnet_fast.ops.backends import cuda

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"
TOOLKIT = runpy.run_path(str(CUDA / "toolkit.py"))
FOLDER = TOOLKIT["find"]()
MAX_REGISTERS = 128  # 512 threads of a multiprocessor in flight
# With channels innermost 168 let two blocks of 192 threads be there, and no more are needed: an output of 128 x 256
# pixels has 256 blocks. What the registers hold are loads: memory is waited for 3 times in place of 12.
MAX_REGISTERS_CHANNELS_LAST = 168

pytestmark = pytest.mark.toolkit


@pytest.mark.parametrize("architecture", TOOLKIT["ARCHITECTURES"])
@pytest.mark.parametrize("source", sorted(CUDA.glob("*.cu")), ids=lambda path: path.stem)
def test_compiles_without_spills(source, architecture, tmp_path):
    if architecture not in TOOLKIT["known"](FOLDER):
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    command = [FOLDER / "bin" / "nvcc", *TOOLKIT["NVCC_FLAGS"], f"-arch=sm_{architecture}", "-cubin", source, "-o",
               tmp_path / "kernels.cubin", "-Xptxas", "-v,-warn-spills"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    assert len(registers) == len(stacks) == done.stderr.count("Compiling entry function") > 0
    assert set(stacks) == {("0", "0", "0")}
    names = re.findall(r"Compiling entry function '(\w+)'", done.stderr)
    for name, used in zip(names, registers, strict=True):
        assert used <= (MAX_REGISTERS_CHANNELS_LAST if "channels_last" in name else MAX_REGISTERS), name


def test_products_wait_for_many_loads_at_once(tmp_path):
    """In the machine code of sm_90: every product of 16-bit numbers has its loads in front, none behind a branch."""
    nvdisasm = Path(pytest.importorskip("triton").__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    command = [FOLDER / "bin" / "nvcc", *TOOLKIT["NVCC_FLAGS"], "-arch=sm_90", "-cubin", CUDA / "launch.cu", "-o",
               tmp_path / "kernels.cubin"]  # fmt: skip
    subprocess.run(command, check=True)
    text = subprocess.run([nvdisasm, tmp_path / "kernels.cubin"], capture_output=True, text=True, check=True).stdout
    kernels = [part for part in text.split(".section\t.text.")[1:] if "Halves" in part.split(",", 1)[0]]
    assert len(kernels) == 2
    for kernel in kernels:
        blocks = [block for block in re.split(r"^\.L_x_\d+:", kernel, flags=re.MULTILINE) if "HMMA" in block]
        loads = [block.split("HMMA", 1)[0].count("LDG.E") for block in blocks]
        assert len(loads) == 6  # three widths of loads, two shapes of a warp
        assert min(loads) >= 14, loads
        assert not any("LDG.E" in block.split("HMMA", 1)[1] for block in blocks)


def test_the_module_is_there_where_it_can_be_built():
    found = int(torch.version.cuda.partition(".")[0]) if torch.version.cuda else None
    if found != TOOLKIT["version"](FOLDER)[0]:
        assert "_C_cuda is not there" in cuda.extension_error
        return
    assert cuda.extension_error is None
    for name in ("exchange_sums", "exchange_backward_sums"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"hrnet_fast::{name}", "CUDA")
    if not torch.cuda.is_available():  # the runtime in it finds no driver that is new enough, and says so
        assert "driver" in torch.ops.hrnet_fast.cuda_kernels_error(-1)
