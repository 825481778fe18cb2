"""What the kernels do: convolutions and exchanges on images in planned memory, steps of independent ones."""

import functools
from collections.abc import Callable, Iterator

import torch

from hrnet_fast.network.nodes import Graph, Refused, Value
from hrnet_fast.network.sums import Call, Conv, Step, Sum, Up, Weight
from hrnet_fast.ops.exchange.call import MAX_INPUTS
from hrnet_fast.runtime.cpu.arrange import add_in_place, by_level, join, normalize, parts, widen
from hrnet_fast.runtime.cpu.operations import (
    DIRECT,
    MAX_SOURCES,
    PAIRS,
    WINOGRAD2,
    WINOGRAD4,
    Buffer,
    Convolution,
    Exchange,
    Image,
    Lowered,
    Operation,
    Reorder,
    TorchCall,
)
from hrnet_fast.runtime.normalization import Normalization

IsPacked = Callable[[tuple[tuple[Weight, ...], ...], int], bool]


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
        joined = [join(level, results) for level in levels]
        steps = [part for level in joined for part in parts(level)]
        if self._pairs:
            widen(steps)
            for buffer in results:  # the caller gets what is made of it in the network's dtype
                buffer.external = buffer in inputs or (buffer.external and not buffer.wide)
        add_in_place(steps, results)
        left = normalization
        if normalization is not None and len(inputs) == 1 and not set(inputs) & {*results, *outputs.values()}:
            left = None if normalize(steps, inputs[0], normalization) else normalization
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
        self._operations.append(Exchange(output, inputs, channels, mode, corners, step.relu, step.projection))

    def _convolution(self, group: list[Conv], output: Image, residual: Image | None, relu: bool) -> None:
        kernel, stride, _ = group[0].geometry
        weights = [conv.weight for conv in group]
        made = Convolution(
            output,
            [self._image(conv.value) for conv in group],
            [weights],
            kernel,
            stride,
            residual,
            0 if relu else output.channels,
        )
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


class ReorderedLowering(Lowering):
    """Lowers for images in a layout of their own, which the caller's are brought into."""

    def _input(self, value: Value) -> Buffer:
        buffer = self._results[value] = Buffer(value.shape, external=True)
        return buffer

    def _image(self, value: Value) -> Image:
        if value not in self._images:
            if not value.dtype.is_floating_point:
                raise Refused(f"an image of {value.dtype}")
            image = self._images[value] = self._new(self._four(value))
            self._operations.append(Reorder(image, self._results[value]))
        return self._images[value]
