"""Peak memory of a forward pass: the most bytes that live tensors took up beyond those that were there before.

Weights and the input are not in it. On the CPU the figure comes from torch's profiler, which sees every allocation of
torch's own allocator (tensors and oneDNN's scratch pads), not the scratch that a kernel takes from malloc by itself. On
a GPU it is the CUDA allocator's own count.
"""

import json
import os
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
