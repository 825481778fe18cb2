"""Programs whose images lie as matrix tiles read them (csrc/cpu/tiled.h)."""

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.runtime.cpu.encode import ARENA, DTYPES, MODES, NOWHERE, Program
from hrnet_fast.runtime.cpu.operations import Buffer, Convolution, Exchange, Image, Operation, Reorder, Restore

# what csrc/cpu/program.cpp reads
_EXCHANGE, _TILED = 2, 3
_KINDS = {Convolution: 0, Exchange: 1, Reorder: 2, Restore: 3}
_BEHIND = 64  # zeros behind an image


class TiledProgram(Program):
    """A network for inputs of one shape. Images have their forms one after the other: rounded, the rest, bytes."""

    def _bytes(self, buffer: Buffer) -> int:
        return super()._bytes(buffer) if buffer.planar else self._forms(buffer)[-1]

    def _forms(self, buffer: Buffer) -> tuple[int, int, int, int]:
        """Where the forms of an image begin, in bytes, and where the last one ends."""
        n, c, _, _ = buffer.shape
        count = n * self._image(buffer) + 34 * c + 256  # with what tiles read behind the last image
        ends = [0]
        for there, size in ((buffer.rounded, 2), (buffer.wide, 2), (buffer.bytes, 1)):
            ends.append(ends[-1] + (-(-size * count // 64) * 64 if there else 0))
        return tuple(ends)

    @staticmethod
    def _image(buffer: Buffer) -> int:
        """Elements from one image to the next."""
        _, c, h, w = buffer.shape
        return ((h + 2) * (w + 1) + 1) * c + _BEHIND

    def _view(self, image: Image, external: list[Tensor], arena: Tensor) -> Tensor:
        buffer = image.buffer
        if buffer.planar:
            return super()._view(image, external, arena)
        _, c, _, w = buffer.shape
        start = self._offsets[buffer] // 2 + (w + 2) * c
        strides = (self._image(buffer), 1, (w + 1) * c, c)
        return arena.view(torch.bfloat16).as_strided(buffer.shape, strides, start).to(self._dtype)

    def _weights_of(self, step: list) -> list[tuple]:
        return [self._placed(self._packed(op)) for op in step]

    def _packed(self, op: Convolution | Exchange | Reorder | Restore) -> tuple:
        weights = self._weights
        if isinstance(op, Convolution):
            if op.factors is not None:
                return (weights.bytes(tuple(op.weights[0]), op.factors),)
            return weights.vector(op.weights[0], torch.float32), *(weights.tiles(w) for w in op.weights[0])
        if isinstance(op, Reorder):
            if op.normalization is None:
                return None, None
            mean, std = op.normalization.mean, op.normalization.std
            shift = tuple(-m / s for m, s in zip(mean, std))
            return weights.numbers(tuple(1 / s for s in std)), weights.numbers(shift)
        if isinstance(op, Restore):
            return ()
        projection = op.projection
        if op.factors is not None:
            multiplied = tuple(w for _, w in op.inputs if w is not None)
            return (
                weights.bytes(multiplied, op.factors),
                None if projection is None else weights.tiles(projection),
                None if projection is None else weights.vector([projection], torch.float32),
            )
        return (
            weights.exchange_bias(op, torch.float32),
            None if projection is None else weights.tiles(projection),
            None if projection is None else weights.vector([projection], torch.float32),
            *(None if w is None else weights.tiles(w) for _, w in op.inputs),
        )

    def _words(self, run: list[tuple[list, list[tuple]]]) -> tuple[list[int], list[list[Operation]]]:
        words: list[int] = []
        operations: list[tuple] = []
        every = [(op, p) for step, packed in run for op, p in zip(step, packed)]
        for op, packed in [*every, (None, None)]:
            planes = isinstance(op, Exchange) and op.output.buffer.planar
            if operations and (op is None or planes):
                words += self._graph(operations)
                operations = []
            if planes:
                body = super()._exchange(op, packed)
                words += [_EXCHANGE, len(body), *body]
            elif op is not None:
                operations.append((op, packed))
        return words, [[op] for op, _ in every]

    def _graph(self, operations: list[tuple]) -> list[int]:
        places = {buffer: (at, at + self._bytes(buffer)) for buffer, at in self._offsets.items()}
        hazards, body = _Hazards(places), [len(operations)]
        for op, packed in operations:
            after = hazards.add(op)
            body += [_KINDS[type(op)], len(after), *(int(word) for pair in after for word in pair)]
            body += self._body(op, packed)
        return [_TILED, len(body), *body]

    def _body(self, op: Convolution | Exchange | Reorder | Restore, packed: tuple) -> list[int]:
        if isinstance(op, Convolution):
            return self._convolution(op, packed)
        if isinstance(op, Exchange):
            return self._exchange(op, packed)
        return self._reorder(op, packed) if isinstance(op, Reorder) else self._restore(op)

    def _bordered(self, image: Image) -> list[int]:
        buffer = image.buffer
        rounded, rest, integers, _ = (self._offsets[buffer] + at for at in self._forms(buffer))
        words = [image.channels]
        for there, at in ((buffer.rounded, rounded), (buffer.wide, rest), (buffer.bytes, integers)):
            words += (ARENA, at) if there else NOWHERE
        return words

    def _written(self, op: Convolution | Exchange | Reorder) -> list[int]:
        """The output; and its bytes, where somebody reads them."""
        words, rounding = self._bordered(op.output), op.rounding
        if rounding is None:
            return [*words[:-2], *NOWHERE, *_UNROUNDED]
        return [*words, _bits(1 / rounding.step), rounding.zero]

    def _factors(self, op: Convolution | Exchange, packed: tuple) -> tuple[tuple, tuple, list[tuple]]:
        """Addresses of the bias, of the scale of sums of bytes, and of the weights."""
        if op.factors is None:
            bias, *weights = packed
            return self._constant(bias), NOWHERE, [self._constant(w) for w in weights]
        index, at = self._constant(packed[0])
        bias, scale, *weights = ((index, at + start) for start in packed[0].parts)
        return bias, scale, weights

    def _convolution(self, op: Convolution, packed: tuple) -> list[int]:
        bias, scale, weights = self._factors(op, packed)
        n, (h, w), c_out = op.output.buffer.shape[0], op.sources[0].size, op.output.channels
        words = [n, h, w, c_out, op.kernel, op.stride, int(op.relu_from == 0), int(op.factors is not None)]
        words.append(len(op.sources))
        for source, weight in zip(op.sources, weights, strict=True):
            words += [*self._bordered(source), *weight]
        *output, per_unit, zero = self._written(op)
        # bytes of what is added are never read, and may be gone
        residual = [c_out, *NOWHERE * 3] if op.residual is None else [*self._bordered(op.residual)[:-2], *NOWHERE]
        return [*words, *output, *residual, *bias, *scale, per_unit, zero]

    def _exchange(self, op: Exchange, packed: tuple) -> list[int]:
        projection, projection_bias = packed[1:3]
        bias, scale, weights = self._factors(op, (packed[0], *packed[3:]))
        if op.factors is not None:
            left = iter(weights)
            weights = [NOWHERE if weight is None else next(left) for _, weight in op.inputs]
        n, _, h, w = op.output.buffer.shape
        words = [MODES[op.mode, op.align_corners], int(op.relu), int(op.factors is not None), n, h, w, op.channels]
        words.append(len(op.inputs))
        for (image, _), weight in zip(op.inputs, weights, strict=True):
            words += [*image.size, *self._bordered(image), *weight]
        return [
            *words,
            *bias,
            *scale,
            *self._written(op),
            *self._constant(projection),
            *self._constant(projection_bias),
        ]

    def _reorder(self, op: Reorder, packed: tuple) -> list[int]:
        n, c, h, w = op.source.shape
        source = [DTYPES[op.source.dtype(self._dtype)], c, c * h * w, *self._address(op.source, 0)]
        return [n, h, w, *source, *self._written(op), *(w for p in packed for w in self._constant(p))]

    def _restore(self, op: Restore) -> list[int]:
        n, _, h, w = op.output.buffer.shape
        return [n, h, w, *self._bordered(op.source), *self._planes(op.output)]


def _bits(x: float) -> int:
    """Of a float32."""
    return struct.unpack("<I", struct.pack("<f", x))[0]


_UNROUNDED = (_bits(1.0), 0)


@dataclass(eq=False)
class _Content:
    """What lies in a buffer's memory, and the operations that have to do with it: who wrote it, and who has read it."""

    buffer: Buffer
    memory: tuple[int, int]
    writer: int | None  # None: an earlier graph has written it
    readers: list[int]


class _Hazards:
    """Says what each operation of a graph has to wait for, as they are added in the order of the network.

    It waits for the rows around its own of what it reads, and before it writes, for whoever has to do with what lies
    there: for their rows where the images are alike, else for all that they do.
    """

    def __init__(self, places: dict[Buffer, tuple[int, int]]):
        self._places = places
        self._contents: list[_Content] = []
        self._heights: list[int] = []

    def add(self, op: Convolution | Exchange | Reorder | Restore) -> list[tuple[int, bool]]:
        """Numbers of operations that were added before; whether their rows around those that are computed suffice."""
        here, found = len(self._heights), {}
        self._heights.append(op.output.size[0])
        for buffer in {image.buffer for image in op.reads()}:
            content = next((c for c in self._contents if c.buffer is buffer), None)
            if content is None:
                content = _Content(buffer, self._places[buffer], None, [])
                self._contents.append(content)
            elif content.writer is not None:
                found[content.writer] = True
            content.readers.append(here)
        written = op.output.buffer
        if written not in self._places:  # a tensor of its own
            return sorted(found.items())
        begin, end = self._places[written]
        kept = []
        for content in self._contents:
            at = content.memory
            if at[0] < end and begin < at[1]:
                alike = at == (begin, end) and content.buffer.shape == written.shape
                for user in content.readers + ([] if content.writer is None else [content.writer]):
                    rows = alike and self._heights[user] == self._heights[here]
                    found[user] = found.get(user, True) and rows
                if begin <= at[0] and at[1] <= end:
                    continue
            kept.append(content)
        found.pop(here, None)
        self._contents = [*kept, _Content(written, (begin, end), here, [])]
        return sorted(found.items())
