"""Results as records: made from what the harness returns, written to JSON and read back, shown as rich tables."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hrnet_fast.bench.harness import Result, Spread, speedup, spread
from hrnet_fast.bench.machine import describe
from hrnet_fast.bench.variation import LEAST_VARIATION

SCHEMA = 1
# A parallel loop waits for its slowest thread: more than this share of the cores in other hands falsifies short times.
QUIET = 0.1


def console() -> Console:
    """Standard output. Into a file or a pipe tables are written whole, as no terminal's width limits them."""
    usual = Console(highlight=False)
    return usual if usual.is_terminal else Console(width=180, highlight=False)


@dataclass
class Entry:
    """One contender of a case. Times are in seconds per call; None where it was not timed, or nothing was asked."""

    name: str
    error: float | None  # relative, against the float64 reference; None: it returned nothing that can be compared
    agrees: bool
    failure: str | None = None
    seconds: Spread | None = None
    rounds: int = 0
    loops: int = 0
    speedup_over: dict[str, Spread] = field(default_factory=dict)  # other contender -> its time over this one's
    gflops: float | None = None  # executed by one call: multiply-adds / 2^30, as HRNet's papers count them
    peak_memory_bytes: int | None = None
    argmax_agreement: float | None = None  # share of the pixels that get the reference's class
    first_result_seconds: float | None = None  # from the model in plain PyTorch to the first output
    resident_peak_bytes: int | None = None  # of a process of its own: memory.resident_peak
    engine: str | None = None  # of hrnet_fast.optimize: OptimizedModel.engine
    engine_reason: str | None = None  # why it is not "planned": OptimizedModel.reason


@dataclass
class Case:
    """One case with all its contenders."""

    name: str
    description: str
    dtype: str
    tolerance: float
    entries: list[Entry]
    batch: int = 1
    params: int | None = None
    gflops_published: float | None = None
    shares: dict[str, float] = field(default_factory=dict)  # group of modules -> share of eager's forward pass
    neighbours: float | None = None  # share of the machine's cores that other processes took during the timing
    variation: float | None = None  # of the reference over its pixels, 0 to 1: variation.variation

    def entry(self, name: str) -> Entry | None:
        """The contender of that name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    @property
    def disturbed(self) -> bool:
        """Whether other processes took enough of the cores to falsify the times."""
        return self.neighbours is not None and self.neighbours > QUIET

    @property
    def agrees(self) -> bool:
        """Whether no contender's output was off. One that could not run at all does not count."""
        return all(entry.agrees for entry in self.entries if entry.failure is None)


@dataclass
class Report:
    """Cases, and the machine they were measured on."""

    cases: list[Case]
    machine: dict = field(default_factory=describe)
    schema: int = SCHEMA

    def save(self, path: str | Path) -> None:
        """Writes JSON, making the folder where it is missing."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Reads what ``save`` wrote.

        Raises:
            ValueError: the file has another schema.
        """
        data = json.loads(Path(path).read_text())
        if data.get("schema") != SCHEMA:
            raise ValueError(f"{Path(path).name}: expected results of schema {SCHEMA}, got {data.get('schema')}")
        return cls([_case(case) for case in data["cases"]], data["machine"], data["schema"])


def _case(data: dict) -> Case:
    entries = []
    for entry in data.pop("entries"):
        seconds, over = entry.pop("seconds"), entry.pop("speedup_over")
        entries.append(Entry(seconds=seconds and Spread(**seconds), **entry,
                             speedup_over={name: Spread(**value) for name, value in over.items()}))  # fmt: skip
    return Case(entries=entries, **data)


def entries(results: Sequence[Result]) -> list[Entry]:
    """The harness's results as records, with every ratio between two contenders that were timed."""
    timed = [result for result in results if result.seconds]
    return [
        Entry(
            name=result.name,
            error=result.error if math.isfinite(result.error) else None,
            agrees=result.agrees,
            failure=result.failure,
            seconds=spread(result.seconds) if result.seconds else None,
            rounds=len(result.seconds),
            loops=result.loops,
            speedup_over={o.name: speedup(o, result) for o in timed if o is not result} if result.seconds else {},
        )
        for result in results
    ]


