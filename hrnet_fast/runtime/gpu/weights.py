"""The weights of grouped launches: all in one tensor, biases in another, shared by all shapes."""

from collections.abc import Callable

import torch
from torch import Tensor

from hrnet_fast.network.sums import Weight

PAD = 8  # that of hrnet_fast.kernels.grouped_level


def padded(channels: int) -> int:
    """Channels that an image takes in the arena."""
    return -(-channels // PAD) * PAD


class GroupedWeights:
    """Packs weights when they are first asked for.

    Args:
        dtype: of images and weights.
        device: where they go.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self._dtype, self._device = dtype, device
        self._known: dict[tuple, tuple[int, int]] = {}  # (tensor, where it begins)
        self._makers: tuple[list, list] = ([], [])  # (begin, end, what makes it) of weights, of biases
        self._tensors = [torch.empty(0, dtype=dtype, device=device), torch.empty(0, device=device)]
        self._matrices: dict[tuple, tuple[Tensor, Callable[[], Tensor]]] = {}

    def weight(self, weight: Weight) -> int:
        """Where a convolution's weight begins, [k * k, c_in, c_out], both padded with zeros."""
        return self._place(
            ("weight", weight),
            0,
            padded(weight.shape[0]) * padded(weight.shape[1]) * weight.shape[2] ** 2,
            lambda: _taps(weight),
        )

    def bias(self, weights: tuple[Weight, ...]) -> int:
        """Where the sum of some biases begins, [c_out] padded with zeros."""
        return self._place(("bias", weights), 1, padded(weights[0].shape[0]), lambda: _bias(weights))

    def matrix(self, weight: Weight, rows: int, columns: int) -> Tensor:
        """A 1x1 weight as a tensor of its own [rows, columns], padded with zeros."""
        return self._matrix(
            ("matrix", weight, rows, columns), lambda: _padded(weight.kernel()[:, :, 0, 0], rows, columns)
        )

    def vector(self, weights: tuple[Weight, ...], size: int) -> Tensor:
        """The sum of some biases as a tensor of its own [size], padded with zeros."""
        return self._matrix(("vector", weights, size), lambda: _bias(weights)[:size])

    @property
    def weights(self) -> Tensor:
        """All weights."""
        return self._filled(0)

    @property
    def biases(self) -> Tensor:
        """All biases, in float32."""
        return self._filled(1)

    def refill(self) -> None:
        """Takes the values that the parameters have now; nothing moves."""
        for which in (0, 1):
            self._write(self._filled(which), which, 0)
        for tensor, make in self._matrices.values():
            tensor.copy_(make())

    def total_bytes(self) -> int:
        """Of all of them."""
        tensors = [*self._tensors, *(tensor for tensor, _ in self._matrices.values())]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _place(self, key: tuple, which: int, size: int, make: Callable[[], Tensor]) -> int:
        if key not in self._known:
            makers = self._makers[which]
            begin = makers[-1][1] if makers else 0
            makers.append((begin, begin + size, make))
            self._known[key] = which, begin
        return self._known[key][1]

    def _filled(self, which: int) -> Tensor:
        makers, old = self._makers[which], self._tensors[which]
        if makers and old.numel() < makers[-1][1]:
            self._tensors[which] = old.new_empty(makers[-1][1])
            self._tensors[which][: old.numel()] = old
            self._write(self._tensors[which], which, old.numel())
        return self._tensors[which]

    def _write(self, tensor: Tensor, which: int, first: int) -> None:
        for begin, end, make in self._makers[which]:
            if begin >= first:
                tensor[begin:end] = make().flatten()

    def _matrix(self, key: tuple, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._matrices:
            dtype = self._dtype if key[0] == "matrix" else torch.float32
            self._matrices[key] = make().to(self._device, dtype).contiguous(), make
        return self._matrices[key][0]


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.pad(matrix, (0, columns - matrix.shape[1], 0, rows - matrix.shape[0]))


def _taps(weight: Weight) -> Tensor:
    c_out, c_in, k = weight.shape
    taps = weight.kernel().permute(2, 3, 1, 0).reshape(k * k, c_in, c_out)
    return torch.nn.functional.pad(taps, (0, padded(c_out) - c_out, 0, padded(c_in) - c_in))


def _bias(weights: tuple[Weight, ...]) -> Tensor:
    made = torch.zeros(padded(weights[0].shape[0]))
    for weight in weights:
        shift = weight.shift()
        if shift is not None:
            made = made.to(shift.device)
            made[: shift.numel()] += shift
    return made
