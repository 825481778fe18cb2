"""Peak memory of a forward pass: of torch's tensors (``peak_bytes``), or of a whole process (``resident_peak``).

``peak_bytes`` is the most that live tensors took up beyond those that were there before: without weights and input. On
the CPU the figure comes from torch's profiler, which sees every allocation of torch's own allocator (tensors and
oneDNN's scratch pads), not the scratch that a kernel takes from malloc by itself. On a GPU it is the CUDA allocator's
own count.
"""

import ctypes
import functools
import gc
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Runs ``call`` twice (the first time warms caches up) and returns the peak of the second run."""
    device = torch.device(device)
    with torch.inference_mode():
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            call()
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - before
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler writes its own progress to stderr
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    live = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; None where the system does not tell."""
    return _status("VmRSS")


def resident_peak(call: Callable[[], object]) -> int | None:
    """The most memory that this process has in RAM while ``call`` runs, warm; None where the system does not tell.

    Everything is in it: the interpreter, weights in whatever form an engine keeps them, scratch of any allocator.
    Memory that was freed before the call is given back first, so that preparing the call does not count.
    """
    with torch.inference_mode():
        call()
        if not begin_anew():
            return None
        call()
    return most_resident_bytes()


def begin_anew() -> bool:
    """Gives freed memory back and lets ``most_resident_bytes`` count from now; False where the system cannot."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    try:
        if trim is not None:
            trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc(5))
    except OSError:
        return False
    return True


def alone(function: Callable, *arguments, quiet: bool = True):
    """What a function of a module returns in a new process, where memory is its own; None where it fails there.

    Args:
        function: it and its arguments can be pickled.
        arguments: of the function.
        quiet: what the process writes to standard error is dropped.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _without_errors if quiet else None) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except Exception:  # its own, or that it was killed
            if not quiet:
                raise
            return None


def _without_errors() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def most_resident_bytes() -> int | None:
    """The most memory that this process has had in RAM; None where the system does not tell."""
    return _status("VmHWM")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), None)


RESERVE_BYTES = 512 << 20


@functools.cache
def keep_freed_memory() -> None:
    """Lets every contender's results come from memory that the process has already touched. Once a process; glibc only.

    Left alone, a large result may cost a page fault for each of its 4 KiB, which is more than an exchange takes (768
    faults, 1 ms, for 48 channels at 128x128), in some processes and not in others: glibc gives freed memory back to the
    system, and up to version 2.37 its aligned allocation does not find freed blocks of the very same size again
    (glibc bug 14581), so that the heap grows with every call. So nothing is given back, and a reserve of touched memory
    lies in the heap, large enough that a result always finds a place in it.
    """
    trim_threshold, mmap_threshold, gibibyte = -1, -3, 1 << 30  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    mallopt(trim_threshold, gibibyte)
    mallopt(mmap_threshold, gibibyte)
    reserve = torch.zeros(RESERVE_BYTES, dtype=torch.uint8)
    reserve.fill_(1)  # zeros may come from calloc, which does not touch them
    del reserve
