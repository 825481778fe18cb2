"""A recorded network in the terms of its programs: sums of convolutions and upsampled images, and what is neither.

Everything that HRNet does between its resolutions is one formula (the README's "one idea"), and a convolution with its
BatchNorm, residual and ReLU is the same without the upsampling: ``Sum``. Found in the graph of operators, it does not
matter who wrote the modules, or how. ``passes`` make sums of operators, and larger sums of sums.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hrnet_fast.network.nodes import Constant, Node, Value
from hrnet_fast.nn.folds import fold

MAX_UPS = 7  # of a sum: the operator takes eight inputs, one of them what is not upsampled


@dataclass(frozen=True)
class Weight:
    """A convolution's weight and bias with the norms behind it folded in; ``inputs``: its input channels from, to.

    Two of them are equal if they are made of the same Constants: recordings for several shapes share what is packed.
    """

    weight: Constant
    bias: Constant | None
    norms: tuple[tuple[Constant | None, Constant | None, Constant, Constant, float], ...] = ()
    inputs: tuple[int, int] | None = None
    with_bias: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Output channels, input channels, kernel."""
        c_out, c_in, k, _ = self.weight.shape
        return c_out, c_in if self.inputs is None else self.inputs[1] - self.inputs[0], k

    def kernel(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[c_out, c_in, k, k]; the factors of the norms are computed in float64."""
        weight = self._folded(self.weight.value().detach(), dtype)[0]
        return weight if self.inputs is None else weight[:, self.inputs[0] : self.inputs[1]]

    def shift(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """The bias [c_out], or None."""
        # the bias does not depend on the weight: without its elements folding costs nothing
        return self._folded(self.weight.value().detach()[:, :0], dtype)[1] if self.with_bias else None

    def _folded(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        weight = weight.to(dtype)
        bias = None if self.bias is None else self.bias.value().detach().to(dtype)
        for gamma, beta, mean, var, eps in self.norms:
            of = [None if c is None else c.value().detach().to(torch.float64) for c in (mean, var, gamma, beta)]
            weight, bias = fold(weight, bias, *of, eps)
        return weight, bias


@dataclass(frozen=True, eq=False)
class Conv:
    """A term of a sum: a convolution, padded so that only the stride changes the size."""

    value: Value
    weight: Weight
    stride: int

    @property
    def geometry(self) -> tuple:
        """What convolutions must have in common to be one, their input channels side by side."""
        return self.weight.shape[2], self.stride, self.value.shape[2:]


@dataclass(frozen=True, eq=False)
class Up:
    """A term of a sum: an image, or a 1x1 convolution of it, interpolated to the size of the sum."""

    value: Value
    weight: Weight | None
    mode: str
    align_corners: bool


@dataclass(eq=False)
class Sum:
    """``act(sum of the terms)``; biases are those of the weights."""

    output: Value
    identities: list[Value] = field(default_factory=list)
    convs: list[Conv] = field(default_factory=list)
    ups: list[Up] = field(default_factory=list)
    relu: bool = False
    projection: Weight | None = None  # a 1x1 convolution behind the ReLU

    def inputs(self) -> list[Value]:
        """The images that it reads."""
        return [*self.identities, *(t.value for t in (*self.convs, *self.ups))]

    def weights(self) -> list[Weight]:
        """Those of its terms."""
        found = [*(t.weight for t in (*self.convs, *self.ups)), self.projection]
        return [w for w in found if w is not None]

    def outputs(self) -> list[Value]:
        """The one image that it makes."""
        return [self.output]


@dataclass(eq=False)
class Call:
    """An operator that is no part of a sum: torch runs it."""

    node: Node

    def inputs(self) -> list[Value]:
        """The tensors that it reads."""
        return self.node.inputs()

    def outputs(self) -> list[Value]:
        """The tensors that it makes."""
        return [v for v in self.node.outputs if v is not None]


Step = Sum | Call


def exchanges(steps: list[Step]) -> int:
    """How many sums over several resolutions there are."""
    return sum(isinstance(s, Sum) and bool(s.ups) and len(s.inputs()) > 1 for s in steps)


def users(steps: list[Step], outputs: list[Value]) -> dict[Value, int]:
    """How often each value is read, the caller of the network included."""
    count: dict[Value, int] = {}
    for value in [v for step in steps for v in step.inputs()] + list(outputs):
        count[value] = count.get(value, 0) + 1
    return count


def makers(steps: list[Step]) -> dict[Value, Sum]:
    """The sum that makes each value."""
    return {s.output: s for s in steps if isinstance(s, Sum)}
