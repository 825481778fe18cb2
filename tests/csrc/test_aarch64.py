"""The CPU kernels compiled for ARM and run in an emulator, without torch: every instruction set of csrc/cpu/aarch64.

tests/support/kernels_without_torch is the program: random problems against loops in float64, and what runs on tiles bit
by bit against the portable arrays. A failure names its instruction set and its seed.
"""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hrnet_fast.tolerances import OPERATOR

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# processors, the least able one first, and the instruction sets that have to be found there
PROCESSORS = {
    "cortex-a72": "neon portable",
    "neoverse-n1": "neon_dotprod neon portable",
    "max": "neon_matrix neon_dotprod neon portable",
}
SEEDS = int(os.environ.get("HRNET_FAST_ARM_SEEDS", "12"))
FLAGS = ["-O1", "-std=c++17", "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-Wno-psabi", "-Wno-unused-parameter", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]


def sources(architecture):
    folders = [ROOT / "csrc/cpu", ROOT / "csrc/cpu" / architecture, ROOT / "tests/support/kernels_without_torch"]
    found = [path for folder in folders for path in folder.glob("*.cpp")]
    return sorted(path for path in found if "#include <torch/" not in path.read_text())


def build(folder, compiler, architecture):
    """The program, linked statically."""

    def compiled(source):
        target = folder / f"{source.stem}.o"
        subprocess.run([*compiler, *FLAGS, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources(architecture)))
    program = folder / "kernels"
    subprocess.run([*compiler, "-static", "-pthread", *objects, "-o", str(program)], check=True)
    return program


def arguments(first, count):
    dtypes = torch.float32, torch.float64, torch.bfloat16, torch.float16
    return [str(first), str(count), *(str(OPERATOR[dtype]) for dtype in dtypes)]


@pytest.mark.arm
def test_kernels_for_arm(tmp_path):
    program = build(tmp_path, [COMPILER], "aarch64")
    for processor, sets in PROCESSORS.items():
        command = [EMULATOR, "-cpu", processor, str(program), *arguments(0, SEEDS)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout.splitlines()) == (0, [sets]), (processor, done.stdout, done.stderr)
