"""What the GPU benchmark has to reach on an H100-class GPU, as data; a miss is reported, it is no error of the run."""

import fnmatch
import statistics
from dataclasses import dataclass

from benchmarks.gpu_cases import EAGER, FAST, GpuCase

COMPILED, COPY = "torch.compile", "copy bandwidth"  # the faster of torch.compile's modes; the useful bytes' share of it


@dataclass(frozen=True)
class Goal:
    """hrnet_fast, as it chooses by itself, is so many times as fast as ``over`` in the cases that match ``pattern``."""

    pattern: str
    over: str
    ratio: float


GOALS = (
    Goal("op-w48-1024x2048-*", COPY, 0.75),
    Goal("op-w48-1024x2048-*", COMPILED, 1.2),
    Goal("op-w48-1024x2048-*", EAGER, 4.0),
    Goal("op-w18-512x1024-*", COMPILED, 2.0),
    Goal("unit-w18-512x1024-*", COMPILED, 2.0),
    Goal("unit-w48-512x1024-*", COMPILED, 1.5),
    Goal("head-classifier-w48-1024x2048-*", EAGER, 4.0),
    Goal("head-classifier-w48-1024x2048-*", COMPILED, 3.0),
    Goal("head-w48-1024x2048-*", EAGER, 4.0),
    Goal("head-w48-1024x2048-*", COMPILED, 3.0),
)


def goals_of(name: str) -> list[Goal]:
    """The goals of a case."""
    return [goal for goal in GOALS if fnmatch.fnmatchcase(name, goal.pattern)]


def goals_first(cases: list[GpuCase]) -> list[GpuCase]:
    """The same cases, those with goals in front: time may run out."""
    return sorted(cases, key=lambda case: not goals_of(case.name))


def speedup(record: dict, over: str, ours: str = FAST) -> float | None:
    """Median over the rounds of the ratio of times in a stored case; None where one of the two was not timed.

    Over COMPILED: the least of those over torch.compile's modes.
    """
    if over == COMPILED:
        found = [speedup(record, name, ours) for name in record["contenders"] if name.startswith(COMPILED)]
        return min((ratio for ratio in found if ratio is not None), default=None)
    theirs, mine = (record["contenders"].get(name, {}).get("seconds") for name in (over, ours))
    return statistics.median(a / b for a, b in zip(theirs, mine)) if theirs and mine else None


def share_of_copy(record: dict, copy_rate: float | None, ours: str = FAST) -> float | None:
    """Useful bytes a second of a stored case, as a share of the copy bandwidth that was measured in the same run."""
    seconds = record["contenders"].get(ours, {}).get("seconds")
    return record["useful_bytes"] / statistics.median(seconds) / copy_rate if seconds and copy_rate else None


def outcomes(record: dict, copy_rate: float | None) -> list[dict]:
    """Of each goal of a stored case: over what, the ratio wanted and measured (None: not measured), and whether reached."""
    found = []
    for goal in goals_of(record["name"]):
        ratio = share_of_copy(record, copy_rate) if goal.over == COPY else speedup(record, goal.over)
        found.append({"over": goal.over, "goal": goal.ratio, "measured": ratio,
                      "reached": None if ratio is None else ratio >= goal.ratio})  # fmt: skip
    return found
