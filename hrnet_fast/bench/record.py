"""What a measurement found: a record for each case with an entry for each contender; written to JSON and read back."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hrnet_fast.bench.machine import describe

SCHEMA = 1
# A parallel loop waits for its slowest thread: more than this share of the cores in other hands falsifies short times.
QUIET = 0.1


@dataclass(frozen=True)
class Spread:
    """Median and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """Percentiles with linear interpolation between samples."""
        values = torch.tensor(list(samples), dtype=torch.float64)
        p20, median, p80 = values.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
        return cls(median, p20, p80)


@dataclass
class Entry:
    """One contender of a case. Times are in seconds per call; None where it was not timed, or nothing was asked."""

    name: str
    error: float | None = (
        None  # relative, against the float64 reference; None: it returned nothing that can be compared
    )
    agrees: bool = False  # error is within the tolerance
    failure: str | None = None  # why it did not run at all
    seconds: Spread | None = None
    rounds: int = 0
    loops: int = 0  # calls per sample
    speedup_over: dict[str, Spread] = field(default_factory=dict)  # other contender -> its time over this one's
    gflops: float | None = None  # executed by one call: multiply-adds / 2^30, as HRNet's papers count them
    peak_memory_bytes: int | None = None
    argmax_agreement: float | None = None  # share of the pixels that get the reference's class
    first_result_seconds: float | None = None  # from the model in plain PyTorch to the first output
    resident_peak_bytes: int | None = None  # of a process of its own: memory.resident_peak
    engine: str | None = None  # of hrnet_fast.optimize: OptimizedModel.engine
    engine_reason: str | None = None  # why it is not "planned": OptimizedModel.reason
    dtype: str | None = None  # None: the case's
    tolerance: float | None = None  # None: the case's
    samples: list[float] = field(default_factory=list, repr=False, compare=False)  # one a round; not stored

    @property
    def off(self) -> bool:
        """Whether it ran, and its output is off by more than the tolerance."""
        return self.failure is None and not self.agrees


@dataclass
class Record:
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
    useful_bytes: int | None = None  # of the inputs and outputs, in the case's dtype
    goals: list[dict] = field(default_factory=list)  # benchmarks.goals.Outcome

    def entry(self, name: str) -> Entry | None:
        """The contender of that name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def timed(self, *names: str) -> list[Entry]:
        """Those of the named contenders (by default of all) that were timed, in the order of the names."""
        found = [self.entry(name) for name in names] if names else self.entries
        return [entry for entry in found if entry is not None and entry.seconds is not None]

    def best(self, *names: str) -> Entry | None:
        """Of the named contenders the one with the least median."""
        return min(self.timed(*names), key=lambda entry: entry.seconds.median, default=None) if names else None

    @property
    def disturbed(self) -> bool:
        """Whether other processes took enough of the cores to falsify the times."""
        return self.neighbours is not None and self.neighbours > QUIET

    @property
    def agrees(self) -> bool:
        """Whether no contender's output was off. One that could not run at all does not count."""
        return not any(entry.off for entry in self.entries)


@dataclass
class Report:
    """Records, and the machine they were measured on."""

    cases: list[Record]
    machine: dict = field(default_factory=describe)
    schema: int = SCHEMA

    def save(self, path: str | Path) -> None:
        """Writes JSON, making the folder where it is missing."""
        path, data = Path(path), dataclasses.asdict(self)
        for entry in (entry for case in data["cases"] for entry in case["entries"]):
            del entry["samples"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Reads what ``save`` wrote.

        Raises:
            ValueError: the file has another schema.
        """
        data = json.loads(Path(path).read_text())
        if data.get("schema") != SCHEMA:
            raise ValueError(f"{Path(path).name}: expected results of schema {SCHEMA}, got {data.get('schema')}")
        return cls([_record(record) for record in data["cases"]], data["machine"], data["schema"])


def _record(data: dict) -> Record:
    entries = []
    for entry in data.pop("entries"):
        seconds, over = entry.pop("seconds"), entry.pop("speedup_over")
        ratios = {name: Spread(**value) for name, value in over.items()}
        entries.append(Entry(seconds=seconds and Spread(**seconds), speedup_over=ratios, **entry))
    return Record(entries=entries, **data)


def finish(entries: Sequence[Entry]) -> list[Entry]:
    """Medians of the samples, and the ratios between all contenders that were timed, round by round."""
    timed = [entry for entry in entries if entry.samples]
    for entry in timed:
        entry.seconds, entry.rounds = Spread.of(entry.samples), len(entry.samples)
        entry.speedup_over = {other.name: speedup(other, entry) for other in timed if other is not entry}
    return list(entries)


def speedup(slow: Entry, fast: Entry) -> Spread:
    """How many times as long ``slow`` takes as ``fast``, round by round."""
    return Spread.of([s / f for s, f in zip(slow.samples, fast.samples, strict=True)])