def table(case: Case, baseline: str) -> Table:
    """The case as a table: agreement, latency and speedup over ``baseline``, and what else was measured."""
    out = Table(title=f"{case.name}: {case.description}", title_justify="left", title_style="bold", expand=False)
    columns = ["", "rel. error", "median", "p20 - p80", "images/s", f"speedup over {baseline}"]
    optional = {
        "same class": lambda e: e.argmax_agreement is not None and f"{100 * e.argmax_agreement:.2f} %",
        "GFLOPs": lambda e: e.gflops is not None and f"{e.gflops:.4g}",
        "peak memory": lambda e: e.peak_memory_bytes is not None and f"{e.peak_memory_bytes / 2**20:.1f} MiB",
        "process peak": lambda e: e.resident_peak_bytes is not None and f"{e.resident_peak_bytes / 2**20:.0f} MiB",
        "first result": lambda e: e.first_result_seconds is not None and f"{e.first_result_seconds:.2f} s",
    }
    shown = {name: show for name, show in optional.items() if any(show(entry) for entry in case.entries)}
    for index, name in enumerate([*columns, *shown]):
        out.add_column(name, justify="right" if index else "left")
    for entry in case.entries:
        out.add_row(entry.name, *_cells(entry, case, baseline), *(show(entry) or "-" for show in shown.values()),
                    style=None if entry.agrees else "red")  # fmt: skip
    return out


def _cells(entry: Entry, case: Case, baseline: str) -> list[str]:
    error = "-" if entry.error is None else f"{entry.error:.1e}"
    if entry.failure is not None:
        return ["-", "did not run", "-", "-", "-"]
    if not entry.agrees:
        error = f"{error} > {case.tolerance:.0e}"
    if entry.seconds is None:
        return [error, "not timed", "-", "-", "-"]
    ratio = entry.speedup_over.get(baseline)
    shown = "1" if entry.name == baseline else "-" if ratio is None else f"{ratio.median:.2f}x"
    s = entry.seconds
    return [error, milliseconds(s.median), f"{milliseconds(s.p20)} - {milliseconds(s.p80)}",
            f"{case.batch / s.median:.4g}", shown]  # fmt: skip


def milliseconds(seconds: float) -> str:
    """Three or four digits and the unit: "0.0153 ms", "614 ms"."""
    value = seconds * 1e3
    return f"{value:.0f} ms" if value >= 1000 else f"{value:#.3g} ms".replace(". ", " ")


def notes(case: Case) -> list[str]:
    """The lines for below a table: parameters, published GFLOPs, shares, and why a contender did not run."""
    lines = []
    if case.params is not None:
        lines.append(f"{case.params:,} parameters")
    if case.gflops_published is not None:
        lines.append(f"{case.gflops_published:.4g} GFLOPs as HRNet's papers count them "
                     "(multiply-adds of the original order / 2^30); the column has those executed")  # fmt: skip
    if case.shares:
        parts = ", ".join(f"{name} {100 * value:.0f} %" for name, value in case.shares.items())
        lines.append(f"share of eager channels_last's time: {parts}")
    for entry in case.entries:
        if entry.engine is not None:
            because = f", because {entry.engine_reason}" if entry.engine_reason else ""
            lines.append(f"{entry.name}: engine {entry.engine!r}{because}")
    if case.variation is not None and case.variation < LEAST_VARIATION:
        lines.append(f"the outputs vary by {100 * case.variation:.2g} % over the image only: almost constant, so that "
                     "even a wrong computation would seem to agree")  # fmt: skip
    if case.disturbed:
        lines.append(f"other processes took {100 * case.neighbours:.0f} % of the cores meanwhile: times are longer "
                     "than on a quiet machine, and ratios are not to be relied on")  # fmt: skip
    lines += [f"{entry.name} did not run: {entry.failure}" for entry in case.entries if entry.failure is not None]
    lines += [f"{entry.name} is off by more than {case.tolerance:.0e}: "
              + ("not timed" if entry.seconds is None else "timed all the same")
              for entry in case.entries if entry.failure is None and not entry.agrees]  # fmt: skip
    return lines
