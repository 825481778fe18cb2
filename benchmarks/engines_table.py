"""The results of ``benchmarks.engines`` as tables with the medians of all contenders; README's is overview.py's."""

from collections.abc import Sequence

from benchmarks import contenders
from benchmarks.cases import ENGINES as PREFIX
from hrnet_fast.bench import machine
from hrnet_fast.bench.contenders import CHANNELS_LAST
from hrnet_fast.bench.record import Record, Report
from hrnet_fast.bench.report import Table, median_over, milliseconds, times

LEADS = ("over eager", "over the best other")  # what our best form is faster than
NOTHING = "No results are stored yet: `python -m benchmarks.engines` measures them.\n"
AGAIN = "Measure again: `python -m benchmarks.engines`, then `python -m benchmarks.readme_table`."


def others(case: Record) -> list[str]:
    """The contenders that are not this package."""
    return [entry.name for entry in case.entries if entry.name not in contenders.ours()]


def leads(case: Record) -> list[float | None]:
    """How many times as long eager and the best other take as our best form; medians of the rounds."""
    ours = case.best(*contenders.ours())
    return [median_over(ours, case.entry(CHANNELS_LAST)), median_over(ours, case.best(*others(case)))]


def columns(cases: Sequence[Record]) -> list[str]:
    """The contenders of all cases, in the order in which they take turns."""
    there = {entry.name for case in cases for entry in case.entries}
    return [name for name in contenders.TABLE if name in there]


def rows(cases: Sequence[Record]) -> list[list[str]]:
    """A row per case: its name (*: disturbed), a cell per contender (†: off by more than the tolerance), our leads."""
    names, found = columns(cases), []
    for case in cases:
        entries = {entry.name: entry for entry in case.entries if entry.seconds is not None}
        cells = [milliseconds(entries[name].seconds.median) + ("" if entries[name].agrees else " †")
                 if name in entries else "-" for name in names]  # fmt: skip
        found.append([case.description + " *" * case.disturbed, *cells, *map(times, leads(case))])
    return found


def summary(cases: Sequence[Record]) -> Table:
    """For the terminal."""
    return Table(["", *columns(cases), *LEADS], rows(cases), "medians of runs in turn")


def markdown(machines: Sequence[dict[str, Report]], order: Sequence[str] = ()) -> str:
    """A column for every contender, a table for every machine, from its stored results by the cases' names.

    Args:
        order: names of the cases that come first, in this order.
    """

    def place(name: str) -> int:
        return order.index(name) if name in order else len(order)

    made = []
    for reports in machines:
        stored = [reports[name] for name in sorted(reports, key=place) if name.startswith(PREFIX)]
        made += _table(stored) if stored else []
    return "\n".join([*made, AGAIN, ""]) if made else NOTHING


def machines_of(stored: Sequence[Report]) -> list[str]:
    """A line for each machine; one that was measured on several commits names them all."""
    commits: dict[str, list[str]] = {}
    for report in stored:
        text = machine.summary({**report.machine, "commit": None})
        commits.setdefault(text, []).append(report.machine["commit"])
    return [f"Measured on: {text}{_commits(names)}." for text, names in commits.items()]


def _commits(names: Sequence[str | None]) -> str:
    known = list(dict.fromkeys(name for name in names if name))
    return f"; commit{'s' if len(known) > 1 else ''} {', '.join(known)}" if known else ""


def _table(stored: Sequence[Report]) -> list[str]:
    cases = [report.cases[0] for report in stored]
    names = columns(cases)
    cpu = stored[0].machine["cpu"]
    lines = [f"### {cpu['model']}, {cpu['kernel']}", "", *Table(["", *names, *LEADS], rows(cases)).markdown()]
    notes = [*machines_of(stored), "Medians of runs in turn, batch 1, the same weights and photograph for all."]
    notes += _failures(cases) + _errors(cases)
    off = sorted({f"{e.name} ({e.error:.1e})" for case in cases for e in case.entries if e.seconds and not e.agrees})
    notes += [f"†: off by more than the tolerance of its dtype: {', '.join(off)}."] if off else []
    notes += ["*: other processes kept the cores busy meanwhile."] if any(case.disturbed for case in cases) else []
    return [*lines, "", *(f"- {note}" for note in notes), ""]


def _errors(cases: Sequence[Record]) -> list[str]:
    """A line for each case in int8: how far each contender is off, since engines pay for speed with errors there."""
    lines = []
    for case in cases:
        told = [f"{entry.name} {entry.error:.1e}" for entry in case.entries if entry.error is not None]
        if case.dtype == "int8" and told:
            lines.append(f"Errors against float64, {case.description}: {', '.join(told)}.")
    return lines


def _failures(cases: Sequence[Record]) -> list[str]:
    """Why contenders did not run, one line for each reason."""
    return list(dict.fromkeys(
        f"{entry.name} did not run ({case.dtype}): {entry.failure}."
        for case in cases for entry in case.entries if entry.failure is not None
    ))  # fmt: skip
