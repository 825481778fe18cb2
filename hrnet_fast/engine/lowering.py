"""From sums to what the kernels do: convolutions and exchanges on images in planned memory, in steps of independent ones."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hrnet_fast.call import MAX_INPUTS
from hrnet_fast.engine.graph import Call, Conv, Step, Sum, Weight
from hrnet_fast.engine.tape import NotPlannable, Tape, Value

MAX_SOURCES, MAX_CONVOLUTIONS = 4, 16  # kMaxSources and kMaxConvolutions of csrc/cpu/convolution.h
DIRECT, WINOGRAD2, WINOGRAD4, PAIRS = 0, 1, 2, 3  # Algorithm of csrc/cpu/convolution.h
READING = 2.4  # reading a weight from memory, in multiply-adds of a register: 25 GB/s beside 490 GFLOP/s


@dataclass(eq=False)
class Buffer:
    """Memory of an image [n, c, h, w]: a piece of the arena, or a tensor of its own where ``external``."""

    shape: tuple[int, int, int, int]
    external: bool = False


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

    def reads(self) -> list[Image]:
        """The images that it reads."""
        return [image for image, _ in self.inputs]


@dataclass(eq=False)
class TorchCall:
    """An operator of torch's."""

    call: Call
    inputs: dict[Value, Image]  # those that lie in planned memory
    outputs: list[Buffer | None]

    def reads(self) -> list[Image]:
        """The images that it reads."""
        return list(self.inputs.values())


Operation = Convolution | Exchange | TorchCall


@dataclass
class Lowered:
    """A network as operations in steps; those of a step do not depend on each other."""

    image: Buffer
    steps: list[list[Operation]]
    outputs: list[Image | Buffer | None]  # a Buffer: the result of a TorchCall, whatever its shape; None: the image
    values: dict[Value, Buffer] = field(default_factory=dict)  # results of TorchCalls


def lower(tape: Tape, steps: list[Step], winograd: bool = True, pairs: bool = False) -> Lowered:
    """The operations of a network, in steps.

    Args:
        tape: the recorded network.
        steps: what ``graph.build`` made of it.
        winograd: whether 3x3 convolutions of stride 1 may be computed by Winograd's algorithm.
        pairs: whether there are instructions that multiply two bfloat16 channels at once.

    Raises:
        NotPlannable: an image is not four-dimensional, or a sum has too many terms.
    """
    return _Lowering(tape, winograd, pairs).run(steps)


