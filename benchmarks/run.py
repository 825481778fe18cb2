"""Runs cases of the suite: ``python -m benchmarks.run [--cases PATTERN ...] [--dtype ...] [--budget SECONDS]``.

Correctness comes first: a contender that is off is reported and not timed, and the exit code is 1. Results go to
benchmarks/results/<name>.json with the machine they were measured on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import cases as suite
from benchmarks.goals import outcomes
from hrnet_fast.bench import BadInput, machine, report
from hrnet_fast.bench.contenders import COMPILED

RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the selected cases; 0 if all contenders agree, 1 if one is off, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN",
                        help="names as in a shell, for example 'exchange-*' (default: all)")  # fmt: skip
    parser.add_argument("--dtype", nargs="+", choices=list(suite.DTYPES), default=list(suite.DEFAULT_DTYPES))
    parser.add_argument("--budget", type=float, default=6.0, help="seconds of timing per case (default: 6)")
    parser.add_argument("--threads", type=int, default=None, help="threads for torch (default: torch's own choice)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE",
                        help="one file for all cases (default: one for each in benchmarks/results/)")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the names of the cases and end")
    arguments = parser.parse_args(argv)

    selected = suite.select(arguments.cases, arguments.dtype)
    if not selected:
        parser.error(f"no case matches {' '.join(arguments.cases)}; --list names them")
    if arguments.list:
        print(*(case.name for case in selected), sep="\n")
        return 0
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        measured = _measure(selected, arguments)
    except BadInput as error:
        parser.error(str(error))
    _print_goals(measured, report.console())
    return 0 if all(case.agrees for case in measured) else 1


def _measure(selected: list[suite.Case], arguments: argparse.Namespace) -> list[report.Case]:
    console = report.console()
    measured: list[report.Case] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(selected))
        for index, case in enumerate(selected):

            def show(doing: str, done: float, name: str = case.name, index: int = index) -> None:
                progress.update(task, description=f"{name}: {doing}", completed=index + done)

            result = case.measure(arguments.budget, not arguments.no_compile, show)
            measured.append(result)
            console.print(report.table(result, case.baseline), *report.notes(result), sep="\n")
            if arguments.json is None:
                report.Report([result]).save(RESULTS / f"{case.name}.json")
    if arguments.json is not None:
        report.Report(measured).save(arguments.json)
    console.print(machine.summary(machine.describe()))
    return measured


def _print_goals(measured: list[report.Case], console: Console) -> None:
    table = Table(title="goals: median speedup", title_justify="left")
    for name in ("case", "of", "over"):
        table.add_column(name)
    for name in ("measured", "goal"):
        table.add_column(name, justify="right")
    table.add_column("")
    found, disturbed = outcomes(measured), {case.name for case in measured if case.disturbed}
    for outcome in found:
        shown = "not timed" if outcome.measured is None else f"{outcome.measured:.2f}x"
        verdict = "[green]reached[/green]" if outcome.reached else "[red]missed[/red]"
        if outcome.case in disturbed:
            verdict += " (disturbed)"
        table.add_row(outcome.case, outcome.goal.ours, outcome.goal.over, shown, f"{outcome.goal.ratio:g}x", verdict)
    console.print(table)
    console.print(f"{sum(outcome.reached for outcome in found)} of {len(found)} goals reached")
    if not any(case.entry(COMPILED) for case in measured):
        console.print("torch.compile was left out, and with it the goals over it")
    if disturbed:
        console.print("[red]other processes were busy on this machine: measure again when it is quiet[/red]")


if __name__ == "__main__":
    sys.exit(main())
