"""Peak memory of a forward pass: the most bytes that live tensors took up beyond those that were there before.

Weights and the input are not in it. On the CPU the figure comes from torch's profiler, which sees every allocation of
torch's own allocator (tensors and oneDNN's scratch pads), not the scratch that a kernel takes from malloc by itself. On
a GPU it is the CUDA allocator's own count.
"""

import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Callable
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


def keep_freed_memory() -> None:
    """Asks glibc to keep freed memory in the process, for every contender alike.

    Otherwise it may hand the largest tensors back to the system after some calls and not after others, as the heap
    happens to lie, and every page of the next result then costs a fault. It takes out that one source of noise; runs of
    one exchange have been seen to differ by a factor of two for reasons that it does not explain.
    """
    trim_threshold, mmap_threshold, gibibyte = -1, -3, 1 << 30  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(trim_threshold, gibibyte)
        mallopt(mmap_threshold, gibibyte)
