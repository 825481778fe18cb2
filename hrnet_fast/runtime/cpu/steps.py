"""From steps to what the kernels do: convolutions and exchanges on images in planned memory, in steps of independent ones."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from hrnet_fast.call import MAX_INPUTS
from hrnet_fast.network.integers import Factor, Rounding
from hrnet_fast.network.nodes import Graph, Refused, Value
from hrnet_fast.network.sums import Call, Conv, Step, Sum, Up, Weight
from hrnet_fast.runtime.normalization import Normalization

MAX_SOURCES, MAX_CONVOLUTIONS = 4, 16  # kMaxSources and kMaxConvolutions of csrc/cpu/convolution.h
DIRECT, WINOGRAD2, WINOGRAD4 = 0, 1, 2  # Algorithm of csrc/cpu/convolution.h
PAIRS = 3  # added to it: factors in bfloat16, two channels a multiplication
TILES = 6  # not of it: products of tiles in bfloat16

IsPacked = Callable[[tuple[tuple[Weight, ...], ...], int], bool]


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


def lower(
    graph: Graph,
    steps: list[Step],
    winograd: bool = True,
    pairs: bool = False,
    normalization: Normalization | None = None,
    is_packed: IsPacked | None = None,
) -> Lowered:
    """The operations of a network, in steps.

    Args:
        graph: the recorded network.
        steps: what the passes made of it.
        winograd: whether 3x3 convolutions of stride 1 may be computed by Winograd's algorithm.
        pairs: whether there are instructions that multiply two bfloat16 channels at once.
        normalization: what the network expects of its image and the caller has not done.
        is_packed: whether a convolution's weights are packed for an algorithm already, by a plan for another shape.

    Raises:
        Refused: a sum has too many terms.
    """
    return Lowering(graph, winograd, pairs, is_packed).run(steps, normalization)


class Lowering:
    """Lowers for images with dense planes."""

    def __init__(self, graph: Graph, winograd: bool, pairs: bool, is_packed: IsPacked | None):
        self._is_packed = is_packed or (lambda weights, algorithm: False)
        self._graph, self._winograd, self._pairs = graph, winograd, pairs
        self._images: dict[Value, Image] = {}
        self._results: dict[Value, Buffer] = {}  # of TorchCalls
        self._operations: list[Operation] = []

    def run(self, steps: list[Step], normalization: Normalization | None) -> Lowered:
        """The operations of all steps."""
        inputs, outputs, results = self._visit(steps)
        levels = by_level(self._operations)
        joined = [_join(level, results) for level in levels]
        steps = [part for level in joined for part in parts(level)]
        if self._pairs:
            _widen(steps)
            for buffer in results:  # the caller gets what is made of it in the network's dtype
                buffer.external = buffer in inputs or (buffer.external and not buffer.wide)
        add_in_place(steps, results)
        left = normalization
        if normalization is not None and len(inputs) == 1 and not set(inputs) & {*results, *outputs.values()}:
            left = None if _normalize(steps, inputs[0], normalization) else normalization
        return Lowered(inputs, steps, outputs, self._results, left, self._graph.dtype)

    def _visit(self, steps: list[Step]) -> tuple[list[Buffer], dict[Value, Image | Buffer], set[Buffer]]:
        """Makes the operations: the network's inputs, its outputs, and those of them that are images."""
        inputs = [self._input(value) for value in self._graph.inputs]
        for step in steps:
            if isinstance(step, Sum):
                self._sum(step)
            else:
                self._call(step)
        outputs = {v: self._output(v) for v in self._graph.outputs()}
        return inputs, outputs, {o.buffer for o in outputs.values() if isinstance(o, Image)}

    def _input(self, value: Value) -> Buffer:
        buffer = Buffer(value.shape, external=True)
        if len(value.shape) == 4 and value.dtype.is_floating_point and 0 not in value.shape:
            self._images[value] = Image(buffer, 0, value.shape[1])
        else:
            self._results[value] = buffer
        return buffer

    def _output(self, value: Value) -> Image | Buffer:
        if value in self._results:
            return self._results[value]
        image = self._images[value]
        image.buffer.external = True
        return image

    @staticmethod
    def _four(value: Value) -> tuple[int, int, int, int]:
        if len(value.shape) != 4 or 0 in value.shape:
            raise Refused(f"an image of shape {list(value.shape)}")
        return value.shape

    def _new(self, shape: tuple[int, ...]) -> Image:
        return Image(Buffer(tuple(shape)), 0, shape[1])

    def _image(self, value: Value) -> Image:
        if value not in self._images:
            buffer = self._results[value]
            self._images[value] = Image(buffer, 0, self._four(value)[1])
        return self._images[value]

    def _call(self, step: Call) -> None:
        inputs = {v: self._images[v] for v in step.inputs() if v not in self._results}
        outputs: list[Buffer | None] = []
        for value in step.node.outputs:
            buffer = None if value is None else Buffer(value.shape, external=True)
            outputs.append(buffer)
            if value is not None:
                self._results[value] = buffer
        results = [self._results[v] for v in step.inputs() if v in self._results]
        self._operations.append(TorchCall(step, inputs, outputs, results))

    def _sum(self, step: Sum) -> None:
        output = self._new(self._four(step.output))
        self._images[step.output] = output
        if step.projection is not None:
            inputs = [(self._image(v), None) for v in step.identities]
            inputs += [(self._image(conv.value), conv.weight) for conv in step.convs]
            inputs += [self._up(up) for up in step.ups]
            channels = step.projection.shape[1]
            return self._exchange(step, output, inputs, channels)
        identities = [self._image(v) for v in step.identities]
        groups = list(self._groups(step.convs))
        exchanged = bool(step.ups) or not groups or len(identities) > 1
        total = None
        for k, group in enumerate(groups):
            residual = total if total is not None else identities.pop(0) if identities else None
            last = k == len(groups) - 1 and not exchanged
            total = output if last else self._new(step.output.shape)
            self._convolution(group, total, residual, step.relu and last)
        if not exchanged:
            return None
        inputs = [(image, None) for image in ([] if total is None else [total]) + identities]
        inputs += [(self._low(up), None) for up in step.ups]
        return self._exchange(step, output, inputs, output.channels)

    def _up(self, up: Up) -> tuple[Image, Weight | None]:
        """A smaller input of an exchange with a projection."""
        return self._image(up.value), up.weight

    def _low(self, up: Up) -> Image:
        """What is interpolated: the input, or its convolution."""
        if up.weight is None:
            return self._image(up.value)
        low = self._new((*up.value.shape[:1], up.weight.shape[0], *up.value.shape[2:]))
        self._convolution([Conv(up.value, up.weight, 1)], low, None, False)
        return low

    def _groups(self, convs: list[Conv]) -> Iterator[list[Conv]]:
        """Convolutions that can be one."""
        groups: dict[tuple, list[list[Conv]]] = {}
        for conv in convs:
            found = groups.setdefault(conv.geometry, [])
            if found and not self._stays_alone(conv) and len(found[-1]) < MAX_SOURCES:
                found[-1].append(conv)
            else:
                found.append([conv])
        for found in groups.values():
            yield from found

    def _stays_alone(self, conv: Conv) -> bool:
        """Those that Winograd's algorithm may take."""
        return conv.geometry[:2] == (3, 1)

    def _exchange(self, step: Sum, output: Image, inputs: list, channels: int) -> None:
        if len(inputs) > MAX_INPUTS:
            raise Refused(f"a sum of {len(inputs)} terms")
        mode, corners = (step.ups[0].mode, step.ups[0].align_corners) if step.ups else ("bilinear", False)
        self._operations.append(
            Exchange(output, inputs, channels, mode, corners, step.relu, step.projection)
        )  # fmt: skip

    def _convolution(self, group: list[Conv], output: Image, residual: Image | None, relu: bool) -> None:
        kernel, stride, _ = group[0].geometry
        weights = [conv.weight for conv in group]
        made = Convolution(output, [self._image(conv.value) for conv in group], [weights], kernel, stride, residual,
                           0 if relu else output.channels)  # fmt: skip
        pairs = PAIRS if self._pairs and not any(s.channels % 2 for s in made.sources[:-1]) else 0
        made.algorithm = DIRECT + pairs
        if self._winograd and kernel == 3 and stride == 1:
            packed = functools.partial(self._is_packed, (tuple(weights),))
            made.algorithm = algorithm(output.buffer.shape, made.sources[0].channels, pairs, packed)
        self._operations.append(made)


