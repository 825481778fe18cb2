"""Weights as the kernels read them: folded and packed once, shared by all input sizes, freed with the last plan."""

import itertools
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from hrnet_fast.network.integers import Factor, in_bytes
from hrnet_fast.network.sums import Weight
from hrnet_fast.nn.folds import rounded
from hrnet_fast.runtime.cpu.operations import DIRECT, PAIRS, WINOGRAD2, WINOGRAD4, Convolution, Exchange

_LARGEST, _ALIGNMENT = 4 << 20, 64  # bytes


class Slabs:
    """Cuts small pieces of memory from large ones; the memory of one is freed with the last of its pieces.

    A program names its tensors at every call: hundreds would take longer than some layers.
    """

    def __init__(self, first: int):
        self._slab, self._used, self._next = torch.empty(0, dtype=torch.uint8), 0, first

    def take(self, size: int) -> tuple[Tensor, int]:
        """A tensor of bytes, and where in it ``size`` of them are free."""
        if size > self._next // 4:
            return torch.empty(size, dtype=torch.uint8), 0
        if self._used + size > self._slab.numel():
            self._slab, self._used = torch.empty(self._next, dtype=torch.uint8), 0
            self._next = min(2 * self._next, _LARGEST)
        start = self._used
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return self._slab, start


class Packed:
    """Bytes that a kernel reads, a piece of ``slab`` from ``start`` on, and what fills them from the parameters.

    ``parts``: where in them several things begin; ``algorithm``: that a convolution's weight is packed for.
    """

    def __init__(
        self, slab: Tensor, start: int, size: int, fill: Callable[[Tensor], None], parts: tuple[int, ...] = (0,)
    ):
        self.slab, self.start, self.bytes, self.parts = slab, start, slab[start : start + size], parts
        self.algorithm = DIRECT
        self._fill = fill
        self.refill()

    def refill(self) -> None:
        """Takes the values that the parameters have at this moment."""
        with torch.inference_mode(False), torch.no_grad():
            self._fill(self.bytes)


