"""From steps to what the kernels on matrix tiles do: images in bfloat16 or bytes, channels innermost, zeros around."""

from collections.abc import Mapping

from hrnet_fast.network.integers import Factor
from hrnet_fast.network.nodes import Graph, Refused, Value
from hrnet_fast.network.sums import Conv, Step, Up, Weight
from hrnet_fast.runtime.cpu.arrange import add_in_place, by_level, parts
from hrnet_fast.runtime.cpu.operations import (
    TILES,
    Buffer,
    Convolution,
    Exchange,
    Image,
    Lowered,
    Operation,
    Reorder,
    Restore,
    TorchCall,
)
from hrnet_fast.runtime.cpu.steps import ReorderedLowering
from hrnet_fast.runtime.normalization import Normalization


def lower(
    graph: Graph,
    steps: list[Step],
    normalization: Normalization | None = None,
    factors: Mapping[Weight, Factor] | None = None,
) -> Lowered:
    """The operations of a network, in steps.

    Args:
        graph: the recorded network.
        steps: what the passes made of it.
        normalization: what the network expects of its image and the caller has not done.
        factors: what the weights multiply that are to be multiplied in bytes; None: everything is in bfloat16.

    Raises:
        Refused: a sum has too many terms, or a convolution another kernel than 1x1 and 3x3.
    """
    return _TiledLowering(graph, factors).run(steps, normalization)


class _TiledLowering(ReorderedLowering):
    def __init__(self, graph: Graph, factors: Mapping[Weight, Factor] | None):
        super().__init__(graph, winograd=False, pairs=False, is_packed=None)
        self._factors = factors

    def run(self, steps: list[Step], normalization: Normalization | None) -> Lowered:
        inputs, outputs, results = self._visit(steps)
        alone = [buffer for buffer in inputs if self._only_reordered(buffer, outputs)]
        for buffer in alone:  # images come in float32 most often: one pass less over them
            buffer.wide = True
        left = None if normalization is None or self._normalize(alone, inputs, normalization) else normalization
        made = [part for level in by_level(self._operations) for part in parts(level)]
        if self._factors is None:
            _widen(self._operations)
        else:
            _round(self._operations, self._factors)
        add_in_place(made, results)
        return Lowered(inputs, made, outputs, self._results, left, self._graph.dtype)

    def _new(self, shape: tuple[int, ...]) -> Image:
        image = super()._new(shape)
        image.buffer.planar = False
        return image

    def _output(self, value: Value) -> Image | Buffer:
        if value in self._results:
            return self._results[value]
        image = self._images[value]
        output = Image(Buffer(value.shape, external=True), 0, value.shape[1])
        made = next((o for o in self._operations if isinstance(o, Exchange) and o.output.buffer is image.buffer), None)
        read = any(image.buffer is other.buffer for o in self._operations for other in o.reads())
        if made is not None and made.projection is None and len(made.inputs) == 1 and not read:
            # interpolation alone: what is small changes its layout, and planes are interpolated
            low, _ = made.inputs[0]
            made.inputs, made.output = [(self._restored(low), None)], output
            self._operations.remove(made)
            self._operations.append(made)
        else:
            self._operations.append(Restore(output, image))
        return output

    def _restored(self, image: Image) -> Image:
        planes = Image(Buffer(image.buffer.shape), 0, image.channels)
        self._operations.append(Restore(planes, image))
        return planes

    def _up(self, up: Up) -> tuple[Image, Weight | None]:
        return self._low(up), None

    def _stays_alone(self, conv: Conv) -> bool:
        return False

    def _convolution(self, group: list[Conv], output: Image, residual: Image | None, relu: bool) -> None:
        kernel, stride, _ = group[0].geometry
        if kernel not in (1, 3):
            raise Refused(f"a convolution of {kernel}x{kernel}")
        self._operations.append(
            Convolution(
                output,
                [self._image(conv.value) for conv in group],
                [[conv.weight for conv in group]],
                kernel,
                stride,
                residual,
                0 if relu else output.channels,
                TILES,
            )
        )

    def _only_reordered(self, image: Buffer, outputs: dict) -> bool:
        """Whether nothing reads an input but what lays it out for tiles, in whatever dtype it comes."""
        readers = [op for op in self._operations if image in getattr(op, "results", [])]
        return bool(readers) and image not in outputs.values() and all(isinstance(op, Reorder) for op in readers)

    def _normalize(self, alone: list[Buffer], inputs: list[Buffer], normalization: Normalization) -> bool:
        """Lets the image be normalized on its way into tiles, from float32: rounded pixels would lose digits.

        False where something else reads it.
        """
        if alone != inputs or len(inputs) != 1:
            return False
        for op in self._operations:
            if inputs[0] in getattr(op, "results", []):
                op.normalization = normalization
        return True


def _widen(operations: list[Operation]) -> None:
    """What is added to is kept in sixteen bits more: each addition would round the whole sum of all before it."""
    for op in operations:
        if isinstance(op, Exchange) and op.projection is None and not op.output.buffer.planar:
            for image in (op.output, *(image for image, weight in op.inputs if weight is None)):
                image.buffer.wide = True
        elif isinstance(op, Convolution) and op.residual is not None and op.kernel == 3:
            op.residual.buffer.wide = op.output.buffer.wide = True


def _round(operations: list[Operation], factors: Mapping[Weight, Factor]) -> None:
    """Says which operations multiply bytes, and which forms images must have; what is added is in bfloat16."""
    makers = {op.output.buffer: op for op in operations if not isinstance(op, TorchCall)}
    plain: set[Buffer] = set()  # that somebody reads in bfloat16
    for op in operations:
        multiplied: list[tuple[Image, Weight]] = []
        added: list[Image] = []
        if isinstance(op, Convolution):
            multiplied = list(zip(op.sources, op.weights[0], strict=True))
            added = [] if op.residual is None else [op.residual]
        elif isinstance(op, Exchange):
            multiplied = [(image, weight) for image, weight in op.inputs if weight is not None]
            added = [image for image, weight in op.inputs if weight is None]
        found = [factors.get(weight) for _, weight in multiplied]
        if not multiplied or None in found:
            plain.update(image.buffer for image in op.reads())
            continue
        plain.update(image.buffer for image in added)
        for k, (image, _) in enumerate(multiplied):
            maker = makers[image.buffer]
            if maker.rounding is None:
                maker.rounding, image.buffer.bytes = found[k].rounding, True
            found[k] = found[k]._replace(rounding=maker.rounding)  # all who read an image read the same bytes
        op.factors = tuple(found)
    for buffer in makers:
        buffer.rounded = buffer.planar or buffer in plain or not buffer.bytes
