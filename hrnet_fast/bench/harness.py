"""Contenders over one case: each must agree with the float64 reference, then they take turns and are timed.

Contenders run in turn, A B C A B C ..., so that a machine that slows down for a while slows all of them down, and
ratios are taken between runs of the same round. A contender whose output is off is not timed (but see Contender.slack).
"""

import functools
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hrnet_fast.bench.memory import keep_freed_memory
from hrnet_fast.tolerances import relative_error

MIN_SAMPLE_SECONDS = 1e-3  # a shorter sample measures the clock
MIN_ROUNDS, MAX_ROUNDS = 5, 300


@functools.cache
def _torch_timer() -> Callable[[], float]:
    # on CUDA builds its import warns where there is no GPU: that is for those who measure
    from torch.utils.benchmark import timer

    return timer


def synchronized_clock() -> float:
    """Seconds, after all work on the accelerator has ended: torch's own benchmark timer."""
    return _torch_timer()()


@dataclass(frozen=True)
class Contender:
    """One way to compute a case: ``call()`` returns a tensor, or a list of tensors.

    ``slack``: it is timed up to this many times the case's tolerance. Above the tolerance it does not agree all the same.
    """

    name: str
    call: Callable[[], Tensor | Sequence[Tensor]]
    slack: float = 1.0


@dataclass(frozen=True)
class Prepared:
    """A case that is ready to be measured."""

    contenders: list[Contender]
    reference: Tensor | Sequence[Tensor]  # float64
    tolerance: float

    def contender(self, name: str) -> Contender | None:
        """The contender of that name."""
        return next((contender for contender in self.contenders if contender.name == name), None)


@dataclass
class Result:
    """What became of one contender. ``seconds`` holds one sample per round, none where the output was off."""

    name: str
    error: float
    tolerance: float
    seconds: list[float] = field(default_factory=list)
    loops: int = 0  # calls per sample
    failure: str | None = None  # why it did not run at all

    @property
    def agrees(self) -> bool:
        """Whether the output is within the tolerance."""
        return self.failure is None and self.error <= self.tolerance


@dataclass(frozen=True)
class Spread:
    """Median and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def spread(samples: Sequence[float]) -> Spread:
    """Percentiles with linear interpolation between samples."""
    values = torch.tensor(list(samples), dtype=torch.float64)
    p20, median, p80 = values.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return Spread(median, p20, p80)


def speedup(slow: Result, fast: Result) -> Spread:
    """How many times as long ``slow`` takes as ``fast``, round by round."""
    return spread([s / f for s, f in zip(slow.seconds, fast.seconds, strict=True)])


def worst_error(output: Tensor | Sequence[Tensor], reference: Tensor | Sequence[Tensor]) -> float:
    """The largest relative error among the tensors of an output; infinite where their number differs."""
    outputs, references = _tensors(output), _tensors(reference)
    if len(outputs) != len(references):
        return math.inf
    return max(relative_error(out, ref) for out, ref in zip(outputs, references, strict=True))


def _tensors(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def compare(
    case: Prepared,
    *,
    budget: float = 10.0,
    progress: Callable[[str, float], None] | None = None,
    observe: Callable[[str, Tensor | Sequence[Tensor]], None] | None = None,
    clock: Callable[[], float] = synchronized_clock,
) -> list[Result]:
    """Checks every contender, then times those that agree (or are within their slack), in turns.

    Args:
        case: the contenders in the order in which they take turns, what they should compute, and the largest relative
            error with which a contender agrees.
        budget: seconds to time for; at least MIN_ROUNDS and at most MAX_ROUNDS rounds are made.
        progress: called with what is going on and the share of the work that is done, 0 to 1.
        observe: called with the name and the output of every contender that agrees.
        clock: seconds, after all work on the accelerator has ended.

    Returns:
        One result per contender, in the same order.
    """
    report = progress or (lambda doing, done: None)
    results = []
    keep_freed_memory()
    with torch.inference_mode():
        for contender in case.contenders:
            report(f"checking {contender.name}", 0.0)
            results.append(_check(contender, case, observe))
        runs = [(c.call, result) for c, result in zip(case.contenders, results, strict=True)
                if result.failure is None and result.error <= c.slack * case.tolerance]  # fmt: skip
        if runs:
            take_turns(runs, budget, report, clock)
    return results


def _check(contender: Contender, case: Prepared, observe: Callable | None) -> Result:
    try:
        output = contender.call()
    except Exception as error:  # a contender that cannot run (torch.compile without a compiler) must not end the others
        lines = str(error).splitlines()
        failure = f"{type(error).__name__}: {lines[0] if lines else ''}"
        return Result(contender.name, math.inf, case.tolerance, failure=failure)
    result = Result(contender.name, worst_error(output, case.reference), case.tolerance)
    if observe is not None and result.agrees:
        observe(contender.name, output)
    return result


def take_turns(
    runs: Sequence[tuple[Callable, Result]],
    budget: float,
    report: Callable[[str, float], None],
    clock: Callable[[], float] = synchronized_clock,
) -> None:
    """Times callables in turns, into the ``seconds`` of their results. Arguments as in ``compare``."""
    begin = clock()
    for call, result in runs:
        report(f"warming up {result.name}", 0.0)
        call()
        result.loops = _loops(call, clock)
    collecting = gc.isenabled()
    gc.disable()
    try:
        first = clock()
        for done in range(MAX_ROUNDS):
            now = clock()
            # one more round takes about as long as those before did
            if done >= MIN_ROUNDS and now - begin + (now - first) / done > budget:
                break
            report(f"round {done + 1}", min(1.0, max((now - begin) / budget, done / MAX_ROUNDS)))
            for call, result in runs:
                result.seconds.append(_sample(call, result.loops, clock))
    finally:
        if collecting:
            gc.enable()
    report("done", 1.0)


def _loops(call: Callable, clock: Callable[[], float]) -> int:
    """How many calls make a sample of MIN_SAMPLE_SECONDS, found by doubling."""
    loops = 1
    while True:
        per_call = _sample(call, loops, clock)
        if per_call * loops >= MIN_SAMPLE_SECONDS or loops >= 1 << 16:
            return loops
        loops = min(1 << 16, max(2 * loops, math.ceil(MIN_SAMPLE_SECONDS / max(per_call, 1e-9))))


def _sample(call: Callable, loops: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(loops):
        call()
    return (clock() - start) / loops