def algorithm(
    shape: tuple[int, int, int, int],
    c_in: int,
    pairs: int = 0,
    is_packed: Callable[[int], bool] = lambda algorithm: False,
) -> int:
    """Which algorithm a 3x3 convolution of stride 1 with this output shape takes, DIRECT or one of Winograd's.

    The kernels' own costs decide (csrc/cpu/choose_algorithm.cpp); weights that another shape has packed are taken where
    little is lost by it. ``pairs`` is 0 or PAIRS.
    """
    n, c_out, h, w = shape
    packed = sum(1 << a for a in (DIRECT, WINOGRAD2, WINOGRAD4) if is_packed(pairs + a))
    return torch.ops.hrnet_fast.cheapest_convolution(n, c_out, h, w, c_in, pairs != 0, packed)


def by_level(operations: list[Operation]) -> list[list[Operation]]:
    """Operations sorted by the longest way to them: those of one level do not depend on each other."""
    level_of: dict[Buffer, int] = {}
    levels: list[list[Operation]] = []
    for operation in operations:
        read = [image.buffer for image in operation.reads()] + getattr(operation, "results", [])
        level = max((level_of.get(buffer, -1) for buffer in read), default=-1) + 1
        outputs = operation.outputs if isinstance(operation, TorchCall) else [operation.output.buffer]
        for buffer in outputs:
            if buffer is not None:
                level_of[buffer] = level
        while len(levels) <= level:
            levels.append([])
        levels[level].append(operation)
    return levels


