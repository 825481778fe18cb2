"""Contenders over one case: each must agree with the float64 reference, then they take turns and are timed.

Contenders run in turn, A B C A B C ..., so that a machine that slows down for a while slows all of them down, and
ratios are taken between runs of the same round. A contender whose output is off is not timed (but see Contender.slack).
"""

import functools
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.bench.memory import keep_freed_memory
from hrnet_fast.bench.record import Entry, finish
from hrnet_fast.tolerances import relative_error

MIN_SAMPLE_SECONDS = 1e-3  # a shorter sample measures the clock
ROUNDS = (5, 300)  # at least, at most
Output = Tensor | Sequence[Tensor]
Progress = Callable[[str, float], None]  # what is going on, and the share of the work that is done, 0 to 1


@functools.cache
def _torch_timer() -> Callable[[], float]:
    # on CUDA builds its import warns where there is no GPU: that is for those who measure
    from torch.utils.benchmark import timer

    return timer


def synchronized_clock() -> float:
    """Seconds, after all work on the accelerator has ended: torch's own benchmark timer."""
    return _torch_timer()()


def silent(doing: str, done: float) -> None:
    """Progress that nobody sees."""


@dataclass(frozen=True)
class Contender:
    """One way to compute a case: ``call()`` returns a tensor, or a list of tensors.

    ``slack``: it is timed up to this many times the tolerance. Above the tolerance it does not agree all the same.
    ``tolerance``, ``dtype``: its own, where they are not the case's.
    """

    name: str
    call: Callable[[], Output]
    slack: float = 1.0
    tolerance: float | None = None
    dtype: str | None = None


def worst_error(output: Output, reference: Output) -> float:
    """The largest relative error among the tensors of an output; infinite where their number differs."""
    outputs, references = tensors(output), tensors(reference)
    if len(outputs) != len(references):
        return math.inf
    return max(relative_error(out, ref) for out, ref in zip(outputs, references, strict=True))


def tensors(value: Output) -> list[Tensor]:
    """An output as a list."""
    return [value] if isinstance(value, Tensor) else list(value)


def compare(
    contenders: Sequence[Contender],
    reference: Output,
    tolerance: float,
    *,
    budget: float = 10.0,
    progress: Progress = silent,
    observe: Callable[[str, Output], None] | None = None,
    clock: Callable[[], float] = synchronized_clock,
) -> list[Entry]:
    """Checks every contender, then times those that agree (or are within their slack), in turns.

    Args:
        contenders: in the order in which they take turns.
        reference: what they should compute, in float64.
        tolerance: the largest relative error with which a contender agrees.
        budget: seconds to time for; at least ROUNDS[0] and at most ROUNDS[1] rounds are made.
        progress: called with what is going on and the share of the work that is done, 0 to 1.
        observe: called with the name and the output of every contender that agrees.
        clock: seconds, after all work on the accelerator has ended.

    Returns:
        One entry per contender, in the same order.
    """
    keep_freed_memory()
    with torch.inference_mode():
        entries, timers = [], []
        for contender in contenders:
            progress(f"checking {contender.name}", 0.0)
            entries.append(check(contender, reference, tolerance, observe))
        begin = clock()
        for contender, entry in zip(contenders, entries, strict=True):
            if may_be_timed(contender, entry, tolerance):
                progress(f"warming up {entry.name}", 0.0)
                timers.append((looped(contender.call, entry, clock), entry))
        take_turns(timers, budget, progress, clock, begin=begin)
    return finish(entries)


def check(contender: Contender, reference: Output, tolerance: float, observe: Callable | None = None) -> Entry:
    """Runs a contender once, and compares what it returns. One that cannot run must not end the others."""
    entry = Entry(contender.name, dtype=contender.dtype, tolerance=contender.tolerance)
    output = attempt(entry, contender.call)
    if entry.failure is None:
        error = worst_error(output, reference)
        entry.error = error if math.isfinite(error) else None
        entry.agrees = error <= (contender.tolerance or tolerance)
        if observe is not None and entry.agrees:
            observe(contender.name, output)
    return entry


def attempt(entry: Entry, call: Callable[[], object]):
    """What a call returns; where it raises, None, and the entry's failure is the first line of the message."""
    try:
        return call()
    except Exception as error:  # whatever an engine raises, or a compiler that is not there
        lines = str(error).splitlines()
        entry.failure = f"{type(error).__name__}: {lines[0] if lines else ''}"
        return None


def may_be_timed(contender: Contender, entry: Entry, tolerance: float) -> bool:
    """Whether a checked contender is within its slack."""
    return entry.error is not None and entry.error <= contender.slack * (contender.tolerance or tolerance)


def take_turns(
    timers: Sequence[tuple[Callable[[], float], Entry]],
    budget: float,
    progress: Progress = silent,
    clock: Callable[[], float] = synchronized_clock,
    rounds: tuple[int, int] = ROUNDS,
    begin: float | None = None,
) -> None:
    """Calls timers in turns; what they return are the samples of their entries.

    Args:
        timers: each returns the seconds of one call.
        budget: seconds, from ``begin`` (of the clock; by default now).
        progress: as for ``compare``.
        clock: as for ``compare``.
        rounds: at least, at most.
        begin: when the budget began to be spent.
    """
    if not timers:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        first = clock()
        begin = first if begin is None else begin
        for done in range(rounds[1]):
            now = clock()
            # one more round takes about as long as those before did
            if done >= rounds[0] and now - begin + (now - first) / done > budget:
                break
            progress(f"round {done + 1}", min(1.0, max((now - begin) / max(budget, 1e-9), done / rounds[1])))
            for timer, entry in timers:
                entry.samples.append(timer())
    finally:
        if collecting:
            gc.enable()
    progress("done", 1.0)


def looped(call: Callable, entry: Entry, clock: Callable[[], float] = synchronized_clock) -> Callable[[], float]:
    """A timer of a call, warm, in as many loops as make MIN_SAMPLE_SECONDS; found by doubling."""

    def sample(loops: int) -> float:
        start = clock()
        for _ in range(loops):
            call()
        return (clock() - start) / loops

    call()
    entry.loops, most = 1, 1 << 16
    while True:
        per_call = sample(entry.loops)
        if per_call * entry.loops >= MIN_SAMPLE_SECONDS or entry.loops >= most:
            return lambda: sample(entry.loops)
        entry.loops = min(most, max(2 * entry.loops, math.ceil(MIN_SAMPLE_SECONDS / max(per_call, 1e-9))))
