"""What each convolution of a network loses in int8, alone."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from hrnet_fast.network.integers import Factor, Integers, multiplied
from hrnet_fast.network.names import names
from hrnet_fast.network.sums import Conv, Up, Weight
from hrnet_fast.runtime.arguments import Arguments
from hrnet_fast.runtime.calibration import Calibration
from hrnet_fast.runtime.watch import Recording, watch


class Lost(NamedTuple):
    """Of one convolution."""

    name: str  # what ``keep`` calls it
    shape: tuple[int, int, int]  # output channels, input channels, kernel
    error: float  # ``||in bytes - exact|| / ||exact||`` of its results, without the bias


class Sensitivity(list[Lost]):
    """Convolutions, the one that loses most first; as text a table."""

    def __str__(self) -> str:
        lines = [("error", "weight", "convolution")]
        lines += [(f"{row.error:.1e}", str(list(row.shape)), row.name) for row in self]
        width = max(len(line[1]) for line in lines)
        return "\n".join(f"{error:>8}  {shape:<{width}}  {name}" for error, shape, name in lines)


def sensitivity(
    model: nn.Module,
    record_steps: Callable[[Arguments], Recording],
    images: Tensor | Iterable,
    calibration: Calibration,
    kwargs: dict[str, Any],
) -> Sensitivity:
    """Computes every convolution that multiplies bytes twice, on what it gets in float32: exactly, and in bytes.

    Convolutions whose results are added up share one scale in a program; here each has its own.

    Args:
        model, record_steps, images, kwargs: as for ``calibrate``.
        calibration: of the model.

    Raises:
        TypeError, ValueError: as for ``calibrate``.
    """
    name_of: dict[Weight, str] = {}
    squares: dict[str, list[float]] = {}  # of the errors, and of the results
    shapes: dict[str, tuple[int, int, int]] = {}

    def see(terms: list[Conv | Up], image: Tensor, which: str) -> None:
        for term in terms:
            if term.weight not in name_of:
                continue
            name, kernel = name_of[term.weight], term.weight.kernel()
            factor = Factor.of(*calibration.of(name, kernel.shape[1]))
            padding, stride = kernel.shape[2] // 2, getattr(term, "stride", 1)
            exact = F.conv2d(image, kernel, None, stride, padding)
            made = Integers.of(kernel, None, factor).convolve(image, stride)
            found = squares.setdefault(name, [0.0, 0.0])
            found[0] += float((made - exact).double().square().sum())
            found[1] += float(exact.double().square().sum())
            shapes[name] = term.weight.shape

    def recorded(recording: Recording) -> None:
        of_all = names(model, recording.steps)
        name_of.update((weight, of_all[weight]) for weight in multiplied(recording.graph, recording.steps))

    count, _ = watch(model, record_steps, images, kwargs, see, recorded)
    if not count:
        raise ValueError("sensitivity: there are no images at all")
    lost = [Lost(n, shapes[n], (wrong / exact) ** 0.5 if exact else 0.0) for n, (wrong, exact) in squares.items()]
    return Sensitivity(sorted(lost, key=lambda row: -row.error))
