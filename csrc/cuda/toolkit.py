"""The place of the CUDA toolkit, and the targets of the kernels. For setup.py and the tests, which run it by path."""

import os
import re
import shutil
import subprocess
from pathlib import Path

# compute capabilities of GPUs that get machine code; newer ones compile the PTX of the last when they first see it
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
NVCC_FLAGS = ("-O3", "-std=c++17", "-Werror", "all-warnings")


def find() -> Path | None:
    """The toolkit's folder: that with the headers, since an ``nvcc`` on the path may be a script somewhere else."""
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    beside = [Path(nvcc).resolve().parents[1]] if nvcc else []
    usual = [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    for folder in map(Path, [*named, *beside, *usual]):
        if (folder / "include" / "cuda_runtime.h").is_file() and (folder / "bin" / "nvcc").is_file():
            return folder
    return None


def version(folder: Path) -> tuple[int, int]:
    """Of the compiler: (13, 0)."""
    text = subprocess.run([folder / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = re.search(r"release (\d+)\.(\d+)", text).groups()
    return int(major), int(minor)


def known(folder: Path) -> list[int]:
    """Those of ARCHITECTURES that this compiler knows."""
    text = subprocess.run(
        [folder / "bin" / "nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True
    ).stdout
    there = {int(number) for number in re.findall(r"sm_(\d+)\b", text)}
    return [architecture for architecture in ARCHITECTURES if architecture in there]


def target_flags(folder: Path) -> list[str]:
    """Machine code for every architecture, and PTX for what comes later."""
    targets = known(folder)
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in targets]
    return [*flags, f"-gencode=arch=compute_{targets[-1]},code=compute_{targets[-1]}"]
