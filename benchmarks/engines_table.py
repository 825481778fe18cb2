"""The results of ``benchmarks.engines`` as tables with the medians of all contenders; README's is overview.py's."""

from collections.abc import Sequence

from rich.table import Table

from benchmarks import peers
from hrnet_fast.bench import machine
from hrnet_fast.bench.contenders import CHANNELS_LAST
from hrnet_fast.bench.report import Case, Entry, Report, milliseconds

PREFIX = "engines-"  # of the cases' names
LEADS = ("over eager", "over the best other")  # what our best form is faster than
NOTHING = "No results are stored yet: `python -m benchmarks.engines` measures them.\n"
AGAIN = "Measure again: `python -m benchmarks.engines`, then `python -m benchmarks.readme_table`."


def best(case: Case, names: Sequence[str]) -> Entry | None:
    """Of the named contenders the one with the least median."""
    timed = [entry for entry in case.entries if entry.name in names and entry.seconds is not None]
    return min(timed, key=lambda entry: entry.seconds.median, default=None)


def lead(case: Case) -> float | None:
    """How many times as long the best peer takes as our best form; the median of the rounds."""
    ours = best(case, peers.ours())
    peer = best(case, [entry.name for entry in case.entries if entry.name not in peers.ours()])
    return ours.speedup_over[peer.name].median if ours and peer else None


def columns(cases: Sequence[Case]) -> list[str]:
    """The contenders of all cases, in the order in which they take turns."""
    there = {entry.name for case in cases for entry in case.entries}
    return [name for name in peers.table() if name in there]


def rows(cases: Sequence[Case]) -> list[list[str]]:
    """A row per case: its name (*: disturbed), a cell per contender (†: off by more than the tolerance), our leads."""
    names, found = columns(cases), []
    for case in cases:
        entries = {entry.name: entry for entry in case.entries if entry.seconds is not None}
        cells = [milliseconds(entries[name].seconds.median) + ("" if entries[name].agrees else " †")
                 if name in entries else "-" for name in names]  # fmt: skip
        ours = best(case, peers.ours())
        over_eager = ours.speedup_over.get(CHANNELS_LAST) if ours else None
        leads = [over_eager and over_eager.median, lead(case)]
        found.append([case.description + (" *" if case.disturbed else ""), *cells,
                      *("-" if ratio is None else f"{ratio:.2f}x" for ratio in leads)])  # fmt: skip
    return found


def summary(cases: Sequence[Case]) -> Table:
    """For the terminal."""
    out = Table(title="medians of runs in turn", title_justify="left")
    for name in ("", *columns(cases), *LEADS):
        out.add_column(name, justify="right" if name else "left")
    for row in rows(cases):
        out.add_row(*row)
    return out


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
    lines = [f"### {cpu['model']}, {cpu['kernel']}", "", f"| | {' | '.join([*names, *LEADS])} |"]
    lines += ["|---|" + "--:|" * (len(names) + len(LEADS))]
    lines += [f"| {' | '.join(row)} |" for row in rows(cases)]
    notes = [*machines_of(stored), "Medians of runs in turn, batch 1, the same weights and photograph for all."]
    notes += _failures(cases) + _errors(cases)
    off = sorted({f"{e.name} ({e.error:.1e})" for case in cases for e in case.entries if e.seconds and not e.agrees})
    notes += [f"†: off by more than the tolerance of its dtype: {', '.join(off)}."] if off else []
    notes += ["*: other processes kept the cores busy meanwhile."] if any(case.disturbed for case in cases) else []
    return [*lines, "", *(f"- {note}" for note in notes), ""]


def _errors(cases: Sequence[Case]) -> list[str]:
    """A line for each case in int8: how far each contender is off, since engines pay for speed with errors there."""
    lines = []
    for case in cases:
        told = [f"{entry.name} {entry.error:.1e}" for entry in case.entries if entry.error is not None]
        if case.dtype == "int8" and told:
            lines.append(f"Errors against float64, {case.description}: {', '.join(told)}.")
    return lines


def _failures(cases: Sequence[Case]) -> list[str]:
    """Why contenders did not run, one line for each reason."""
    return list(dict.fromkeys(
        f"{entry.name} did not run ({case.dtype}): {entry.failure}."
        for case in cases for entry in case.entries if entry.failure is not None
    ))  # fmt: skip