class _Lowering:
    def __init__(self, tape: Tape, winograd: bool, pairs: bool):
        self._tape, self._winograd, self._pairs = tape, winograd, pairs
        self._images: dict[Value, Image] = {}
        self._results: dict[Value, Buffer] = {}  # of TorchCalls
        self._operations: list[Operation] = []

    def run(self, steps: list[Step]) -> Lowered:
        image = Buffer(self._four(self._tape.image), external=True)
        self._images[self._tape.image] = Image(image, 0, image.shape[1])
        for step in steps:
            if isinstance(step, Sum):
                self._sum(step)
            else:
                self._call(step)
        outputs = [self._output(v) for v in self._tape.outputs]
        levels = _by_level(self._operations)
        external = {o.buffer for o in outputs if isinstance(o, Image)}
        joined = [_join(level, external) for level in levels]
        return Lowered(image, [part for level in joined for part in _parts(level)], outputs, self._results)

    def _output(self, value: Value) -> Image | Buffer | None:
        if value is self._tape.image:
            return None
        if value in self._results:
            return self._results[value]
        image = self._images[value]
        image.buffer.external = True
        return image

    @staticmethod
    def _four(value: Value) -> tuple[int, int, int, int]:
        if len(value.shape) != 4 or 0 in value.shape:
            raise NotPlannable(f"an image of shape {list(value.shape)}")
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
        outputs = []
        for value in step.node.outputs:
            buffer = None if value is None else Buffer(value.shape, external=True)
            outputs.append(buffer)
            if value is not None:
                self._results[value] = buffer
        call = TorchCall(step, inputs, outputs)
        # what other calls make is read as well: the order must know
        call.results = [self._results[v] for v in step.inputs() if v in self._results]
        self._operations.append(call)

    def _sum(self, step: Sum) -> None:
        output = self._new(self._four(step.output))
        self._images[step.output] = output
        if step.projection is not None:
            inputs = [(self._image(t.value), t.weight) for t in (*step.convs, *step.ups)]
            inputs = [(self._image(v), None) for v in step.identities] + inputs
            channels = step.weights()[0].shape[0]
            return self._exchange(step, output, inputs, channels)
        identities = [self._image(v) for v in step.identities]
        groups = list(_groups(step.convs))
        exchanged = bool(step.ups) or not groups or len(identities) > 1
        total = None
        for k, group in enumerate(groups):
            residual = total if total is not None else identities.pop(0) if identities else None
            last = k == len(groups) - 1 and not exchanged
            total = output if last else self._new(step.output.shape)
            self._convolution(group, total, residual, step.relu and last, exchanged)
        if not exchanged:
            return None
        inputs = [(image, None) for image in ([] if total is None else [total]) + identities]
        for up in step.ups:
            image = self._image(up.value)
            if up.weight is not None:
                low = self._new((*up.value.shape[:1], up.weight.shape[0], *up.value.shape[2:]))
                self._convolution([Conv(up.value, up.weight, 1)], low, None, False, True)
                image = low
            inputs.append((image, None))
        return self._exchange(step, output, inputs, output.channels)

    def _exchange(self, step: Sum, output: Image, inputs: list, channels: int) -> None:
        if len(inputs) > MAX_INPUTS:
            raise NotPlannable(f"a sum of {len(inputs)} terms")
        mode, corners = (step.ups[0].mode, step.ups[0].align_corners) if step.ups else ("bilinear", False)
        self._operations.append(
            Exchange(output, inputs, channels, mode, corners, step.relu, step.projection)
        )  # fmt: skip

    def _convolution(
        self, group: list[Conv], output: Image, residual: Image | None, relu: bool, exchanged: bool
    ) -> None:
        kernel, stride, _ = group[0].geometry
        weights = [conv.weight for conv in group]
        made = Convolution(output, [self._image(conv.value) for conv in group], [weights], kernel, stride, residual,
                           0 if relu else output.channels)  # fmt: skip
        # Their weights are rounded to bfloat16. Where streams are exchanged that is felt most: of the error of whole
        # networks (random weights, w48) 2.6e-2 became 3.6e-2, which is more than is allowed.
        rounds = exchanged or stride > 1 or any(s.channels % 2 for s in made.sources[:-1])
        direct = PAIRS if self._pairs and not rounds else DIRECT
        made.algorithm = direct
        if self._winograd and kernel == 3 and stride == 1:
            made.algorithm = algorithm(output.buffer.shape, made.sources[0].channels, direct)
        self._operations.append(made)


def algorithm(shape: tuple[int, int, int, int], c_in: int, direct: int) -> int:
    """Which algorithm a 3x3 convolution of stride 1 with this output shape takes, ``direct`` or one of Winograd's.

    What is compared are multiply-adds of registers of sixteen numbers, those of the transforms, and the reading of the
    weights, which Winograd's has four times (tiles of 4x4) or nearly two times (2x2) of.
    """
    n, c_out, h, w = shape
    pairs, channels = c_in * c_out, c_in + c_out

    def registers(tile: int) -> int:  # sixteen tiles each: four rows of four tiles side by side
        return -(-n * -(-h // tile) * -(-w // (4 * tile)) // 4)

    pixels = n * min(h * -(-w // 16), -(-h * (w + 2) // 16))
    half = 2 if direct == PAIRS else 1  # as many multiplications, and bytes of the weights
    costs = {
        WINOGRAD4: registers(4) * (36 * pairs + 250 * channels) + 36 * pairs * READING,
        WINOGRAD2: registers(2) * (16 * pairs + 80 * channels) + 16 * pairs * READING,
        direct: (pixels * 9 * pairs + 9 * pairs * READING) / half,
    }
    return min(costs, key=costs.get)


def _groups(convs: list[Conv]) -> Iterator[list[Conv]]:
    """Convolutions that can be one; those that Winograd's algorithm may take stay alone."""
    groups: dict[tuple, list[list[Conv]]] = {}
    for conv in convs:
        kernel, stride, _ = conv.geometry
        alone = kernel == 3 and stride == 1
        found = groups.setdefault(conv.geometry, [])
        if found and not alone and len(found[-1]) < MAX_SOURCES:
            found[-1].append(conv)
        else:
            found.append([conv])
    for found in groups.values():
        yield from found


def _by_level(operations: list[Operation]) -> list[list[Operation]]:
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
        simple = isinstance(op, Convolution) and op.algorithm in (DIRECT, PAIRS) and op.residual is None
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


def _parts(level: list[Operation]) -> Iterator[list[Operation]]:
    """A level's convolutions in groups for one step each; the other operations one by one."""
    convolutions = [op for op in level if isinstance(op, Convolution)]
    for first in range(0, len(convolutions), MAX_CONVOLUTIONS):
        yield convolutions[first : first + MAX_CONVOLUTIONS]
    for op in level:
        if not isinstance(op, Convolution):
            yield [op]
