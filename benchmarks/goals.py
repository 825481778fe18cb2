"""What the suite has to reach, as data: hrnet_fast's speedup over a contender, on every case that matches.

``run`` prints reached or missed beside each; a miss is reported, it is never an error of the run.
"""

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hrnet_fast.bench.contenders import CHANNELS_LAST, COMPILED, EAGER, FAST, FAST_COMPILED, FOLDED, OPTIMIZED
from hrnet_fast.bench.report import Case


@dataclass(frozen=True)
class Goal:
    """``ours`` takes at most 1 / ``ratio`` of the time of ``over`` in the cases that match ``pattern``."""

    pattern: str
    over: str
    ratio: float
    ours: str = FAST


@dataclass(frozen=True)
class Outcome:
    """A goal on one case: the median speedup that was measured, or None where a contender was not timed."""

    goal: Goal
    case: str
    measured: float | None

    @property
    def reached(self) -> bool:
        """Whether the median speedup is at least the goal's."""
        return self.measured is not None and self.measured >= self.goal.ratio


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
    # never slower than eager or torch.compile on any case of the suite
    *(Goal("*", contender, 1.0) for contender in (EAGER, CHANNELS_LAST, FOLDED, COMPILED)),
    # whole networks: optimize is the fastest form of all
    *(
        Goal("*", contender, 1.0, OPTIMIZED)
        for contender in (EAGER, CHANNELS_LAST, FOLDED, COMPILED, FAST, FAST_COMPILED)
    ),
    # compiled against compiled
    Goal("model-*", COMPILED, 1.0, FAST_COMPILED),
)


def outcomes(cases: Sequence[Case]) -> list[Outcome]:
    """For every case and every contender in it: the highest goal that there is for the two."""
    found = []
    for case in cases:
        forms = [case.entry(name) for name in (FAST, FAST_COMPILED, OPTIMIZED)]
        for ours, entry in itertools.product(forms, case.entries):
            goals = [g for g in GOALS if ours is not None and (g.ours, g.over) == (ours.name, entry.name)
                     and fnmatch.fnmatchcase(case.name, g.pattern)]  # fmt: skip
            if goals:
                ratio = ours.speedup_over.get(entry.name)
                highest = max(goals, key=lambda goal: goal.ratio)
                found.append(Outcome(highest, case.name, None if ratio is None else ratio.median))
    return found
