"""Compare every backend that can run here, and optimize, with float64; exit code 1 where one is off."""

import argparse
import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hrnet_fast import create_model
from hrnet_fast.bench import oracle, report
from hrnet_fast.bench.harness import worst_error
from hrnet_fast.bench.operator_cases import MODES, SHAPES, calls
from hrnet_fast.bench.variation import LEAST_VARIATION, variation
from hrnet_fast.models import TASKS, official_interpolation, randomize
from hrnet_fast.ops import backends
from hrnet_fast.runtime import optimize
from hrnet_fast.tolerances import MODEL, OPERATOR, relative_error

MODELS = ("hrnet_w18_small_v1", "hrnet_w18")
MODEL_SIZE = (97, 129)  # not a multiple of 32, odd both ways
OPTIMIZED_MODEL, OPTIMIZED_TASKS = "hrnet_w18_small_v1", TASKS
OPTIMIZED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
# Images (N, height, width), by the upsampling of the exchange units. Bilinear: on fewer pixels OCR's attention amplifies
# bfloat16's rounding beyond the tolerance (64x96: 4.3e-2, plain PyTorch 2.6e-2). Nearest takes sizes whose quarter,
# rounded up, is a multiple of 8: 61x94 becomes 16x24.
OPTIMIZED_IMAGES = {"bilinear": ((1, 128, 192), (1, 131, 197)), "nearest": ((2, 64, 96), (2, 61, 94))}
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64",
          torch.int8: "int8"}  # fmt: skip


