"""Records as tables: for the terminal and as Markdown, with the lines that belong below them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hrnet_fast.bench.harness import Progress
from hrnet_fast.bench.record import Entry, Record
from hrnet_fast.bench.variation import LEAST_VARIATION

if TYPE_CHECKING:  # rich is not on a machine that is lent for its GPU
    from rich.console import Console


def console() -> "Console":
    """Standard output. Into a file or a pipe tables are written whole, as no terminal's width limits them."""
    from rich.console import Console

    usual = Console(highlight=False)
    return usual if usual.is_terminal else Console(width=180, highlight=False)


@contextlib.contextmanager
def progress_bar(total: float = 1.0) -> Iterator[Progress]:
    """A bar on standard error while something is measured, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    shown = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda doing, done: bar.update(task, description=doing, completed=done)


@dataclass(frozen=True)
class Table:
    """Rows of text. The first ``left`` columns begin at the left, the others end at the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    left: int = 1

    def markdown(self) -> list[str]:
        """Its lines on a page."""
        right = len(self.columns) - self.left
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, *self.rows)]
        return [
            lines[0].replace("|  |", "| |", 1) if not self.columns[0] else lines[0],
            "|---" * self.left + "|--:" * right + "|",
            *lines[1:],
        ]

    def text(self) -> str:
        """For a terminal, or what stands in its place."""
        every = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*every, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if k < self.left else cell.rjust(w)
                for k, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in every
        ]
        return "\n".join([*([self.title] if self.title else []), lines[0], "-" * max(map(len, lines)), *lines[1:]])


def milliseconds(seconds: float | None) -> str:
    """Three or four digits and the unit: "0.0153 ms", "614 ms"."""
    if seconds is None:
        return "-"
    value = seconds * 1e3
    return f"{value:.0f} ms" if value >= 1000 else f"{value:#.3g} ms".replace(". ", " ")


def times(ratio: float | None) -> str:
    """A speedup: "1.52x"."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def median_over(entry: Entry | None, other: Entry | None) -> float | None:
    """The median speedup of one contender over another, where both were timed."""
    ratio = entry.speedup_over.get(other.name) if entry and other else None
    return None if ratio is None else ratio.median


def table(record: Record, baseline: str, copy_rate: float | None = None) -> Table:
    """The case as a table: agreement, latency and speedup over ``baseline``, and what else was measured.

    ``copy_rate``: bytes a second of a copy, for a column of the share of it.
    """
    columns = ["", "rel. error", "median", "p20 - p80", "images/s", f"speedup over {baseline}"]
    optional = {
        "same class": lambda e: e.argmax_agreement is not None and f"{100 * e.argmax_agreement:.2f} %",
        "GFLOPs": lambda e: e.gflops is not None and f"{e.gflops:.4g}",
        "peak memory": lambda e: e.peak_memory_bytes is not None and f"{e.peak_memory_bytes / 2**20:.1f} MiB",
        "process peak": lambda e: e.resident_peak_bytes is not None and f"{e.resident_peak_bytes / 2**20:.0f} MiB",
        "first result": lambda e: e.first_result_seconds is not None and f"{e.first_result_seconds:.2f} s",
        "of copy bandwidth": lambda e: (share := share_of_copy(record, e, copy_rate)) is not None and f"{share:.0%}",
    }
    shown = {name: show for name, show in optional.items() if any(show(entry) for entry in record.entries)}
    rows = [[entry.name, *_cells(entry, record, baseline), *(show(entry) or "-" for show in shown.values())]
            for entry in record.entries]  # fmt: skip
    return Table([*columns, *shown], rows, f"{record.name}: {record.description}")


def share_of_copy(record: Record, entry: Entry | None, copy_rate: float | None) -> float | None:
    """Useful bytes a second, as a share of the copy bandwidth that was measured in the same run."""
    known = entry is not None and entry.seconds is not None and copy_rate and record.useful_bytes
    return record.useful_bytes / entry.seconds.median / copy_rate if known else None


def _cells(entry: Entry, record: Record, baseline: str) -> list[str]:
    error = "-" if entry.error is None else f"{entry.error:.1e}"
    if entry.failure is not None:
        return ["-", "did not run", "-", "-", "-"]
    if not entry.agrees:
        error = f"{error} > {entry.tolerance or record.tolerance:.0e}"
    if entry.seconds is None:
        return [error, "not timed", "-", "-", "-"]
    s, over = entry.seconds, median_over(entry, record.entry(baseline))
    return [error, milliseconds(s.median), f"{milliseconds(s.p20)} - {milliseconds(s.p80)}",
            f"{record.batch / s.median:.4g}", "1" if entry.name == baseline else times(over)]  # fmt: skip


def notes(record: Record) -> list[str]:
    """The lines for below a table: parameters, published GFLOPs, shares, and why a contender did not run."""
    lines = []
    if record.params:
        lines.append(f"{record.params:,} parameters")
    if record.gflops_published is not None:
        lines.append(f"{record.gflops_published:.4g} GFLOPs as HRNet's papers count them "
                     "(multiply-adds of the original order / 2^30); the column has those executed")  # fmt: skip
    if record.shares:
        parts = ", ".join(f"{name} {100 * value:.0f} %" for name, value in record.shares.items())
        lines.append(f"share of eager channels_last's time: {parts}")
    for entry in record.entries:
        if entry.engine is not None:
            because = f", because {entry.engine_reason}" if entry.engine_reason else ""
            lines.append(f"{entry.name}: engine {entry.engine!r}{because}")
    if record.variation is not None and record.variation < LEAST_VARIATION:
        lines.append(f"the outputs vary by {100 * record.variation:.2g} % over the image only: almost constant, so "
                     "that even a wrong computation would seem to agree")  # fmt: skip
    if record.disturbed:
        lines.append(f"other processes took {100 * record.neighbours:.0f} % of the cores meanwhile: times are longer "
                     "than on a quiet machine, and ratios are not to be relied on")  # fmt: skip
    lines += [f"{entry.name} did not run: {entry.failure}" for entry in record.entries if entry.failure is not None]
    lines += [f"{entry.name} is off by more than {entry.tolerance or record.tolerance:.0e}: "
              + ("not timed" if entry.seconds is None else "timed all the same")
              for entry in record.entries if entry.off]  # fmt: skip
    return lines


def show(record: Record, baseline: str, copy_rate: float | None = None) -> None:
    """Prints the table and its notes."""
    print(table(record, baseline, copy_rate).text(), *notes(record), sep="\n", flush=True)
