"""A lowered network as a program for the C++ kernels, with torch's operators between its parts where there are any."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hrnet_fast.engine import memory
from hrnet_fast.engine.constants import Constants
from hrnet_fast.engine.lowering import Buffer, Convolution, Exchange, Image, Lowered, TorchCall
from hrnet_fast.engine.tape import Constant, Value

# what csrc/cpu/program.cpp reads
_CONVOLUTIONS, _EXCHANGE = 1, 2
DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
_MODES = {("nearest", False): 0, ("bilinear", False): 1, ("bilinear", True): 2}
_ARENA, _FIRST_BLOB = 0, 1
_NOWHERE = (-1, 0)


@dataclass
class Piece:
    """Steps of the kernels, [n] int64; or one operator of torch's."""

    steps: Tensor | None
    call: TorchCall | None


class Program:
    """A network for images of one shape.

    Args:
        plan: the lowered network.
        constants: gets the weights; they are filled by ``constants.commit``.
        dtype: of the images and of the results.
    """

    def __init__(self, plan: Lowered, constants: Constants, dtype: torch.dtype):
        self._plan, self._constants, self._dtype = plan, constants, dtype
        self._keys: dict[int, Any] = {}  # of each operation: where its constants will lie
        self._casts: dict[Constant, Tensor] = {}
        self._offsets, self.arena_bytes = memory.place(plan, dtype)
        self._external = self._externals()
        for step in plan.steps:
            for op in step:
                self._note(op)
        self._pieces: list[Piece] | None = None

    def _externals(self) -> dict[Buffer, int]:
        found: dict[Buffer, int] = {self._plan.image: 0}
        for step in self._plan.steps:
            for op in step:
                outputs = op.outputs if isinstance(op, TorchCall) else [op.output.buffer]
                for buffer in outputs:
                    if buffer is not None and buffer.external:
                        found[buffer] = len(found)
        return found

    def _note(self, op) -> None:
        if isinstance(op, Convolution):
            self._keys[id(op)] = self._constants.convolution(op)
        elif isinstance(op, Exchange):
            dtype = op.output.buffer.dtype(self._dtype)
            matrices = [None if w is None else self._constants.matrix(w, dtype) for _, w in op.inputs]
            projection = op.projection
            self._keys[id(op)] = (
                matrices,
                self._constants.exchange_bias(op, dtype),
                None if projection is None else self._constants.matrix(projection, dtype),
                None if projection is None else self._constants.vector([projection], dtype),
            )

    def encode(self) -> None:
        """Writes the program; the constants must have their places."""
        pieces: list[Piece] = []
        words: list[int] = []
        self._blobs = len(self._constants.blobs)
        for step in self._plan.steps:
            if isinstance(step[0], TorchCall):
                if words:
                    pieces.append(Piece(torch.tensor(words, dtype=torch.int64), None))
                    words = []
                pieces.append(Piece(None, step[0]))
                continue
            convolutions = isinstance(step[0], Convolution)
            body = [len(step)] + [w for op in step for w in self._convolution(op)] if convolutions else (
                self._exchange(step[0]))  # fmt: skip
            words += [_CONVOLUTIONS if convolutions else _EXCHANGE, len(body), *body]
        if words:
            pieces.append(Piece(torch.tensor(words, dtype=torch.int64), None))
        self._pieces = pieces

    def run(self, image: Tensor, arena: Tensor) -> list[Tensor]:
        """The network's results, in new memory, for an image of the plan's shape, of any floating dtype and layout."""
        blobs = self._constants.blobs[: self._blobs]
        nothing = image.new_empty(0)
        external: list[Tensor] = [nothing] * len(self._external)
        if self._plan.normalization is not None:
            image = self._plan.normalization(image)
        external[0] = image.to(self._plan.image.dtype(self._dtype)).contiguous()
        for output in self._plan.outputs:
            if isinstance(output, Image) and output.buffer.external:
                buffer = output.buffer
                external[self._external[buffer]] = torch.empty(buffer.shape, dtype=buffer.dtype(self._dtype))
        for piece in self._pieces:
            if piece.steps is not None:
                dense = [t if t.is_contiguous() and t.dtype in DTYPES else nothing for t in external]
                torch.ops.hrnet_fast.run_program(piece.steps, arena, [*blobs, *dense])
            else:
                self._call(piece.call, external, arena)
        return [
            image.to(self._dtype, copy=True) if output is None
            else self._view(output, external, arena) if isinstance(output, Image)
            else self._result(output, external)
            for output in self._plan.outputs
        ]  # fmt: skip

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
                return self._view(call.inputs[x], external, arena)
            return external[self._external[self._plan.values[x]]]

        node = call.call.node
        args, kwargs = pytree.tree_map_only((Constant, Value), argument, node.arguments)
        if node.operator._schema.is_mutable:  # others may read what it writes into
            args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        out = node.operator(*args, **kwargs)
        for buffer, result in zip(call.outputs, out if node.is_list else [out], strict=True):
            if buffer is not None:
                if result.untyped_storage().data_ptr() == arena.untyped_storage().data_ptr():
                    result = result.clone()  # a view of memory that later steps write to
                if result.dim() == 4 and result.is_floating_point():
                    result = result.to(buffer.dtype(self._dtype)).contiguous()  # the kernels may read it
                external[self._external[buffer]] = result

    def _cast(self, constant: Constant) -> Tensor:
        found = self._casts.get(constant)
        if found is None:
            value = constant.value().detach()
            found = value.to(self._dtype) if value.is_floating_point() else value
            self._casts[constant] = found
        return found

    def forget_casts(self) -> None:
        """Drops copies of parameters that torch's operators take; they are made again from those of now."""
        self._casts.clear()

    def _view(self, image: Image, external: list[Tensor], arena: Tensor) -> Tensor:
        buffer = image.buffer
        if buffer.external:
            whole = external[self._external[buffer]]
        else:
            n, c, h, w = buffer.shape
            dtype = buffer.dtype(self._dtype)
            start = self._offsets[buffer]
            whole = arena[start : start + n * c * h * w * dtype.itemsize].view(dtype).view(buffer.shape)
        return whole[:, image.first : image.first + image.channels].to(self._dtype).contiguous()

    def _address(self, buffer: Buffer, element: int) -> tuple[int, int]:
        offset = element * buffer.dtype(self._dtype).itemsize
        if buffer.external:
            return _FIRST_BLOB + self._blobs + self._external[buffer], offset
        return _ARENA, self._offsets[buffer] + offset

    def _planes(self, image: Image) -> list[int]:
        _, c, h, w = image.buffer.shape
        return [self._code(image), image.channels, c * h * w, *self._address(image.buffer, image.first * h * w)]

    def _code(self, image: Image) -> int:
        return DTYPES[image.buffer.dtype(self._dtype)]

    def _constant(self, key: tuple | None) -> tuple[int, int]:
        if key is None:
            return _NOWHERE
        entry = self._constants.place(key)
        return _FIRST_BLOB + entry.blob, entry.offset

    def _convolution(self, op: Convolution) -> list[int]:
        (h, w), n, c_out = op.sources[0].size, op.output.buffer.shape[0], op.output.channels
        weight, bias, border = self._keys[id(op)]
        # the numbers of a residual that is not there must still make sense
        residual = [*self._planes(op.output)[:3], *_NOWHERE] if op.residual is None else self._planes(op.residual)
        return [
            op.algorithm, n, h, w, c_out, op.kernel, op.stride, op.relu_from, len(op.sources),
            *(word for source in op.sources for word in self._planes(source)), *self._planes(op.output),
            *residual, *self._constant(weight), *self._constant(bias), *self._constant(border),
        ]  # fmt: skip

    def _exchange(self, op: Exchange) -> list[int]:
        matrices, bias, projection, projection_bias = self._keys[id(op)]
        n, _, h, w = op.output.buffer.shape
        words = [self._code(op.output), _MODES[op.mode, op.align_corners], int(op.relu), n, h, w, op.channels,
                 len(op.inputs)]  # fmt: skip
        for (image, _), matrix in zip(op.inputs, matrices, strict=True):
            words += [*image.size, *self._planes(image), *self._constant(matrix)]
        projected = 0 if op.projection is None else op.output.channels
        return [*words, *self._constant(bias), projected, *self._constant(projection), *self._constant(projection_bias),
                *self._planes(op.output)]  # fmt: skip
