"""Runs cases of the suite: ``python -m benchmarks.run [--cases PATTERN ...] [--dtype ...] [--budget SECONDS]``.

Correctness comes first: a contender that is off is reported and not timed, and the exit code is 1. Results go to
benchmarks/results/suite/<instruction set>/, with the machine they were measured on: those of several lie side by side.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch

from benchmarks import cases as registry
from benchmarks import contenders, engines_table, goals
from hrnet_fast.bench import BadInput, machine, report
from hrnet_fast.bench.contenders import COMPILED
from hrnet_fast.bench.measure import Case, measure
from hrnet_fast.bench.record import Record, Report

RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None, prefix: str = "", doc: str = __doc__, budget: float = 6.0) -> int:
    """Measures the selected cases; 0 if all contenders agree, 1 if one is off, 2 for wrong arguments.

    Args:
        argv: the arguments, by default those of the process.
        prefix: of the names of the cases, which are selected and listed without it; "": the suite.
        doc: what the command is for.
        budget: the default of --budget.
    """
    names = list(registry.contenders_of(prefix))
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{'engines' if prefix else 'run'}", description=doc.splitlines()[0]
    )
    add = parser.add_argument
    add("--cases", nargs="+", default=["*"], metavar="PATTERN",
        help="names as in a shell, for example 'exchange-*' or 'w48-*' (default: all)")  # fmt: skip
    add("--dtype", nargs="+", choices=list(registry.DTYPES), default=list(registry.DEFAULT[prefix]))
    add("--budget", type=float, default=budget, help=f"seconds of timing per case (default: {budget:g})")
    add("--threads", type=int, default=None, help="of every contender (default: torch's own choice)")
    add("--without", nargs="+", default=[], choices=names, metavar="CONTENDER",
        help=f"contenders to leave out: {', '.join(names)}")  # fmt: skip
    add("--no-compile", action="store_true", help="leave torch.compile out, which takes longest")
    add("--no-memory", action="store_true", help="leave the measurement of memory out")
    add("--results", type=Path, default=None, help="folder, one file for each case (default: in benchmarks/results)")
    add("--json", type=Path, default=None, metavar="FILE", help="instead: one file for all cases")
    add("--list", action="store_true", help="print the names of the cases and end")
    given = parser.parse_args(argv)
    selected = registry.select([prefix + pattern for pattern in given.cases], registry.cpu(prefix, given.dtype))
    if not selected:
        parser.error(f"no case matches {' '.join(given.cases)}; --list names them")
    if given.list:
        print(*(case.name.removeprefix(prefix) for case in selected), sep="\n")
        return 0
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads: expected at least 1, got {given.threads}")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    given.without += [name for name in names if given.no_compile and COMPILED in name]
    try:
        measured = _measure(selected, given, given.results or folder(prefix))
    except BadInput as error:
        parser.error(str(error))
    print(engines_table.summary(measured).text() if prefix else goals.shown(measured))
    print(machine.summary(machine.describe()))
    strict = [*contenders.ours(), *([] if prefix else names)]  # other engines may miss the tolerance by rounding
    return int(any(entry.off and entry.name in strict for record in measured for entry in record.entries))


def folder(prefix: str) -> Path:
    """Where results go by default: those of the suite and of engines by the machine's instruction set."""
    return RESULTS / ("engines" if prefix else "suite") / (machine.cpu_kernel() or "none")


def _measure(selected: list[Case], given: argparse.Namespace, results: Path) -> list[Record]:
    measured: list[Record] = []
    with (
        tempfile.TemporaryDirectory() as cache,  # torch.compile starts from nothing; processes for memory find it
        mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache),
        report.progress_bar(len(selected)) as bar,
    ):
        for index, case in enumerate(selected):

            def show(doing: str, done: float, name: str = case.name, index: int = index) -> None:
                bar(f"{name}: {doing}", index + done)

            options = {"budget": given.budget, "without": given.without, "with_memory": not given.no_memory}
            record = measure(case, table=contenders.TABLE, progress=show, **options)
            record.goals = goals.outcomes(record)
            measured.append(record)
            report.show(record, case.baseline)
            if given.json is None:
                Report([record]).save(results / f"{record.name}.json")
    if given.json is not None:
        Report(measured).save(given.json)
    return measured


if __name__ == "__main__":
    sys.exit(main())
