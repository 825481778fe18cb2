"""What is installed, what this machine has, and which backends can run here."""

import argparse
import os

import torch
from rich.table import Table

from hrnet_fast.bench import machine, report
from hrnet_fast.ops import backends, library
from hrnet_fast.runtime.cpu import planned, rates

CAPABILITY_VARIABLE = "HRNET_FAST_CPU_CAPABILITY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``info`` has no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Prints two tables: versions and hardware, then the backends in the order in which "auto" asks them."""
    console = report.console()
    facts = machine.describe()
    about = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    about.add_column(style="bold")
    for name, value in _facts(facts):
        about.add_row(name, value)
    console.print(about)

    table = Table()
    table.add_column("backend")
    table.add_column("here")
    for name, module in backends.TABLE.items():
        reason = module.why_not(None)
        table.add_row(name, "[green]runs[/green]" if reason is None else f"[yellow]cannot run[/yellow]: {reason}")
    console.print('backends, in the order in which "auto" asks them', table, sep="\n")
    console.print("exceptions on NVIDIA GPUs", _preferences(), sep="\n")
    forced = os.environ.get("HRNET_FAST_BACKEND")
    if forced:
        console.print(f'HRNET_FAST_BACKEND={forced} stands in for "auto"')
    if facts["cpu"]["kernel"]:
        known = "|".join(torch.ops.hrnet_fast.cpu_capabilities().split())
        console.print(f"{CAPABILITY_VARIABLE}={known} makes the CPU kernels use another instruction set")
    return 0


def _preferences() -> Table:
    table = Table()
    for column in ("compute capability", "kind of exchange", "backends in turn", "measured on"):
        table.add_column(column)
    for row in (*backends.preferences.GPU, *backends.preferences.CONVOLUTION):
        major, minor = row.capability
        table.add_row(
            f"{major}.{minor} and newer", row.kind, ", ".join(row.backends), row.measured or "not yet measured"
        )
    return table


def _facts(facts: dict) -> list[tuple[str, str]]:
    cpu, gpu = facts["cpu"], facts["gpu"]
    memory = facts["memory_bytes"]
    commit = f" (commit {facts['commit']})" if facts["commit"] else ""
    extension = "there" if library.extension_error is None else library.extension_error
    return [
        ("hrnet_fast", facts["hrnet_fast"] + commit),
        ("torch", facts["torch"]),
        ("python", f"{facts['python']} on {facts['system']}"),
        ("CPU", f"{cpu['model']} ({cpu['architecture']}), {cpu['cores']} cores, torch uses {torch.get_num_threads()}"),
        ("CPU features", ", ".join(cpu["features"]) or "none that a kernel here has a use for"),
        ("memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"),
        (
            "GPU",
            "none that torch can use"
            if gpu is None
            else f"{gpu['name']}, compute capability {gpu['compute_capability']}, "
            f"CUDA {gpu['cuda']}, driver {gpu['driver']}",
        ),
        ("compiled extension", extension),
        ("CPU kernel", cpu["kernel"] or "none"),
        *_half_precision(),
    ]


def _half_precision() -> list[tuple[str, str]]:
    """How planned programs run in each dtype, and what was measured for that."""
    if planned.why_not(torch.float32, torch.device("cpu")) is not None:
        return []
    made = []
    for dtype in (torch.bfloat16, torch.float16):
        found = ", ".join(f"{form} {ms:.2f} ms" for form, ms in planned.milliseconds_of_forms(dtype).items())
        made.append((f"{dtype}".removeprefix("torch."), f"computed by {planned.form(dtype)!r} ({found})"))
    trouble = rates.of_this_machine().trouble
    return made if trouble is None else [*made, ("measured again", trouble)]
