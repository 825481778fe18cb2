"""The results of ``benchmarks.engines`` in one table: medians of all contenders, and our lead over the best peer."""

from collections.abc import Sequence

from rich.table import Table

from benchmarks import peers
from hrnet_fast.bench import machine
from hrnet_fast.bench.report import Case, Entry, Report, milliseconds

PREFIX = "engines-"  # of the cases' names
LEAD = "best of the others / ours"


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
    """A row per case: its name, a cell per contender (a star: off by more than the tolerance), our lead."""
    names, found = columns(cases), []
    for case in cases:
        entries = {entry.name: entry for entry in case.entries if entry.seconds is not None}
        cells = [milliseconds(entries[name].seconds.median) + ("" if entries[name].agrees else " *")
                 if name in entries else "-" for name in names]  # fmt: skip
        ratio = lead(case)
        found.append([case.description, *cells, "-" if ratio is None else f"{ratio:.2f}x"])
    return found


def summary(cases: Sequence[Case]) -> Table:
    """For the terminal."""
    out = Table(title="medians of runs in turn", title_justify="left")
    for name in ("", *columns(cases), LEAD):
        out.add_column(name, justify="right" if name else "left")
    for row in rows(cases):
        out.add_row(*row)
    return out


def markdown(reports: dict[str, Report]) -> str:
    """For README.md, from all stored results by the cases' names."""
    stored = [report for name, report in reports.items() if name.startswith(PREFIX)]
    cases = [report.cases[0] for report in stored]
    if not cases:
        return "No results are stored yet: `python -m benchmarks.engines` measures them.\n"
    names = columns(cases)
    lines = [f"| | {' | '.join([*names, LEAD])} |", "|---|" + "--:|" * (len(names) + 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows(cases)]
    lines += ["", "Medians of runs in turn, batch 1, the same weights and photograph for all."]
    lines += _failures(cases)
    off = sorted({f"{e.name} ({e.error:.1e})" for case in cases for e in case.entries if e.seconds and not e.agrees})
    lines += [f"* is off by more than the tolerance of its dtype: {', '.join(off)}."] if off else []
    lines += ["Other processes kept the cores busy meanwhile."] if any(case.disturbed for case in cases) else []
    lines += [f"Measured on: {text}." for text in dict.fromkeys(machine.summary(report.machine) for report in stored)]
    lines += ["Measure again: `python -m benchmarks.engines`, then `python -m benchmarks.readme_table`.", ""]
    return "\n".join(lines)


def _failures(cases: Sequence[Case]) -> list[str]:
    """Why contenders did not run, one line for each reason."""
    return list(dict.fromkeys(
        f"{entry.name} did not run ({case.dtype}): {entry.failure}."
        for case in cases for entry in case.entries if entry.failure is not None
    ))  # fmt: skip