def _join(level: list[Operation], external: set[Buffer]) -> list[Operation]:
    """Convolutions of one image, alike but for their weights, become one with their output channels side by side."""
    families: dict[tuple, list[Convolution]] = {}
    kept: list[Operation] = []
    for op in level:
        simple = isinstance(op, Convolution) and op.algorithm % PAIRS == DIRECT and op.residual is None
        # the arena's images can lie side by side, what the caller gets cannot
        if simple and not op.output.buffer.external and op.output.buffer not in external:
            families.setdefault((tuple(op.sources), op.kernel, op.stride, op.algorithm), []).append(op)
        else:
            kept.append(op)
    for (sources, kernel, stride, used), members in families.items():
        members.sort(key=lambda op: op.relu_from == 0)
        n, _, h, w = members[0].output.buffer.shape
        whole = Buffer((n, sum(op.output.channels for op in members), h, w))
        first, relu_from = 0, whole.shape[1]
        for op in members:
            if op.relu_from == 0:
                relu_from = min(relu_from, first)
            _move(op.output, whole, first)
            first += op.output.channels
        kept.append(Convolution(Image(whole, 0, whole.shape[1]), list(sources), [op.weights[0] for op in members],
                                kernel, stride, None, relu_from, used))  # fmt: skip
    return kept


def _move(image: Image, whole: Buffer, first: int) -> None:
    """Everybody who reads an image finds it in another buffer; Images are shared, hence the write to a frozen one."""
    object.__setattr__(image, "buffer", whole)
    object.__setattr__(image, "first", first)


def _widen(steps: list[list[Operation]]) -> None:
    """What is added to is kept in float32: in bfloat16 each addition would round the whole sum of all before it.

    Of the error of whole networks (random weights, w18) this is 2.9e-2 of 3.9e-2, while rounding what convolutions
    multiply is 2.3e-2. Blocks that end with a 1x1 convolution are few and have many channels (0.5e-2): they stay.
    """
    operations = [op for step in steps for op in step]
    for op in operations:
        if isinstance(op, Exchange):
            for image in [op.output, *op.reads()]:
                image.buffer.wide = True
        elif isinstance(op, Convolution) and op.residual is not None and op.kernel == 3:
            op.residual.buffer.wide = True
    changed = True
    while changed:  # a kernel adds what has the dtype of its result
        changed = False
        for op in operations:
            if isinstance(op, Convolution) and op.residual is not None:
                pair = (op.residual.buffer, op.output.buffer)
                if pair[0].wide != pair[1].wide:
                    pair[0].wide = pair[1].wide = changed = True


def _normalize(steps: list[list[Operation]], image: Buffer, normalization: Normalization) -> bool:
    """Lets the convolutions that read the image normalize it by their weights; False where something else reads it.

    The image then stays in float32: pixels lie far from zero, and rounded they would lose what normalized ones keep.
    """
    readers = [op for step in steps for op in step if any(read.buffer is image for read in op.reads())]
    if not all(
        isinstance(op, Convolution) and op.residual is None and all(s.buffer is image for s in op.sources)
        for op in readers
    ):
        return False
    for op in readers:  # in float32: rounded weights would multiply the mean as well
        op.algorithm, op.normalization = DIRECT, normalization
    image.wide = True
    return True


def add_in_place(steps: list[list[Operation]], results: set[Buffer]) -> None:
    """Convolutions write over the image that they add, where nobody reads it afterwards: half the memory of a branch.

    A kernel reads the pixels of the residual just before it stores there.
    """
    last: dict[Buffer, tuple[int, int]] = {}  # the step that reads a buffer last, and how often
    for k, step in enumerate(steps):
        for op in step:
            for buffer in (image.buffer for image in op.reads()):
                before = last.get(buffer, (k, 0))
                last[buffer] = (k, before[1] + 1 if before[0] == k else 1)
    for k, step in enumerate(steps):
        for op in step:
            if not isinstance(op, Convolution) or op.residual is None:
                continue
            old, new = op.residual.buffer, op.output.buffer
            alike = (old.shape, old.wide, old.rounded) == (new.shape, new.wide, new.rounded) and old.bytes >= new.bytes
            if last[old] == (k, 1) and alike and not old.external and not {old, new} & results:
                _move(op.output, old, 0)
                last[old] = last.pop(new, (k, 1))


def parts(level: list[Operation]) -> Iterator[list[Operation]]:
    """A level's convolutions in groups for one step each; the other operations one by one."""
    convolutions = [op for op in level if isinstance(op, Convolution)]
    for first in range(0, len(convolutions), MAX_CONVOLUTIONS):
        yield convolutions[first : first + MAX_CONVOLUTIONS]
    for op in level:
        if not isinstance(op, Convolution):
            yield [op]
