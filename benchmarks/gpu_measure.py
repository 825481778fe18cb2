"""How the GPU benchmark measures: under CUDA graphs, in turns, with errors against float64 first, within a time limit.

Every contender runs under a CUDA graph that goes through several sets of inputs, together larger than the L2 cache, so
that none is favoured by its launch overhead or finds its inputs in the cache. Contenders take turns, and ratios are of
one run.
"""

import contextlib
import copy
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu_cases import DTYPES, EAGER, FAST, Forms, GpuCase
from benchmarks.gpu_goals import COMPILED
from hrnet_fast.tolerances import MODEL, OPERATOR, relative_error

ROUNDS = 15
CACHE_BYTES = 100 << 20  # twice the L2 of an H100
MODES = {f"{COMPILED} default": "default", f"{COMPILED} max-autotune": "max-autotune-no-cudagraphs"}
# Seconds that compiling must be left with to be begun at all; a signal ends what takes longer than there is.
NEEDED = {f"{COMPILED} default": 30, f"{COMPILED} max-autotune": 90}


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
    def bounded(self) -> Iterator[None]:
        """Raises OutOfTime in what is still running at the end. Only in the main thread, where signals arrive."""

        def stop(number, frame):
            raise OutOfTime("the part's time is up")

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(self.left, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """Variables set for a while."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


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


def measure(case: GpuCase, device: str, clock: Clock) -> dict:
    """One case, all contenders: errors against float64, then seconds, in turns.

    A contender that cannot be prepared, is off, or for which no time is left has a ``failure`` and no ``seconds``.
    """
    torch.manual_seed(0)
    forms, dtype = case.forms(), DTYPES[case.dtype]
    first = case.inputs(device)
    exact = copy.deepcopy(forms.plain).to(dtype).to(device).double()
    tolerance = (OPERATOR if forms.operator else MODEL)[dtype]
    data = [first]
    record = {"name": case.name, "part": case.part, "useful_bytes": 0, "sets": 0, "contenders": {}}
    with torch.no_grad():
        reference = exact([x.double() for x in first])
        del exact
        record["useful_bytes"] = sum(x.numel() for x in (*first, *_list(reference))) * dtype.itemsize
        record["sets"] = sets = max(2, -(-CACHE_BYTES // record["useful_bytes"]))
        data += [case.inputs(device) for _ in range(sets - 1)]
        runs = {}
        for name, call, settings in _contenders(forms, dtype, device):
            entry = record["contenders"][name] = {"error": None, "seconds": [], "failure": None}
            if clock.left < NEEDED.get(name, 0):
                entry["failure"] = "not timed: the part's time is up"
                continue
            try:
                with environment(settings), clock.bounded():
                    entry["error"] = _error(call(first), reference)
                    if entry["error"] <= tolerance or not name.startswith(FAST):
                        runs[name] = replayed(lambda k, call=call: call(data[k]), sets, device)
                    else:
                        entry["failure"] = "its output is off, therefore not timed"
            except OutOfTime as error:
                entry["failure"] = f"not timed: {error}"
            except Exception as error:  # the others go on
                entry["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        for _ in range(2):
            for timed in runs.values():
                timed()
        for _ in range(ROUNDS):
            for name, timed in runs.items():
                record["contenders"][name]["seconds"].append(timed())
    return record


def _contenders(forms: Forms, dtype: torch.dtype, device: str) -> Iterator[tuple[str, Callable, dict]]:
    """What is quick to prepare comes first: time may run out."""
    plain, fast = (_ready(module, dtype, device) for module in (forms.plain, forms.fast))
    yield EAGER, plain, {}
    yield FAST, fast, {}
    if device == "cuda":
        for name, settings in forms.settings.items():
            yield name, fast, settings
        for name, mode in MODES.items():
            torch._dynamo.reset()
            yield name, torch.compile(plain, dynamic=False, mode=mode), {}


def _ready(module: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    return module.to(dtype).to(device).to(memory_format=torch.channels_last).eval()


def _list(value) -> list[Tensor]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _error(output, reference) -> float:
    return max(relative_error(a, b) for a, b in zip(_list(output), _list(reference), strict=True))


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
