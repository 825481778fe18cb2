"""How a GPU is measured: under CUDA graphs, in turns, with errors against float64 first, within a time limit.

Every contender runs under a CUDA graph that goes through several sets of inputs, together larger than the L2 cache, so
that none is favoured by its launch overhead or finds its inputs in the cache. Contenders take turns, and ratios are of
one run.
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor

from benchmarks import contenders
from hrnet_fast.bench.contenders import FAST, FOLDED, FirstCallPrepares
from hrnet_fast.bench.harness import Contender, attempt, check, may_be_timed, take_turns, tensors
from hrnet_fast.bench.measure import Case
from hrnet_fast.bench.plain_forms import cast
from hrnet_fast.bench.record import Record, finish

ROUNDS = 15
CACHE_BYTES = 100 << 20  # twice the L2 of an H100
ON_CPU = (FOLDED, FAST)  # without a GPU the others cannot run, or take long


class OutOfTime(Exception):
    """The part has used up its time."""


class Clock:
    """The time that a part has."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    @contextlib.contextmanager
    def bounded(self, needs: float = 0.0) -> Iterator[None]:
        """Raises OutOfTime: at once if less time is left than is needed, else in what is still running at the end.

        Only in the main thread, where signals arrive.
        """

        def stop(number=None, frame=None):
            raise OutOfTime("the part's time is up")

        if self.left < needs:
            stop()
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(self.left, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def cut_short(record: Record) -> int:
    """For how many contenders of a case time ran out."""
    return sum((entry.failure or "").startswith(OutOfTime.__name__) for entry in record.entries)


def replayed(call: Callable[[int], object], sets: int, device: str) -> Callable[[], float]:
    """A function that runs ``call(0) ... call(sets - 1)`` once and returns the seconds of one of them."""
    if device == "cpu":

        def timed() -> float:
            start = time.perf_counter()
            for k in range(sets):
                call(k)
            return (time.perf_counter() - start) / sets

        return timed
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(0)
    torch.cuda.current_stream().wait_stream(side)
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for k in range(sets):
            kept.append(call(k))  # outputs of different sets must not share memory
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / sets

    timed.kept = kept
    return timed


def measure(case: Case, device: str, clock: Clock) -> Record:
    """One case, all contenders: errors against float64, then seconds, in turns.

    A contender that cannot be prepared, or for which no time is left, has a ``failure``; one of ours that is off is not
    timed.
    """
    problem = case.make(device)
    inputs = problem.at(layout=torch.channels_last)
    entries, timers = [], []
    with torch.no_grad():
        reference = problem.reference()
        useful = sum(x.numel() for x in (*_flat(inputs), *tensors(reference))) * problem.dtype.itemsize
        sets = max(2, -(-CACHE_BYTES // useful))
        generator = torch.Generator(device).manual_seed(0)
        data = [inputs, *(_redrawn(inputs, generator) for _ in range(sets - 1))]
        for name in case.contenders:
            if device == "cpu" and name not in ON_CPU:
                continue
            form = contenders.TABLE[name]
            if form.needs:
                torch._dynamo.reset()
            prepared = FirstCallPrepares(form.prepare, problem)

            def bounded(call: Callable, form=form):
                with mock.patch.dict(os.environ, form.settings), clock.bounded(form.needs):
                    return call()

            contender = Contender(name, lambda prepared=prepared: bounded(prepared), 1.0 if form.ours else float("inf"))
            entries.append(check(contender, reference, case.tolerance))
            if may_be_timed(contender, entries[-1], case.tolerance):
                run = functools.partial(_on_set, prepared.call.module, data)
                ready = functools.partial(replayed, run, sets, device)
                timer = attempt(entries[-1], functools.partial(bounded, ready))
                timers += [] if timer is None else [(timer, entries[-1])]
        for _ in range(2):
            for timer, _ in timers:
                timer()
        take_turns(timers, 0.0, rounds=(ROUNDS, ROUNDS))
    return case.record(finish(entries), useful_bytes=useful)


def _on_set(module: Callable, data: list[tuple], k: int):
    return module(*data[k])


def _flat(value) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [x for item in value for x in _flat(item)]


def _redrawn(value, generator: torch.Generator):
    """Other random numbers in the same form."""
    if not isinstance(value, Tensor):
        return type(value)(_redrawn(item, generator) for item in value)
    made = torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)
    return cast(made, layout=torch.channels_last)


def rates(device: str) -> dict:
    """Bytes a second of a copy (read and written), and floating-point operations a second of bfloat16 products."""
    if device == "cpu":
        return {"copy_bytes_per_second": None, "bfloat16_flops_per_second": None}
    a = torch.randn(256 << 20, device=device, dtype=torch.float16)
    b = torch.empty_like(a)
    copied = replayed(lambda k: b.copy_(a), 2, device)
    x, y = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = replayed(lambda k: x @ y, 2, device)
    best = {f: min(f() for _ in range(10)) for f in (copied, product)}
    return {"copy_bytes_per_second": 2 * a.numel() * 2 / best[copied],
            "bfloat16_flops_per_second": 2 * 8192**3 / best[product]}  # fmt: skip


def clocks() -> str | None:
    """Clocks, temperature and power as nvidia-smi tells them, or None."""
    if shutil.which("nvidia-smi") is None:
        return None
    fields = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,power.limit"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or None
