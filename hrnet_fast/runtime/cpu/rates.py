"""Which form of a network in half precision is fastest on this machine: measured once, and kept in a file.

The instructions that a CPU has do not say it: products of pairs of bfloat16 are twice as fast as float32 on one kind,
and slower on another; converting 16 bits to 32 costs much with AVX2 and nothing with AVX-512.
"""

import functools
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hrnet_fast.files import AlreadyThere, cache_folder, whole_file
from hrnet_fast.network.nodes import Constants, Graph, Value
from hrnet_fast.network.sums import Conv, Step, Sum, Up, Weight

FILE = "cpu_rates.json"
_BRANCHES = ((32, 64), (64, 32), (128, 16))  # channels and sides, of an HRNet-W32 for 256x256
_BLOCKS, _ROUNDS = 4, 6
_MARGIN = 1.1  # forms that cost so much more than the fastest are as good: measurements vary

Run = Callable[[list[Tensor]], object]
Make = Callable[[Graph, list[Step]], Run]


class Rates:
    """What forms of a network take on this machine, in milliseconds; measured where the file does not have it.

    Attributes:
        trouble: why the file could not be read or written; None where it could.
    """

    def __init__(self, file: Path):
        self._file, self._known = file, {}
        self.trouble: str | None = None

    def of(self, what: str, forms: Mapping[str, Make]) -> dict[str, float]:
        """Milliseconds of each form of a small network.

        Args:
            what: tells measurements apart; the processor and the number of threads are added.
            forms: what makes each of them ready to run.
        """
        key = f"{what}; {cpu_model()}; {torch.get_num_threads()} threads"
        if key not in self._known:
            kept = self._read()
            found = kept.get(key)
            if not _makes_sense(found, forms):
                found = _measure(forms)
                self._write({**kept, key: found})
            self._known[key] = found
        return self._known[key]

    def _read(self) -> dict:
        try:
            kept = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.trouble = f"{self._file} cannot be read: {error}"
            return {}
        if not isinstance(kept, dict):
            self.trouble = f"{self._file} holds something else"
            return {}
        return kept

    def _write(self, kept: dict) -> None:
        try:
            with whole_file(self._file, overwrite=True, durable=False) as part:
                part.write_text(json.dumps(kept, indent=1))
        except (OSError, AlreadyThere) as error:
            self.trouble = f"{self._file} cannot be written: {error}"


@functools.cache
def of_this_machine() -> Rates:
    """Those of the cache folder (``files.cache_folder``)."""
    return Rates(cache_folder() / FILE)


def best(milliseconds: Mapping[str, float]) -> str:
    """The first form that is as fast as the fastest."""
    least = min(milliseconds.values())
    return next(form for form, ms in milliseconds.items() if ms <= _MARGIN * least)


@functools.cache
def cpu_model() -> str:
    """The CPU's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _makes_sense(found: object, forms: Mapping[str, Make]) -> bool:
    return (
        isinstance(found, dict)
        and list(found) == list(forms)
        and all(type(ms) is float and 0 < ms < float("inf") for ms in found.values())
    )


def _measure(forms: Mapping[str, Make]) -> dict[str, float]:
    """The shortest of some runs, the forms in turn: others use the machine, too."""
    graph, steps = _small_network()
    images = [torch.rand(value.shape) for value in graph.inputs]
    runs = {form: make(graph, steps) for form, make in forms.items()}
    least = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run(images)
    for _ in range(_ROUNDS):
        for form, run in runs.items():
            start = time.perf_counter()
            run(images)
            least[form] = min(least[form], 1e3 * (time.perf_counter() - start))
    return least


def _small_network() -> tuple[Graph, list[Step]]:
    """Residual blocks on some resolutions, and their exchange."""
    constants, generator = Constants(), torch.Generator().manual_seed(0)

    def weight(c_out: int, c_in: int, kernel: int) -> Weight:
        scale = (c_in * kernel * kernel) ** -0.5
        value = torch.randn((c_out, c_in, kernel, kernel), generator=generator) * scale
        return Weight(constants.of(value), constants.of(torch.zeros(c_out)))

    inputs, steps, ends = [], [], []
    for c, side in _BRANCHES:
        image = Value((1, c, side, side), torch.float32)
        inputs.append(image)
        for _ in range(_BLOCKS):
            inner, outer = Value(image.shape, image.dtype), Value(image.shape, image.dtype)
            steps.append(Sum(inner, convs=[Conv(image, weight(c, c, 3), 1)], relu=True))
            steps.append(Sum(outer, [image], [Conv(inner, weight(c, c, 3), 1)], relu=True))
            image = outer
        ends.append(image)
    fine, *coarse = ends
    ups = [Up(image, weight(fine.shape[1], image.shape[1], 1), "bilinear", False) for image in coarse]
    result = Value(fine.shape, fine.dtype)
    steps.append(Sum(result, [fine], ups=ups, relu=True))
    return Graph(inputs, [], [result], list, [], False), steps
