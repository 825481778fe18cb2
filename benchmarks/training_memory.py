"""Memory and time of a training step: ``python -m benchmarks.training_memory``.

HRNetV2-W48 for segmentation, 512x512, batch 2, forward, cross-entropy and backward. Plain channels_last PyTorch,
torch.compile of it, hrnet_fast, and hrnet_fast with gradient checkpointing. Every form runs in a process of its own,
because a process only knows its own peak; the processes take turns, and times are medians over all of them.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.bench import machine, memory
from hrnet_fast.bench.report import Table

ROOT = Path(__file__).parent.parent
FORMS = ("plain", "torch.compile", "hrnet_fast", "hrnet_fast --checkpoint")
BYTES_PER_MIB = 1 << 20


def step_of(form: str, width: str, device: str):
    """A training step that returns its loss, the same data each time; and the model."""
    sys.path.insert(0, str(ROOT / "examples"))
    from segmentation_training import checkpointing, loss

    torch.manual_seed(0)
    model = hf.create_model(f"hrnet_{width}", task="segmentation", num_classes=19, fast=form.startswith("hrnet_fast"))
    model = model.to(device, memory_format=torch.channels_last).train()
    if form.endswith("--checkpoint"):
        checkpointing.enable(model)
    image = torch.randn(2, 3, 512, 512, device=device).contiguous(memory_format=torch.channels_last)
    mask = torch.randint(0, 19, (2, 512, 512), device=device)
    network = torch.compile(model) if form == "torch.compile" else model

    def forward() -> Tensor:
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            return loss.cross_entropy(network(image), mask)

    return forward, model


def saved_bytes(forward, model: nn.Module) -> int:
    """What autograd keeps between forward and backward, parameters not counted."""
    seen: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return sum(seen.values())


def measure_form(form: str, width: str, device: str, steps: int) -> dict:
    """One form, in this process: bytes saved, peak bytes, seconds of each step but the first."""
    forward, model = step_of(form, width, device)
    seconds = []
    for _ in range(steps + 1):
        model.zero_grad(set_to_none=True)
        begin = time.perf_counter()
        forward().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else memory.most_resident_bytes()
    saved = None if form == "torch.compile" else saved_bytes(forward, model)  # compiled graphs save by themselves
    return {"form": form, "first_step_seconds": seconds[0], "seconds": seconds[1:], "peak_bytes": peak,
            "saved_bytes": saved}  # fmt: skip


def table(runs: list[dict]) -> Table:
    """A row for each form."""
    rows = []
    for form in dict.fromkeys(run["form"] for run in runs):
        own = [run for run in runs if run["form"] == form]
        saved = own[0]["saved_bytes"]
        rows.append([form, "" if saved is None else f"{saved / BYTES_PER_MIB:.0f}",
                     f"{max(run['peak_bytes'] for run in own) / BYTES_PER_MIB:.0f}",
                     f"{statistics.median(s for run in own for s in run['seconds']) * 1e3:.0f}",
                     f"{statistics.median(run['first_step_seconds'] for run in own):.1f}"])  # fmt: skip
    return Table(("form", "saved MiB", "peak MiB", "ms", "first step s"), rows, "a training step")


def main(arguments: list[str] | None = None) -> int:
    """Runs the forms in turn, and writes the results after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--width", default="w48", help="of the network (default: w48)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="cuda: with float16 autocast")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a process (default: 3)")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each form (default: 2)")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "training" / "memory.json")
    given = parser.parse_args(arguments)
    runs = []
    for _ in range(given.rounds):
        for form in given.forms:
            runs.append(memory.alone(measure_form, form, given.width, given.device, given.steps, quiet=False))
            report = {"machine": machine.describe(), "width": given.width, "size": [512, 512], "batch": 2, "runs": runs}
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(runs).text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
