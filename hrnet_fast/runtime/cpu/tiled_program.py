"""Programs whose images lie as matrix tiles read them (csrc/cpu/tiled.h)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.runtime.cpu.program import ARENA, DTYPES, MODES, NOWHERE, Program
from hrnet_fast.runtime.cpu.steps import Buffer, Convolution, Exchange, Image, Operation, Reorder, Restore

# what csrc/cpu/program.cpp reads
_EXCHANGE, _TILED = 2, 3
_KINDS = {Convolution: 0, Exchange: 1, Reorder: 2, Restore: 3}
_BEHIND = 32  # zeros behind an image


class TiledProgram(Program):
    """A network for inputs of one shape, in bfloat16; sums that are wide have the rounded numbers first."""

    def _bytes(self, buffer: Buffer) -> int:
        if buffer.planar:
            return super()._bytes(buffer)
        return (2 if buffer.wide else 1) * self._half(buffer)

    @staticmethod
    def _image(buffer: Buffer) -> int:
        """Elements from one image to the next."""
        _, c, h, w = buffer.shape
        return ((h + 2) * (w + 1) + 1) * c + _BEHIND

    def _half(self, buffer: Buffer) -> int:
        """Bytes of the rounded numbers, with what tiles read behind them."""
        n, c, _, _ = buffer.shape
        return -(-2 * (n * self._image(buffer) + 34 * c + 256) // 64) * 64

    def _view(self, image: Image, external: list[Tensor], arena: Tensor) -> Tensor:
        buffer = image.buffer
        if buffer.planar:
            return super()._view(image, external, arena)
        _, c, _, w = buffer.shape
        start = self._offsets[buffer] // 2 + (w + 2) * c
        strides = (self._image(buffer), 1, (w + 1) * c, c)
        return arena.view(torch.bfloat16).as_strided(buffer.shape, strides, start).contiguous()

    def _weights_of(self, step: list) -> list[tuple]:
        return [self._placed(self._packed(op)) for op in step]

    def _packed(self, op: Convolution | Exchange | Reorder | Restore) -> tuple:
        weights = self._weights
        if isinstance(op, Convolution):
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
        at = self._offsets[image.buffer]
        low = (ARENA, at + self._half(image.buffer)) if image.buffer.wide else NOWHERE
        return [image.channels, ARENA, at, *low]

    def _convolution(self, op: Convolution, packed: tuple) -> list[int]:
        bias, *weights = packed
        n, (h, w), c_out = op.output.buffer.shape[0], op.sources[0].size, op.output.channels
        words = [n, h, w, c_out, op.kernel, op.stride, int(op.relu_from == 0), len(op.sources)]
        for source, weight in zip(op.sources, weights, strict=True):
            words += [*self._bordered(source), *self._constant(weight)]
        residual = [c_out, *NOWHERE, *NOWHERE] if op.residual is None else self._bordered(op.residual)
        return [*words, *self._bordered(op.output), *residual, *self._constant(bias)]

    def _exchange(self, op: Exchange, packed: tuple) -> list[int]:
        bias, projection, projection_bias, *weights = packed
        n, _, h, w = op.output.buffer.shape
        words = [MODES[op.mode, op.align_corners], int(op.relu), n, h, w, op.channels, len(op.inputs)]
        for (image, _), weight in zip(op.inputs, weights, strict=True):
            words += [*image.size, *self._bordered(image), *self._constant(weight)]
        return [*words, *self._constant(bias), *self._bordered(op.output), *self._constant(projection),
                *self._constant(projection_bias)]  # fmt: skip

    def _reorder(self, op: Reorder, packed: tuple) -> list[int]:
        n, c, h, w = op.source.shape
        source = [DTYPES[op.source.dtype(self._dtype)], c, c * h * w, *self._address(op.source, 0)]
        return [n, h, w, *source, *self._bordered(op.output), *(w for p in packed for w in self._constant(p))]

    def _restore(self, op: Restore) -> list[int]:
        n, _, h, w = op.output.buffer.shape
        return [n, h, w, *self._bordered(op.source), *self._planes(op.output)]


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
