"""Convolutions in 8-bit integers: how images and weights are rounded."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.network.nodes import Graph
from hrnet_fast.network.sums import Step, Sum, Weight, makers


class Rounding(NamedTuple):
    """An image in bytes: byte = number / step + zero."""

    step: float
    zero: int  # 0, or 128 where there are negative numbers


class Factor(NamedTuple):
    """An image whose bytes are multiplied."""

    rounding: Rounding
    mean: Tensor  # of each channel [c], in float32

    @classmethod
    def of(cls, low: float, high: float, mean: Tensor) -> "Factor":
        """For an image whose numbers are cut off at ``high``, and at ``low``: 0 or ``-high``."""
        return cls(Rounding(high / 127, 128) if low < 0 else Rounding(high / 255, 0), mean)


def in_bytes(kernels: list[Tensor], bias: Tensor, factors: tuple[Factor, ...]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Convolutions whose results are added up, as sums of products of bytes: scale * sum(integers * bytes) + bias.

    Each output channel has one scale, for all sources: the sum is one. What rounding the weights does to the mean of a
    channel is taken out of the bias.

    Args:
        kernels: of each source, [c_out, c_in, k, k] float32.
        bias: [c_out].
        factors: what they multiply.

    Returns:
        The bias and the scale [c_out] in float32, and the integers of each kernel in int8, from -127 to 127.
    """
    steps = [k.double() * f.rounding.step for k, f in zip(kernels, factors, strict=True)]
    peak = torch.stack([s.abs().amax((1, 2, 3)) for s in steps]).amax(0)
    scale = torch.where(peak > 0, peak / 127, 1.0).float().double()
    bias, integers = bias.double(), []
    for step, factor in zip(steps, factors):
        integer = (step / scale.view(-1, 1, 1, 1)).round().clamp(-127, 127)
        bias = bias - factor.rounding.zero * scale * integer.sum((1, 2, 3))
        lost = (integer * scale.view(-1, 1, 1, 1) - step).sum((2, 3))
        bias = bias - lost @ (factor.mean.to(lost) / factor.rounding.step)
        integers.append(integer.to(torch.int8))
    return bias.float(), scale.float(), integers


def rounded(image: Tensor, rounding: Rounding) -> Tensor:
    """The bytes of an image, as floating numbers from 0 to 255."""
    return (image / rounding.step + rounding.zero).round().clamp(0, 255)


class Integers(NamedTuple):
    """One convolution in 8-bit integers, its bias as for exact images: convolution(image, kernel()) + bias."""

    weight: Tensor  # [c_out, c_in, k, k] int8
    scale: Tensor  # [c_out] float32, of the weight
    bias: Tensor  # [c_out] float32
    rounding: Rounding  # of the image

    @classmethod
    def of(cls, kernel: Tensor, bias: Tensor | None, factor: Factor) -> "Integers":
        """Of a weight [c_out, c_in, k, k] and a bias [c_out] in float32."""
        bias = kernel.new_zeros(len(kernel)) if bias is None else bias
        without_zero = factor._replace(rounding=factor.rounding._replace(zero=0))
        bias, scale, (weight,) = in_bytes([kernel], bias, (without_zero,))
        return cls(weight, scale / factor.rounding.step, bias, factor.rounding)

    def kernel(self) -> Tensor:
        """The weight in float32."""
        return self.weight.float() * self.scale.view(-1, 1, 1, 1)

    def convolve(self, image: Tensor, stride: int) -> Tensor:
        """What it makes of an image in float32, rounded, padded so that only the stride changes the size."""
        x = (rounded(image, self.rounding) - self.rounding.zero) * self.rounding.step
        return F.conv2d(x, self.kernel(), self.bias, stride, self.weight.shape[2] // 2)


def multiplied(graph: Graph, steps: list[Step]) -> list[Weight]:
    """The weights of convolutions that may multiply integers.

    Others stay wide, since they are cheap and lose most: what multiplies the network's own images, and the last 1x1
    convolution in front of a result (interpolated or not), which is a classifier.
    """
    sums, last = makers(steps), set()
    for value in graph.outputs():
        step = sums.get(value)
        while step is not None and not step.relu and not step.convs and len(step.inputs()) == 1 and len(step.ups) == 1:
            last.add(step.ups[0].weight)
            step = sums.get(step.ups[0].value)
        if step is not None and not step.relu:
            last.update(c.weight for c in step.convs if c.weight.shape[2] == 1)
    terms = [t for s in steps if isinstance(s, Sum) for t in (*s.convs, *s.ups)]
    return [t.weight for t in terms if t.weight is not None and t.weight not in last and t.value not in graph.inputs]
