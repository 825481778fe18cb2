"""The weights of planned networks as the kernels read them, folded and packed once and shared by all input sizes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.engine.graph import Weight
from hrnet_fast.engine.lowering import DIRECT, PAIRS, Convolution, Exchange
from hrnet_fast.folding import rounded

ALIGNMENT = 64


@dataclass(frozen=True)
class Entry:
    """Where a constant lies, and what fills it."""

    blob: int
    offset: int
    bytes: int
    fill: Callable[[Tensor], None]  # gets the bytes that it is to fill


class Constants:
    """Blobs of bytes: each plan adds one with what the earlier ones do not have."""

    def __init__(self):
        self.blobs: list[Tensor] = []
        self._entries: dict[tuple, Entry] = {}
        self._new: dict[tuple, tuple[int, Callable]] = {}

    def convolution(self, op: Convolution) -> tuple[tuple, tuple, tuple | None]:
        """The keys of a convolution's packed weight, of its bias and of its border (None: zeros)."""
        c_in, c_out = sum(s.channels for s in op.sources), op.output.channels
        parts = tuple(tuple(block) for block in op.weights)
        size = torch.ops.hrnet_fast.packed_convolution_size(op.algorithm, c_out, c_in, op.kernel)

        normal = op.normalization
        if normal is not None:  # of each of the sources, which are all the image
            mean, std = (torch.tensor(v * len(op.sources), dtype=torch.float64) for v in (normal.mean, normal.std))

        def whole() -> Tensor:
            return torch.cat([torch.cat([w.kernel() for w in block], 1) for block in parts])

        def fill_weight(to: Tensor) -> None:
            weight = whole()
            weight = weight if normal is None else (weight / std.view(-1, 1, 1)).float()
            weight = rounded(weight, torch.bfloat16).float() if op.algorithm == DIRECT + PAIRS else weight.contiguous()
            torch.ops.hrnet_fast.pack_convolution(weight, op.algorithm, to.view(torch.float32))

        def fill_bias(to: Tensor) -> None:
            bias = torch.cat([_bias(block) for block in parts])
            if normal is not None:
                bias = bias - whole().double().sum((2, 3)) @ (mean / std)
            to.view(torch.float32).copy_(bias)

        border = (
            None
            if normal is None
            else self._add(("border", normal, c_in), 4 * c_in, lambda to: to.view(torch.float32).copy_(mean))
        )
        return (self._add(("weight", parts, op.algorithm, normal), 4 * size, fill_weight),
                self._add(("bias", parts, normal), 4 * c_out, fill_bias), border)  # fmt: skip

    def matrix(self, weight: Weight, dtype: torch.dtype) -> tuple:
        """The key of a 1x1 weight [c_out, c_in] in another dtype."""
        c_out, c_in, _ = weight.shape

        def fill(to: Tensor) -> None:
            to.view(dtype).copy_(weight.kernel().flatten())

        return self._add(("matrix", weight, dtype), c_out * c_in * dtype.itemsize, fill)

    def vector(self, weights: Iterable[Weight], dtype: torch.dtype) -> tuple:
        """The key of the sum of some biases in another dtype."""
        weights = tuple(weights)

        def fill(to: Tensor) -> None:
            to.view(dtype).copy_(_bias(weights))

        return self._add(("vector", weights, dtype), weights[0].shape[0] * dtype.itemsize, fill)

    def exchange_bias(self, op: Exchange, dtype: torch.dtype) -> tuple | None:
        """The key of an exchange's bias; None where it has none."""
        weights = [weight for _, weight in op.inputs if weight is not None]
        return self.vector(weights, dtype) if weights else None

    def commit(self) -> None:
        """Fills a new blob with what was added since the last one."""
        total = 0
        places = []
        for key, (size, fill) in self._new.items():
            places.append((key, Entry(len(self.blobs), total, size, fill)))
            total += -(-size // ALIGNMENT) * ALIGNMENT
        self._new = {}
        if total:
            self.blobs.append(torch.empty(total, dtype=torch.uint8))
            for key, entry in places:
                self._fill(entry)
                self._entries[key] = entry

    def refill(self) -> None:
        """Computes everything again from the parameters of now."""
        for entry in self._entries.values():
            self._fill(entry)

    def place(self, key: tuple) -> Entry:
        """Where a constant lies, after ``commit``."""
        return self._entries[key]

    def _add(self, key: tuple, size: int, fill: Callable) -> tuple:
        if key not in self._entries:
            self._new.setdefault(key, (size, fill))
        return key

    def _fill(self, entry: Entry) -> None:
        with torch.inference_mode(False), torch.no_grad():
            entry.fill(self.blobs[entry.blob][entry.offset : entry.offset + entry.bytes])


def _bias(weights: Iterable[Weight]) -> Tensor:
    """The sum of biases [c_out], in float32; those that are absent count as zeros."""
    total = None
    for weight in weights:
        bias = weight.shift()
        bias = torch.zeros(weight.shape[0]) if bias is None else bias
        total = bias if total is None else total + bias
    return total
