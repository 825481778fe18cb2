"""What has to be reached, as data: hrnet_fast's speedup over a contender, on every case that matches.

The programs print reached or missed beside each; a miss is reported, it is never an error of the run.
"""

import dataclasses
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from hrnet_fast.bench.contenders import (
    CHANNELS_LAST,
    COMPILED,
    EAGER,
    FAST,
    FAST_COMPILED,
    FOLDED,
    OPTIMIZED,
)
from hrnet_fast.bench.record import Record
from hrnet_fast.bench.report import Table, median_over, share_of_copy, times

COPY = "copy bandwidth"  # over it: the useful bytes' share of it


@dataclass(frozen=True)
class Goal:
    """``ours`` takes at most 1 / ``ratio`` of the time of ``over`` in the cases that match ``pattern``."""

    pattern: str
    over: str
    ratio: float
    ours: str = FAST


@dataclass(frozen=True)
class Outcome:
    """A goal on one case: the median speedup that was measured, None where a contender was not timed."""

    ours: str
    over: str
    goal: float
    measured: float | None
    reached: bool | None

    def __str__(self) -> str:
        if self.measured is None:
            return f"goal over {self.over}: {self.goal:g}, not measured"
        verdict = "reached" if self.reached else "missed"
        return f"goal over {self.over}: {self.goal:g}, measured {self.measured:.2f}: {verdict}"


PLAIN = (EAGER, CHANNELS_LAST, FOLDED, COMPILED)
GOALS = (
    Goal("exchange-c18-*", COMPILED, 4.0),
    Goal("exchange-c48-*-bfloat16", COMPILED, 4.0),
    Goal("exchange-c48-*-float32", COMPILED, 2.5),
    Goal("exchange-c18-*-float32", FOLDED, 8.0),
    Goal("exchange-c48-*-float32", FOLDED, 8.0),
    Goal("exchange-c18-*-bfloat16", FOLDED, 5.0),
    Goal("exchange-c48-*-bfloat16", FOLDED, 5.0),
    Goal("unit-*-stage4-float32", FOLDED, 1.6),
    Goal("unit-*-stage4-bfloat16", FOLDED, 2.0),
    Goal("head-*", FOLDED, 5.0),
    Goal("head-*", COMPILED, 3.0),
    Goal("model-w48-512x512-float32", CHANNELS_LAST, 1.15),
    Goal("backward-*", CHANNELS_LAST, 3.0),
    Goal("training-unit-*", CHANNELS_LAST, 1.3),
    *(Goal("*", over, 1.0) for over in PLAIN),  # never slower than eager or torch.compile on any case of the suite
    *(Goal("*", over, 1.0, OPTIMIZED) for over in (*PLAIN, FAST, FAST_COMPILED)),  # optimize is the fastest form of all
    Goal("model-*", COMPILED, 1.0, FAST_COMPILED),  # compiled against compiled
)
GPU_GOALS = (  # on an H100-class GPU; hrnet_fast as it chooses by itself
    Goal("op-w48-1024x2048-*", COPY, 0.75),
    Goal("op-w48-1024x2048-*", COMPILED, 1.2),
    Goal("op-w48-1024x2048-*", FOLDED, 4.0),
    Goal("op-w18-512x1024-*", COMPILED, 2.0),
    Goal("unit-w18-512x1024-*", COMPILED, 2.0),
    Goal("unit-w48-512x1024-*", COMPILED, 1.5),
    Goal("head-classifier-w48-1024x2048-*", FOLDED, 4.0),
    Goal("head-classifier-w48-1024x2048-*", COMPILED, 3.0),
    Goal("head-w48-1024x2048-*", FOLDED, 4.0),
    Goal("head-w48-1024x2048-*", COMPILED, 3.0),
)


def of(name: str, goals: Sequence[Goal]) -> list[Goal]:
    """For every two contenders, the highest goal of a case."""
    found: dict[tuple[str, str], Goal] = {}
    for goal in goals:
        before = found.get((goal.ours, goal.over))
        if fnmatch.fnmatchcase(name, goal.pattern) and (before is None or before.ratio < goal.ratio):
            found[goal.ours, goal.over] = goal
    return list(found.values())


def compiled(record: Record) -> list[str]:
    """The names of torch.compile, in all its modes, that a record has."""
    return [entry.name for entry in record.entries if entry.name.startswith(COMPILED)]


def speedup(record: Record, over: str, ours: str = FAST) -> float | None:
    """Median over the rounds of the ratio of times; over COMPILED: the least of those over its modes."""
    names = compiled(record) if over == COMPILED else [over]
    ratios = (median_over(record.entry(ours), record.entry(name)) for name in names)
    return min((ratio for ratio in ratios if ratio is not None), default=None)


def outcomes(record: Record, goals: Sequence[Goal] = GOALS, copy_rate: float | None = None) -> list[dict]:
    """Of each goal whose contenders are in the record an Outcome, as a dict."""
    found = []
    for goal in of(record.name, goals):
        there = goal.over == COPY or (compiled(record) if goal.over == COMPILED else record.entry(goal.over))
        if record.entry(goal.ours) is None or not there:
            continue
        ratio = (share_of_copy(record, record.entry(goal.ours), copy_rate) if goal.over == COPY
                 else speedup(record, goal.over, goal.ours))  # fmt: skip
        reached = None if ratio is None else ratio >= goal.ratio
        found.append(dataclasses.asdict(Outcome(goal.ours, goal.over, goal.ratio, ratio, reached)))
    return found


def shown(measured: Sequence[Record]) -> str:
    """All goals of some records as a table, and how many are reached."""
    rows = []
    for record, outcome in [(case, Outcome(**goal)) for case in measured for goal in case.goals]:
        verdict = ("reached" if outcome.reached else "missed") + " (disturbed)" * record.disturbed
        ratio = "not timed" if outcome.measured is None else times(outcome.measured)
        rows.append([record.name, outcome.ours, outcome.over, verdict, ratio, f"{outcome.goal:g}x"])
    lines = [Table(["case", "of", "over", "", "measured", "goal"], rows, "goals: median speedup", left=4).text(),
             f"{sum(row[3].startswith('reached') for row in rows)} of {len(rows)} goals reached"]  # fmt: skip
    if not any(compiled(record) for record in measured):
        lines.append("torch.compile was left out, and with it the goals over it")
    if any(record.disturbed for record in measured):
        lines.append("other processes were busy on this machine: measure again when it is quiet")
    return "\n".join(lines)