class PackedWeights:
    """One ``Packed`` for each weight and form of it, as long as a plan holds it.

    Args:
        slab: bytes of the first piece of memory that small weights share; 0: each has its own.
    """

    def __init__(self, slab: int = 256 << 10):
        self._slabs = Slabs(slab)
        self._known: weakref.WeakValueDictionary[tuple, Packed] = weakref.WeakValueDictionary()
        self._outgrown: list[Packed] = []

    def convolution(self, op: Convolution) -> tuple[Packed, Packed, Packed | None]:
        """A convolution's weight, its bias and its border (None: zeros)."""
        c_in, c_out = sum(s.channels for s in op.sources), op.output.channels
        parts, normal = tuple(tuple(block) for block in op.weights), op.normalization
        algorithm = self._form(parts, op.algorithm)  # the operation itself must not be kept alive
        size = torch.ops.hrnet_fast.packed_convolution_size(algorithm, c_out, c_in, op.kernel)
        if normal is not None:  # of each of the sources, which are all the image
            mean, std = (torch.tensor(v * len(op.sources), dtype=torch.float64) for v in (normal.mean, normal.std))

        def whole() -> Tensor:
            return _joined([_joined([w.kernel() for w in block], 1) for block in parts], 0)

        def fill_weight(to: Tensor) -> None:
            weight = whole()
            weight = weight if normal is None else (weight / std.view(-1, 1, 1)).float()
            weight = rounded(weight, torch.bfloat16).float() if algorithm == DIRECT + PAIRS else weight.contiguous()
            torch.ops.hrnet_fast.pack_convolution(weight, algorithm, to.view(torch.float32))

        def fill_bias(to: Tensor) -> None:
            bias = torch.cat([_bias(block) for block in parts])
            if normal is not None:
                bias = bias - whole().double().sum((2, 3)) @ (mean / std)
            to.view(torch.float32).copy_(bias)

        def fill_border(to: Tensor) -> None:
            to.view(torch.float32).copy_(mean)

        weight = self._packed(("weight", parts, algorithm, normal), 4 * size, fill_weight)
        weight.algorithm = algorithm
        if algorithm % PAIRS == WINOGRAD4:
            smaller = self._known.pop(("weight", parts, algorithm - 1, None), None)
            self._outgrown += [] if smaller is None else [smaller]
        border = None if normal is None else self._packed(("border", normal, c_in), 4 * c_in, fill_border)
        return (
            weight,
            self._packed(("bias", parts, normal), 4 * c_out, fill_bias),
            border,
        )

    def tiles(self, weight: Weight) -> Packed:
        """A weight for the kernels on tiles."""

        def fill(to: Tensor) -> None:
            torch.ops.hrnet_fast.pack_tiles(weight.kernel().contiguous(), to)

        return self._packed(("tiles", weight), torch.ops.hrnet_fast.packed_tiles_size(*weight.shape, False), fill)

    def bytes(self, weights: tuple[Weight, ...], factors: tuple[Factor, ...]) -> Packed:
        """Weights whose products with bytes are added up: a bias, the scale of the sums, the weights of each source."""
        c_out = weights[0].shape[0]
        sizes = [4 * c_out, 4 * c_out, *(torch.ops.hrnet_fast.packed_tiles_size(*w.shape, True) for w in weights)]
        ends = list(itertools.accumulate((-(-s // _ALIGNMENT) * _ALIGNMENT for s in sizes), initial=0))

        def fill(to: Tensor) -> None:
            bias, scale, integers = in_bytes([w.kernel() for w in weights], _bias(weights), factors)
            for at, part in zip(ends, (bias, scale)):
                to[at : at + 4 * c_out].view(torch.float32).copy_(part)
            for at, size, part in zip(ends[2:], sizes[2:], integers):
                torch.ops.hrnet_fast.pack_tiles(part.contiguous(), to[at : at + size])

        # the means are numbers of the calibration, and the same for all shapes
        key = ("bytes", weights, tuple((f.rounding, id(f.mean)) for f in factors))
        return self._packed(key, ends[-1], fill, tuple(ends[:-1]))

    def numbers(self, values: tuple[float, ...]) -> Packed:
        """Numbers that are no parameters, in float32."""
        return self._packed(
            ("numbers", values), 4 * len(values), lambda to: to.view(torch.float32).copy_(torch.tensor(values))
        )

    def has(self, weights: tuple[tuple[Weight, ...], ...], algorithm: int) -> bool:
        """Whether a convolution's weights are packed for an algorithm already, or so that it can read them."""
        return ("weight", weights, self._form(weights, algorithm), None) in self._known

    def outgrown(self) -> list[Packed]:
        """Those that a larger form has replaced since the last call: programs that hold them encode themselves anew."""
        found, self._outgrown = self._outgrown, []
        return found

    def _form(self, weights: tuple[tuple[Weight, ...], ...], algorithm: int) -> int:
        """The algorithm for which weights are packed: the points of tiles of 2x2 are among those of 4x4."""
        larger = algorithm + 1
        in_larger = algorithm % PAIRS == WINOGRAD2 and ("weight", weights, larger, None) in self._known
        return larger if in_larger else algorithm

    def matrix(self, weight: Weight, dtype: torch.dtype) -> Packed:
        """A 1x1 weight [c_out, c_in] in another dtype."""
        c_out, c_in, _ = weight.shape

        def fill(to: Tensor) -> None:
            to.view(dtype).copy_(weight.kernel().flatten())

        return self._packed(("matrix", weight, dtype), c_out * c_in * dtype.itemsize, fill)

    def vector(self, weights: Iterable[Weight], dtype: torch.dtype) -> Packed:
        """The sum of some biases in another dtype."""
        weights = tuple(weights)

        def fill(to: Tensor) -> None:
            to.view(dtype).copy_(_bias(weights))

        return self._packed(("vector", weights, dtype), weights[0].shape[0] * dtype.itemsize, fill)

    def exchange_bias(self, op: Exchange, dtype: torch.dtype) -> Packed | None:
        """An exchange's bias; None where it has none."""
        weights = [weight for _, weight in op.inputs if weight is not None]
        return self.vector(weights, dtype) if weights else None

    def refill(self) -> None:
        """Computes everything again from the parameters."""
        for packed in list(self._known.values()):
            packed.refill()

    def total_bytes(self) -> int:
        """Of all that is alive."""
        return sum(packed.bytes.numel() for packed in list(self._known.values()))

    def _packed(self, key: tuple, size: int, fill: Callable[[Tensor], None], parts: tuple[int, ...] = (0,)) -> Packed:
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Packed(*self._slabs.take(size), size, fill, parts)
        return found


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _bias(weights: Iterable[Weight]) -> Tensor:
    """The sum of biases [c_out], in float32; those that are absent count as zeros."""
    total = None
    for weight in weights:
        bias = weight.shift()
        bias = torch.zeros(weight.shape[0]) if bias is None else bias
        total = bias if total is None else total + bias
    return total