@dataclass
class Line:
    """All comparisons of one kind: what was compared, how far off the worst was, and every miss."""

    subject: str
    backend: str
    dtype: torch.dtype
    tolerance: float
    cases: int = 0
    worst: float = 0.0
    where: str = ""
    misses: list[str] = field(default_factory=list)

    def add(self, name: str, error: float) -> None:
        """Counts one comparison in."""
        self.cases += 1
        if error >= self.worst:
            self.worst, self.where = error, name
        if not error <= self.tolerance:
            self.misses.append(f"{self.subject}, {self.backend}, {_NAMES[self.dtype]}, {name}: "
                               f"{error:.1e} > {self.tolerance:.0e}")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``verify`` has no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Prints the error table, and every miss by its name."""
    console = report.console()
    lines: list[Line] = []
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    runnable = [name for name, module in backends.TABLE.items() if module.why_not(None) is None]
    reasons: dict[str, None] = {}  # an ordered set
    with Progress(console=Console(stderr=True), transient=True) as progress:
        total = len(devices) * (len(OPERATOR) * len(SHAPES) * len(MODES) * 2 + len(MODELS) + len(OPTIMIZED_TASKS))
        task = progress.add_task("comparing with float64", total=total)
        for device in devices:
            for _ in _operator(lines, runnable, device):
                progress.advance(task)
            for _ in _models(lines, runnable, device):
                progress.advance(task)
            for _ in _optimized(lines, reasons, device):
                progress.advance(task)
    console.print(_table(lines))
    for name, module in backends.TABLE.items():
        if name not in runnable:
            console.print(f"backend {name} cannot run here: {module.why_not(None)}")
    for reason in reasons:
        console.print(reason)
    misses = [miss for line in lines for miss in line.misses]
    for miss in misses:
        console.print(f"[red]off[/red]: {miss}")
    console.print(f"{sum(line.cases for line in lines)} comparisons, {len(misses)} off")
    return 1 if misses else 0


def _operator(lines: list[Line], names: list[str], device: str) -> Iterator[None]:
    for dtype, tolerance in OPERATOR.items():
        found = {name: Line("exchange", _on(name, device), dtype, tolerance) for name in names}
        for case, call in calls(dtype, device):
            expected = oracle.exact(call)
            for name, line in found.items():
                if backends.TABLE[name].why_not(call) is None:
                    line.add(case, _operator_error(backends.TABLE[name].run(call), expected, dtype))
            yield
        lines += [line for line in found.values() if line.cases]


def _operator_error(output: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> float:
    return relative_error(output, expected) if output.dtype == dtype else float("inf")


def _models(lines: list[Line], names: list[str], device: str) -> Iterator[None]:
    image = torch.randn(1, 3, *MODEL_SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    for model_name in MODELS:
        plain = create_model(model_name, fast=False).eval()
        randomize(plain, 0)
        fast = create_model(model_name, fast=True).eval()
        fast.load_state_dict(plain.state_dict())
        plain, fast = plain.to(device), fast.to(device)
        with torch.inference_mode():
            for dtype in (torch.float32, torch.bfloat16):
                # float64 with the very weights and pixels that the forms get: those that were rounded to their dtype
                expected = copy.deepcopy(plain).to(dtype).double()(image.to(dtype).double())
                subject = Line(model_name, f"plain PyTorch on {device}", dtype, MODEL[dtype])
                subject.add("plain form", worst_error(copy.deepcopy(plain).to(dtype)(image.to(dtype)), expected))
                lines.append(subject)
                for name in names:
                    if backends.TABLE[name].why_not(_probe(dtype, device)) is None:
                        line = Line(model_name, _on(name, device), dtype, MODEL[dtype])
                        with forced_backend(name):
                            _fast_forms(line, fast, image, dtype, expected)
                        lines.append(line)
        yield


def _fast_forms(line: Line, fast, image, dtype, expected) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        network = copy.deepcopy(fast).to(dtype=dtype, memory_format=layout)
        name = f"fast form, {'channels_last' if layout == torch.channels_last else 'contiguous'}"
        line.add(name, worst_error(network(image.to(dtype).contiguous(memory_format=layout)), expected))


def _optimized(lines: list[Line], reasons: dict[str, None], device: str) -> Iterator[None]:
    """A small network of every task under ``optimize``, every tensor of its outputs."""
    for task in OPTIMIZED_TASKS:
        plain = randomize(create_model(OPTIMIZED_MODEL, task=task, fast=False).eval(), 0).to(device)
        for dtype in OPTIMIZED_DTYPES:
            integers = dtype == torch.int8
            if integers and device != "cpu":
                continue
            # float32 weights that dtype holds: float64 has the same
            rounded = copy.deepcopy(plain) if integers else copy.deepcopy(plain).to(dtype).float()
            exact, optimized = copy.deepcopy(rounded).double(), None
            for n, *size in OPTIMIZED_IMAGES[official_interpolation(task)[0]]:
                image = torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
                image = image if integers else image.to(dtype)
                if optimized is None:
                    optimized = optimize(
                        rounded, image, dtype=dtype, calibration=_calibration(size) if integers else None
                    )
                    line = Line(f"{OPTIMIZED_MODEL} {task}", f"optimize, {optimized.engine}, on {device}", dtype,
                                MODEL[dtype])  # fmt: skip
                with torch.inference_mode():
                    expected = exact(image.double())
                    # outputs that hardly vary agree whatever computed them
                    varies = (variation(expected) or 0.0) >= LEAST_VARIATION
                    error = worst_error(optimized(image), expected) if varies else float("inf")
                line.add(f"{size[0]}x{size[1]}" + ("" if varies else ", outputs almost constant"), error)
            if optimized.reason is not None:
                reasons[f"optimize runs engine {optimized.engine!r} on {device}: {optimized.reason}"] = None
            lines.append(line)
        yield


def _calibration(size: list[int]) -> torch.Tensor:
    return torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(1))


def _probe(dtype: torch.dtype, device: str):
    return next(call for _, call in calls(dtype, device))


def _on(backend: str, device: str) -> str:
    return f"{backend} on {device}"


@contextmanager
def forced_backend(name: str) -> Iterator[None]:
    """Every "auto" within takes this backend ("auto": the choice is left as it is)."""
    before = os.environ.get("HRNET_FAST_BACKEND")
    if name != "auto":
        os.environ["HRNET_FAST_BACKEND"] = name
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("HRNET_FAST_BACKEND", None)
        else:
            os.environ["HRNET_FAST_BACKEND"] = before


def _table(lines: list[Line]) -> Table:
    table = Table(title="relative error ||out - ref|| / ||ref|| against float64", title_justify="left")
    for name in ("what", "backend", "dtype"):
        table.add_column(name)
    for name in ("cases", "worst", "tolerance"):
        table.add_column(name, justify="right")
    table.add_column("worst case")
    table.add_column("")
    for line in lines:
        verdict = "[red]off[/red]" if line.misses else "[green]ok[/green]"
        table.add_row(line.subject, line.backend, _NAMES[line.dtype], str(line.cases), f"{line.worst:.1e}",
                      f"{line.tolerance:.1e}", line.where, verdict)  # fmt: skip
    return table
