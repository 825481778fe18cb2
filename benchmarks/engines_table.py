"""The results of ``benchmarks.engines`` as tables: README's first one, and one with the medians of all contenders."""

from collections.abc import Sequence

from benchmarks import contenders
from benchmarks.cases import ENGINES as PREFIX
from hrnet_fast.bench import machine
from hrnet_fast.bench.contenders import CHANNELS_LAST, COMPILED, FAST, OPTIMIZED
from hrnet_fast.bench.record import Entry, Record, Report
from hrnet_fast.bench.report import Table, milliseconds

LEAD = "best of the others / ours"
NOTHING = "No results are stored yet: `python -m benchmarks.engines` measures them.\n"
AGAIN = "Measure again: `python -m benchmarks.engines`, then `python -m benchmarks.readme_table`."


def lead(case: Record) -> float | None:
    """How many times as long the best peer takes as our best form; the median of the rounds."""
    ours = case.best(*contenders.ours())
    peer = case.best(*(entry.name for entry in case.entries if entry.name not in contenders.ours()))
    return ours.speedup_over[peer.name].median if ours and peer else None


def columns(cases: Sequence[Record]) -> list[str]:
    """The contenders of all cases, in the order in which they take turns."""
    there = {entry.name for case in cases for entry in case.entries}
    return [name for name in contenders.TABLE if name in there]


def rows(cases: Sequence[Record]) -> list[list[str]]:
    """A row per case: its name, a cell per contender (a star: off by more than the tolerance), our lead."""
    names, found = columns(cases), []
    for case in cases:
        entries = {entry.name: entry for entry in case.entries if entry.seconds is not None}
        cells = [milliseconds(entries[name].seconds.median) + ("" if entries[name].agrees else " *")
                 if name in entries else "-" for name in names]  # fmt: skip
        ratio = lead(case)
        found.append([case.description, *cells, "-" if ratio is None else f"{ratio:.2f}x"])
    return found


def summary(cases: Sequence[Record]) -> Table:
    """For the terminal."""
    return Table(["", *columns(cases), LEAD], rows(cases), "medians of runs in turn")


def overviews(machines: Sequence[dict[str, Report]], order: Sequence[str]) -> str:
    """README's first tables, one for each machine: ``optimize`` on whole networks, beside the best of all others.

    Args:
        machines: the stored results of each machine by the cases' names.
        order: names of the cases to show; those that are not stored are left out.
    """
    made = [_overview([reports[name] for name in order if name in reports]) for reports in machines]
    made = [lines for lines in made if lines]
    return "\n".join([*(line for lines in made for line in lines), AGAIN, ""]) if made else NOTHING


def _overview(stored: Sequence[Report]) -> list[str]:
    if not stored:
        return []
    lines = [*_machines(stored), "", "| | eager, channels_last | torch.compile | best of the others | hrnet_fast "
             "| **hrnet_fast.optimize** | over eager | over the best |", "|---|--:|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    lines += [_overview_row(report.cases[0]) for report in stored]
    notes = ["Medians of runs in turn, batch 1, the same weights and photograph for all, each in its best form."]
    if any(e.seconds and not e.agrees for report in stored for e in report.cases[0].entries):
        notes.append("†: off by more than the tolerance of its dtype.")
    if any(report.cases[0].disturbed for report in stored):
        notes.append("*: other processes kept the cores busy meanwhile.")
    return [*lines, "", " ".join(notes), ""]


def _machines(stored: Sequence[Report]) -> list[str]:
    return [f"Measured on: {text}." for text in dict.fromkeys(machine.summary(report.machine) for report in stored)]


def _overview_row(case: Record) -> str:
    timed = {entry.name: entry for entry in case.entries if entry.seconds is not None}
    optimized = timed.get(OPTIMIZED)
    other = case.best(*(name for name in timed if name not in contenders.ours()))
    cells = [_milliseconds(timed.get(name)) for name in (CHANNELS_LAST, COMPILED)]
    cells.append(f"{other.name}, {_milliseconds(other)}" if other else "-")
    cells += [_milliseconds(timed.get(FAST)), f"**{_milliseconds(optimized)}**" if optimized else "-"]
    for slower in (timed.get(CHANNELS_LAST), other):
        ratio = optimized.speedup_over.get(slower.name) if optimized and slower else None
        cells.append("-" if ratio is None else f"{ratio.median:.2f}x")
    return f"| {case.description}{' *' if case.disturbed else ''} | {' | '.join(cells)} |"


def _milliseconds(entry: Entry | None) -> str:
    return "-" if entry is None else milliseconds(entry.seconds.median) + ("" if entry.agrees else " †")


def markdown(machines: Sequence[dict[str, Report]]) -> str:
    """A column for every contender, a table for every machine, from its stored results by the cases' names."""
    made = [_table([r for name, r in reports.items() if name.startswith(PREFIX)]) for reports in machines]
    made = [lines for lines in made if lines]
    return "\n".join([*(line for lines in made for line in lines), AGAIN, ""]) if made else NOTHING


def _table(stored: Sequence[Report]) -> list[str]:
    cases = [report.cases[0] for report in stored]
    if not cases:
        return []
    names = columns(cases)
    lines = [*_machines(stored), "", *Table(["", *names, LEAD], rows(cases)).markdown()]
    lines += ["", "Medians of runs in turn, batch 1, the same weights and photograph for all."]
    lines += _failures(cases) + _errors(cases)
    off = sorted({f"{e.name} ({e.error:.1e})" for case in cases for e in case.entries if e.seconds and not e.agrees})
    lines += [f"A star: off by more than the tolerance of its dtype: {', '.join(off)}."] if off else []
    lines += ["Other processes kept the cores busy meanwhile."] if any(case.disturbed for case in cases) else []
    return [*lines, ""]


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
