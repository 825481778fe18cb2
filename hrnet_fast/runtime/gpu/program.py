"""A network's operations as launches over one arena."""

from collections.abc import Callable

import torch
from torch import Tensor

from hrnet_fast.network.nodes import Constant, Refused, Value
from hrnet_fast.runtime.cpu import memory
from hrnet_fast.runtime.cpu.operations import (
    Buffer,
    Convolution,
    Exchange,
    Image,
    Lowered,
    Operation,
    Reorder,
    TorchCall,
)
from hrnet_fast.runtime.gpu.lower import is_task
from hrnet_fast.runtime.gpu.weights import GroupedWeights, padded

Tensors = dict[Buffer, Tensor]


class GroupedProgram:
    """A network for inputs of one shape.

    Args:
        plan: the lowered network.
        weights: packs what the plan needs and others have not packed already.
        dtype: of images and results: float16, bfloat16 or float32.
        device: of them.
        tf32: whether float32 products may be rounded to TF32.
        interpreted: under TRITON_INTERPRET=1, on the CPU.

    Raises:
        Refused: an image is too large for the kernels' 32-bit offsets.
    """

    def __init__(
        self,
        plan: Lowered,
        weights: GroupedWeights,
        dtype: torch.dtype,
        device: torch.device,
        tf32: bool,
        interpreted: bool = False,
    ):
        self._plan, self._weights, self._dtype, self._device = plan, weights, dtype, device
        self._tf32, self._interpreted = tf32, interpreted
        self._casts: dict[Constant, Tensor] = {}
        self._offsets, self.arena_bytes = memory.place(plan, self._bytes)
        self.launches = [self._launch(step) for step in plan.steps]

    def run(self, inputs: list[Tensor], arena: Tensor) -> list[Tensor]:
        """The values that the caller reads, in new memory, in the order of ``Lowered.outputs``.

        Args:
            inputs: of the plan's shapes, of any floating dtype and layout.
            arena: 1-D, of the network's dtype, ``arena_bytes`` bytes or more.
        """
        if self._plan.normalization is not None:
            inputs = [self._plan.normalization(inputs[0])]
        external: Tensors = dict(zip(self._plan.inputs, inputs, strict=True))
        for launch in self.launches:
            launch(external, arena)
        theirs = {t.untyped_storage().data_ptr() for t in (*inputs, arena)}
        results = []
        for output in self._plan.outputs.values():
            result = self._view(output, external, arena) if isinstance(output, Image) else external[output]
            result = result.to(self._dtype) if result.dtype == self._plan.dtype else result
            kept = result.untyped_storage().data_ptr() in theirs
            results.append(
                result.clone(memory_format=torch.contiguous_format if result.dim() != 4 else torch.channels_last)
                if kept
                else result
            )
        return results

    def forget_casts(self) -> None:
        """Drops copies of parameters that torch's operators take; they are made again when they are needed."""
        self._casts.clear()

    def _bytes(self, buffer: Buffer) -> int:
        n, c, h, w = buffer.shape
        return n * padded(c) * h * w * self._dtype.itemsize

    def _launch(self, step: list[Operation]) -> Callable[[Tensors, Tensor], None]:
        op = step[0]
        if is_task(op):
            return self._grouped(step)
        if isinstance(op, Reorder):
            return lambda external, arena: self._reorder(op, external, arena)
        if isinstance(op, TorchCall):
            return lambda external, arena: self._call(op, external, arena)
        return self._head(op)

    def _grouped(self, step: list[Operation]) -> Callable[[Tensors, Tensor], None]:
        from hrnet_fast.kernels import configurations, grouped_level, taps

        sums = [op for op in step if isinstance(op, Exchange)]
        mode = next(
            (
                taps.mode_number(op.mode, op.align_corners)
                for op in sums
                if any(image.size != op.output.size for image, _ in op.inputs)
            ),
            taps.HALF_PIXEL,
        )
        external = step[0].output.buffer.external
        tiles = configurations.GROUPED_LEVEL[configurations.products(self._dtype, self._tf32)].tiles
        try:
            rows, terms, programs = grouped_level.table([self._task(op) for op in step], tiles, mode)
        except ValueError as error:
            raise Refused(str(error)) from error
        rows, terms = (torch.tensor(x, dtype=torch.int32, device=self._device) for x in (rows, terms))
        constants = grouped_level.constants(self._dtype, self._tf32, mode, external, self._interpreted)
        buffer = step[0].output.buffer

        def launch(tensors: Tensors, arena: Tensor) -> None:
            out = arena
            if external:
                out = tensors[buffer] = self._empty(buffer)
            grouped_level.grouped_level(
                arena, out, self._weights.weights, self._weights.biases, rows, terms, programs, constants
            )

        return launch

    def _task(self, op: Convolution | Exchange):
        from hrnet_fast.kernels.grouped_level import Task, Term

        out, n = self._picture(op.output), op.output.buffer.shape[0]
        kept = op.output.channels
        if isinstance(op, Exchange):
            return Task(out, n, [Term(self._picture(image)) for image, _ in op.inputs], op.relu, kept=kept)
        weights = op.weights[0]
        terms = [
            Term(self._picture(image), self._weights.weight(w)) for image, w in zip(op.sources, weights, strict=True)
        ]
        residual = None if op.residual is None else self._picture(op.residual)
        return Task(
            out, n, terms, op.relu_from == 0, op.kernel, op.stride, self._weights.bias(tuple(weights)), residual, kept
        )

    def _picture(self, image: Image):
        from hrnet_fast.kernels.grouped_level import Picture

        start = 0 if image.buffer.external else self._offsets[image.buffer] // self._dtype.itemsize
        return Picture(start, padded(image.channels), tuple(image.size))

    def _head(self, op: Exchange) -> Callable[[Tensors, Tensor], None]:
        from hrnet_fast.kernels.product_up_sum import product_up_sum

        channels = padded(op.channels)
        wholes = [(image, weight) for image, weight in op.inputs if weight is not None]
        lows = [image for image, weight in op.inputs if weight is None]
        weights = [self._weights.matrix(w, channels, padded(image.channels)) for image, w in wholes]
        buffer = op.output.buffer
        projected = op.output.channels if buffer.external else padded(op.output.channels)
        projection = self._weights.matrix(op.projection, projected, channels)
        bias = self._weights.vector(tuple(w for _, w in wholes), channels) if wholes else None
        projection_bias = self._weights.vector((op.projection,), projected)

        def launch(tensors: Tensors, arena: Tensor) -> None:
            if buffer.external:
                tensors[buffer] = out = self._empty(buffer)
            else:
                out = self._whole(buffer, arena)
            product_up_sum(
                out,
                [self._whole(image.buffer, arena) for image, _ in wholes],
                weights,
                [self._whole(image.buffer, arena) for image in lows],
                bias,
                projection,
                projection_bias,
                mode=op.mode,
                align_corners=op.align_corners,
                relu=op.relu,
                tf32=self._tf32,
                interpreted=self._interpreted,
            )

        return launch

    def _reorder(self, op: Reorder, external: Tensors, arena: Tensor) -> None:
        whole, channels = self._whole(op.output.buffer, arena), op.output.channels
        if whole.shape[1] != channels:
            whole[:, channels:].zero_()  # 0 times what lies there must be 0
        whole[:, :channels].copy_(external[op.source])

    def _call(self, op: TorchCall, external: Tensors, arena: Tensor) -> None:
        def argument(x):
            if isinstance(x, Constant):
                return self._cast(x)
            if not isinstance(x, Value):
                return x
            made = self._view(op.inputs[x], external, arena) if x in op.inputs else external[self._plan.values[x]]
            return made.to(self._dtype) if made.dtype == self._plan.dtype else made

        node = op.call.node
        args, kwargs = node.arguments(argument)
        out = node.operator(*args, **kwargs)
        for buffer, result in zip(op.outputs, out if node.is_list else [out], strict=True):
            if buffer is not None:
                aliases = result.untyped_storage().data_ptr() == arena.untyped_storage().data_ptr()
                external[buffer] = result.clone() if aliases else result  # later steps write to that memory

    def _cast(self, constant: Constant) -> Tensor:
        if constant not in self._casts:
            value = constant.value().detach()
            self._casts[constant] = value.to(self._dtype) if value.dtype == self._plan.dtype else value
        return self._casts[constant]

    def _empty(self, buffer: Buffer) -> Tensor:
        return torch.empty(buffer.shape, dtype=self._dtype, device=self._device, memory_format=torch.channels_last)

    def _view(self, image: Image, external: Tensors, arena: Tensor) -> Tensor:
        if image.buffer.external:
            return external[image.buffer]
        return self._whole(image.buffer, arena)[:, : image.channels]

    def _whole(self, buffer: Buffer, arena: Tensor) -> Tensor:
        """A buffer of the arena with all its channels, [n, padded(c), h, w]."""
        n, c, h, w = buffer.shape
        start = self._offsets[buffer] // self._dtype.itemsize
        return arena[start : start + n * padded(c) * h * w].view(n, h, w, padded(c)).permute(0, 3, 1, 2)
