"""A network's operations as a program for the C++ kernels, with torch's operators between its parts."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.network.nodes import Constant, Value
from hrnet_fast.ops.transforms import below_autograd
from hrnet_fast.runtime.cpu import memory
from hrnet_fast.runtime.cpu.operations import Buffer, Convolution, Exchange, Image, Lowered, Operation, TorchCall
from hrnet_fast.runtime.cpu.packed_weights import Packed, PackedWeights

# what csrc/cpu/program.cpp reads
_CONVOLUTIONS, _EXCHANGE = 1, 2
DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
MODES = {("nearest", False): 0, ("bilinear", False): 1, ("bilinear", True): 2}
ARENA, _FIRST_BLOB = 0, 1
NOWHERE = (-1, 0)
_NOTHING = torch.empty(0)
# Operators behind a network's last image that lose nothing by strides; others might demand dense images.
_FOR_IMAGES_AS_THEY_LIE = {torch.ops.aten.mean.dim, torch.ops.aten.sum.dim_IntList, torch.ops.aten.amax.default}


@dataclass
class Piece:
    """Steps of the kernels, [n] int64, with what is timed of them; or one operator of torch's."""

    steps: Tensor | None
    timed: list[list[Operation]]  # that run side by side
    call: TorchCall | None


class Program:
    """A network for inputs of one shape.

    Args:
        plan: the lowered network.
        weights: packs what the plan needs and others have not packed already.
        dtype: of the images and of the results.
    """

    def __init__(self, plan: Lowered, weights: PackedWeights, dtype: torch.dtype):
        self._plan, self._weights, self._dtype = plan, weights, dtype
        self._casts: dict[Constant, Tensor] = {}
        self._offsets, self.arena_bytes = memory.place(plan, self._bytes)
        self._external = self._externals()
        images = [o for o in plan.outputs.values() if isinstance(o, Image)]
        made = [image.buffer for image in images if image.buffer.external and image.buffer not in plan.inputs]
        self._made = [(self._external[b], b.shape, b.dtype(dtype)) for b in made]  # results that the kernels write
        self._just_made = len(made) == len(plan.outputs) and all(
            (i.first, i.channels, i.buffer.dtype(dtype)) == (0, i.buffer.shape[1], dtype) for i in images
        )
        self.encode()

    def _bytes(self, buffer: Buffer) -> int:
        n, c, h, w = buffer.shape
        return n * c * h * w * buffer.dtype(self._dtype).itemsize

    def _externals(self) -> dict[Buffer, int]:
        found: dict[Buffer, int] = {}
        for buffer in self._plan.inputs:
            found[buffer] = len(found)
        for step in self._plan.steps:
            for op in step:
                outputs = op.outputs if isinstance(op, TorchCall) else [op.output.buffer]
                for buffer in outputs:
                    if buffer is not None and buffer.external:
                        found[buffer] = len(found)
        return found

    def encode(self) -> None:
        """Takes the packed weights that there are now, and lets go of those that it had."""
        _held = getattr(self, "_places", None)  # what stays is not packed again
        self._blobs: list[Tensor] = []
        self._places: dict[Packed, tuple[int, int]] = {}  # tensor of that list, and byte; holds what this plan needs
        self._pieces = self._encode()

    def reads(self, packed: Packed) -> bool:
        """Whether it holds these weights."""
        return packed in self._places

    def _encode(self) -> list[Piece]:
        # all weights first: their number says where the other tensors come in the list
        bodies = [None if isinstance(step[0], TorchCall) else self._weights_of(step) for step in self._plan.steps]
        pieces: list[Piece] = []
        run: list[tuple[list, list[tuple]]] = []
        for step, packed in [*zip(self._plan.steps, bodies), (None, None)]:
            if packed is not None:
                run.append((step, packed))
                continue
            if run:
                words, timed = self._words(run)
                pieces.append(Piece(torch.tensor(words, dtype=torch.int64), timed, None))
                run = []
            if step is not None:
                pieces.append(Piece(None, [step], step[0]))
        return pieces

    def _words(self, run: list[tuple[list, list[tuple]]]) -> tuple[list[int], list[list[Operation]]]:
        """Of steps that follow each other, with what is packed for each of their operations; and what is timed."""
        words: list[int] = []
        for step, packed in run:
            if isinstance(step[0], Convolution):
                body = [len(step), *(w for op, p in zip(step, packed) for w in self._convolution(op, p))]
                words += [_CONVOLUTIONS, len(body), *body]
            else:
                body = self._exchange(step[0], packed[0])
                words += [_EXCHANGE, len(body), *body]
        return words, [step for step, _ in run]

    def _weights_of(self, step: list) -> list[tuple]:
        return [
            self._placed(self._weights.convolution(op))
            if isinstance(op, Convolution)
            else self._placed(self._exchange_weights(op))
            for op in step
        ]

    def _exchange_weights(self, op: Exchange) -> tuple:
        dtype, projection = op.output.buffer.dtype(self._dtype), op.projection
        return (
            self._weights.exchange_bias(op, dtype),
            None if projection is None else self._weights.matrix(projection, dtype),
            None if projection is None else self._weights.vector([projection], dtype),
            *(None if w is None else self._weights.matrix(w, dtype) for _, w in op.inputs),
        )

    def _placed(self, packed: tuple) -> tuple:
        for p in packed:
            if p is not None and p not in self._places:
                known = (k for k, slab in enumerate(self._blobs) if slab is p.slab)
                index = next(known, len(self._blobs))
                if index == len(self._blobs):
                    self._blobs.append(p.slab)
                self._places[p] = index, p.start
        return packed

    def run(self, inputs: list[Tensor], arena: Tensor, times: list | None = None) -> list[Tensor]:
        """The values that the caller reads, in new memory, in the order of ``Lowered.outputs``.

        Args:
            inputs: of the plan's shapes, of any floating dtype and layout.
            arena: ``arena_bytes`` bytes or more.
            times: gets (operations that ran side by side, seconds) in their order.
        """
        external = self._tensors(inputs)
        for piece in self._pieces:
            start = time.perf_counter()
            if piece.steps is None:
                self._call(piece.call, external, arena)
                seconds = [time.perf_counter() - start]
            else:
                dense = [t if t.is_contiguous() and t.dtype in DTYPES else _NOTHING for t in external]
                tensors = [*self._blobs, *dense]
                if times is None:
                    below_autograd(torch.ops.hrnet_fast.run_program, piece.steps, arena, tensors)
                    continue
                nanoseconds = torch.zeros(len(piece.timed), dtype=torch.int64)
                below_autograd(torch.ops.hrnet_fast.time_program, piece.steps, arena, tensors, nanoseconds)
                seconds = (nanoseconds.double() / 1e9).tolist()
            if times is not None:
                times += zip(piece.timed, seconds)
        if self._just_made:
            return [external[k] for k, _, _ in self._made]
        theirs = {t.untyped_storage().data_ptr() for t in (*inputs, *external[: len(inputs)], arena)}
        results = []
        for output in self._plan.outputs.values():
            result = (
                self._view(output, external, arena).contiguous()
                if isinstance(output, Image)
                else self._result(output, external)
            )
            results.append(result.clone() if result.untyped_storage().data_ptr() in theirs else result)
        return results

    def _tensors(self, inputs: list[Tensor]) -> list[Tensor]:
        """All that has memory of its own: the inputs as the kernels take them, and results that they write."""
        external: list[Tensor] = [_NOTHING] * len(self._external)
        if self._plan.normalization is not None:
            inputs = [self._plan.normalization(inputs[0])]
        for k, (buffer, given) in enumerate(zip(self._plan.inputs, inputs, strict=True)):
            to = buffer.dtype(self._dtype) if given.is_floating_point() else given.dtype
            external[k] = given.to(to).contiguous()
        for k, shape, dtype in self._made:
            external[k] = torch.empty(shape, dtype=dtype)
        return external

    def _result(self, output: Buffer, external: list[Tensor]) -> Tensor:
        result = external[self._external[output]]
        return result.to(self._dtype) if output.wide else result

    def _call(self, call: TorchCall, external: list[Tensor], arena: Tensor) -> None:
        def argument(x):
            if isinstance(x, Constant):
                return self._cast(x)
            if not isinstance(x, Value):
                return x
            if x in call.inputs:
                image = self._view(call.inputs[x], external, arena)
                return image if call.call.node.operator in _FOR_IMAGES_AS_THEY_LIE else image.contiguous()
            return external[self._external[self._plan.values[x]]]

        node = call.call.node
        args, kwargs = node.arguments(argument)
        out = node.operator(*args, **kwargs)
        results = out if node.is_list else [out]
        for value, buffer, result in zip(node.outputs, call.outputs, results, strict=True):
            if buffer is not None:
                if result.untyped_storage().data_ptr() == arena.untyped_storage().data_ptr():
                    result = result.clone()  # a view of memory that later steps write to
                if result.dim() == 4 and value.dtype == self._plan.dtype:
                    result = result.to(buffer.dtype(self._dtype)).contiguous()  # the kernels may read it
                external[self._external[buffer]] = result

    def _cast(self, constant: Constant) -> Tensor:
        found = self._casts.get(constant)
        if found is None:
            value = constant.value().detach()
            found = value.to(self._dtype) if value.dtype == self._plan.dtype else value
            self._casts[constant] = found
        return found

    def forget_casts(self) -> None:
        """Drops copies of parameters that torch's operators take; they are made again when they are needed."""
        self._casts.clear()

    def _view(self, image: Image, external: list[Tensor], arena: Tensor) -> Tensor:
        buffer, first = image.buffer, image.first
        if buffer.external:
            return external[self._external[buffer]][:, first : first + image.channels].to(self._dtype)
        n, c, h, w = buffer.shape
        dtype = buffer.dtype(self._dtype)
        start = self._offsets[buffer] // dtype.itemsize + first * h * w
        strides = (c * h * w, h * w, w, 1)
        return arena.view(dtype).as_strided((n, image.channels, h, w), strides, start).to(self._dtype)

    def _address(self, buffer: Buffer, element: int) -> tuple[int, int]:
        offset = element * buffer.dtype(self._dtype).itemsize
        if buffer.external:
            return _FIRST_BLOB + len(self._blobs) + self._external[buffer], offset
        return ARENA, self._offsets[buffer] + offset

    def _planes(self, image: Image) -> list[int]:
        _, c, h, w = image.buffer.shape
        return [self._code(image), image.channels, c * h * w, *self._address(image.buffer, image.first * h * w)]

    def _code(self, image: Image) -> int:
        return DTYPES[image.buffer.dtype(self._dtype)]

    def _constant(self, packed: Packed | None) -> tuple[int, int]:
        if packed is None:
            return NOWHERE
        index, start = self._places[packed]
        return _FIRST_BLOB + index, start

    def _convolution(self, op: Convolution, packed: tuple) -> list[int]:
        (h, w), n, c_out = op.sources[0].size, op.output.buffer.shape[0], op.output.channels
        weight, bias, border = packed
        # the numbers of a residual that is not there must still make sense
        residual = [*self._planes(op.output)[:3], *NOWHERE] if op.residual is None else self._planes(op.residual)
        return [
            op.algorithm,
            weight.algorithm,
            n,
            h,
            w,
            c_out,
            op.kernel,
            op.stride,
            op.relu_from,
            len(op.sources),
            *(word for source in op.sources for word in self._planes(source)),
            *self._planes(op.output),
            *residual,
            *self._constant(weight),
            *self._constant(bias),
            *self._constant(border),
        ]

    def _exchange(self, op: Exchange, packed: tuple) -> list[int]:
        bias, projection, projection_bias, *matrices = packed
        n, _, h, w = op.output.buffer.shape
        words = [
            self._code(op.output),
            MODES[op.mode, op.align_corners],
            int(op.relu),
            n,
            h,
            w,
            op.channels,
            len(op.inputs),
        ]
        for (image, _), matrix in zip(op.inputs, matrices, strict=True):
            words += [*image.size, *self._planes(image), *self._constant(matrix)]
        projected = 0 if op.projection is None else op.output.channels
        return [
            *words,
            *self._constant(bias),
            projected,
            *self._constant(projection),
            *self._constant(projection_bias),
            *self._planes(op.output),
        ]
