"""What a planned network is made of: operations of the kernels on images in planned memory."""

from dataclasses import dataclass, field

import torch

from hrnet_fast.network.integers import Factor, Rounding
from hrnet_fast.network.nodes import Value
from hrnet_fast.network.sums import Call, Weight
from hrnet_fast.runtime.normalization import Normalization

MAX_SOURCES, MAX_CONVOLUTIONS = 4, 16  # kMaxSources and kMaxConvolutions of csrc/cpu/convolution.h
DIRECT, WINOGRAD2, WINOGRAD4 = 0, 1, 2  # Algorithm of csrc/cpu/convolution.h
PAIRS = 3  # added to it: factors in bfloat16, two channels a multiplication
TILES = 6  # not of it: products of tiles in bfloat16


@dataclass(eq=False)
class Buffer:
    """Memory of an image [n, c, h, w]: a piece of the arena, or a tensor of its own where ``external``."""

    shape: tuple[int, int, int, int]
    external: bool = False
    wide: bool = False  # float32 whatever the dtype of the network
    planar: bool = True  # dense planes; else as tiles read it, in one or both of these forms:
    rounded: bool = True  # bfloat16
    bytes: bool = False  # integers

    def dtype(self, network: torch.dtype) -> torch.dtype:
        """Of the image, in a network that computes in another one."""
        return torch.float32 if self.wide else network


@dataclass(frozen=True)
class Image:
    """Channels ``first`` and on of a buffer."""

    buffer: Buffer
    first: int
    channels: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.buffer.shape[2:]


@dataclass(eq=False)
class Convolution:
    """output = act(bias + residual + weights * sources), the sources' channels side by side."""

    output: Image
    sources: list[Image]
    weights: list[list[Weight]]  # of each block of output channels, and in it of each source
    kernel: int
    stride: int
    residual: Image | None
    relu_from: int  # ReLU on output channels from this one on
    algorithm: int = DIRECT
    normalization: Normalization | None = None  # of its sources, in weights, bias and border
    factors: tuple[Factor, ...] | None = None  # of each source, where it multiplies bytes
    rounding: Rounding | None = None  # of the output, where it is needed in bytes

    def reads(self) -> list[Image]:
        """The images that it reads."""
        return [*self.sources, *([] if self.residual is None else [self.residual])]


@dataclass(eq=False)
class Exchange:
    """output = act(sum of up(weight * input)), or the projection of that."""

    output: Image
    inputs: list[tuple[Image, Weight | None]]
    channels: int
    mode: str
    align_corners: bool
    relu: bool
    projection: Weight | None
    factors: tuple[Factor, ...] | None = None  # of each input that has a weight, where they are multiplied in bytes
    rounding: Rounding | None = None

    def reads(self) -> list[Image]:
        """The images that it reads."""
        return [image for image, _ in self.inputs]


@dataclass(eq=False)
class Reorder:
    """An image of the caller's, or of an operator of torch's, in the layout of tiles."""

    output: Image
    source: Buffer
    normalization: Normalization | None = None  # that is done on the way
    rounding: Rounding | None = None

    def reads(self) -> list[Image]:
        """Nothing in planned memory."""
        return []

    @property
    def results(self) -> list[Buffer]:
        """What it reads."""
        return [self.source]


@dataclass(eq=False)
class Restore:
    """An image in the layout of tiles as one with dense planes."""

    output: Image
    source: Image

    def reads(self) -> list[Image]:
        """The image."""
        return [self.source]


@dataclass(eq=False)
class TorchCall:
    """An operator of torch's."""

    call: Call
    inputs: dict[Value, Image]  # those that lie in planned memory
    outputs: list[Buffer | None]
    results: list[Buffer]  # that it reads of other calls, and inputs of the network

    def reads(self) -> list[Image]:
        """The images that it reads."""
        return list(self.inputs.values())


Operation = Convolution | Exchange | Reorder | Restore | TorchCall


@dataclass
class Lowered:
    """A network as operations in steps; those of a step do not depend on each other."""

    inputs: list[Buffer]
    steps: list[list[Operation]]
    outputs: dict[
        Value, Image | Buffer
    ]  # what the caller reads; a Buffer: of any shape, an input or made by a TorchCall
    values: dict[Value, Buffer] = field(default_factory=dict)  # results of TorchCalls, and inputs that are no images
    normalization: Normalization | None = None  # that the image needs before the first step
    dtype: torch.dtype = torch.float32  # that was recorded, and stands for the network's

    def kernels(self) -> set[tuple]:
        """What runs: kinds of operations, with what chooses another inner loop or another way of using it."""
        return {_kernel(op) for step in self.steps for op in step}


def _kernel(op: Operation) -> tuple:
    if isinstance(op, Convolution):
        return Convolution, op.algorithm, op.kernel, op.stride, len(op.sources) > 1, op.residual is not None
    if isinstance(op, Exchange):
        return Exchange, op.mode, op.align_corners, op.projection is not None
    return (type(op), op.call.node.operator) if isinstance(op, TorchCall) else (type(op),)
