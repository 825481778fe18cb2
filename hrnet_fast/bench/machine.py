"""What a figure was measured on, as a dict for JSON: hardware and versions, never the name of a host or a path."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

import hrnet_fast
from hrnet_fast.runtime.cpu.rates import cpu_model

# What decides which kernel runs, as torch.cpu.get_capabilities names it -> as people know it.
_X86_FEATURES = {
    "avx2": "avx2",
    "avx512_f": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_bf16": "amx_bf16",
}


def describe() -> dict:
    """CPU, memory, system, versions, commit and GPU of this machine at this moment."""
    return {
        "cpu": {
            "model": cpu_model(),
            "architecture": platform.machine(),
            "cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "features": cpu_features(),
            "kernel": cpu_kernel(),
        },
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hrnet_fast": hrnet_fast.__version__,
        "commit": commit(),
        "gpu": gpu(),
    }


def usable_cores() -> int:
    """Cores that this process may run on, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_features() -> list[str]:
    """The vector instructions of this CPU that a kernel here has a use for."""
    try:
        there = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):  # torch 2.11 has no get_capabilities
        there = _cpuinfo_flags()
    return [name for key, name in _X86_FEATURES.items() if there.get(key) or there.get(name)]


def _cpuinfo_flags() -> dict[str, bool]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return dict.fromkeys(line.split(":", 1)[1].split(), True)
    except OSError:
        pass
    return {}


def cpu_kernel() -> str | None:
    """The instruction set that the compiled CPU kernel has chosen here, or None without the compiled extension."""
    try:
        return str(torch.ops.hrnet_fast.cpu_capability())
    except (AttributeError, RuntimeError):
        return None


def memory_bytes() -> int | None:
    """The machine's memory, where the system tells it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def commit() -> str | None:
    """The git commit of the checkout that hrnet_fast runs from ("+" where files differ from it); None if installed."""
    root = Path(hrnet_fast.__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def gpu() -> dict | None:
    """Name, memory, driver and CUDA version of the current GPU, or None without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "driver": _driver(),
        "cuda": torch.version.cuda,
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


class Neighbours:
    """How much of the cores other processes (and, on a virtual machine, its host) have taken since this was made."""

    def __init__(self):
        self._start = _busy_and_own()

    def share(self) -> float | None:
        """0 to 1, all cores of the machine together; None where the system does not tell."""
        end = _busy_and_own()
        if self._start is None or end is None:
            return None
        busy, own, total = (b - a for a, b in zip(self._start, end, strict=True))
        return min(1.0, max(0.0, (busy - own) / total)) if total > 0 else None


def _busy_and_own() -> tuple[float, float, float] | None:
    """Seconds of all cores that were busy or stolen, those of this process, and all there were."""
    try:
        times = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    idle = times[3] + times[4]
    own = os.times()
    return (sum(times) - idle) / ticks, own.user + own.system, sum(times) / ticks


def summary(machine: dict) -> str:
    """One line for below a table: "2 threads of Intel Xeon, torch 2.13.0, ..."."""
    cpu = machine["cpu"]
    parts = [f"{cpu['threads']} threads of {cpu['cores']} cores, {cpu['model']}", f"torch {machine['torch']}"]
    if cpu["kernel"]:
        parts.insert(1, f"{cpu['kernel']} kernel")
    if machine["gpu"]:
        parts.append(f"{machine['gpu']['name']}, CUDA {machine['gpu']['cuda']}, driver {machine['gpu']['driver']}")
    if machine["commit"]:
        parts.append(f"commit {machine['commit']}")
    return "; ".join(parts)
