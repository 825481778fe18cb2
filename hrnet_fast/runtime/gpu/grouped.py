"""The GPU program of a network: one plan for each shape of its inputs, weights and memory shared."""

import torch
from torch import Tensor

from hrnet_fast.network.nodes import Graph
from hrnet_fast.network.sums import Step
from hrnet_fast.ops.backends import gpu, triton
from hrnet_fast.runtime.gpu.lower import lower
from hrnet_fast.runtime.gpu.program import GroupedProgram
from hrnet_fast.runtime.gpu.weights import GroupedWeights
from hrnet_fast.runtime.normalization import Normalization


def why_not(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why no network can run as grouped launches with this dtype and on this device; None where one can."""
    if device.type != "cuda":
        return f"grouped launches are for GPUs, and this is {device}"
    if dtype not in gpu.DTYPES:
        return f"grouped launches compute in float16, bfloat16 or float32, not in {dtype}"
    return triton.why_not_machine(device)


class Grouped:
    """Plans networks as grouped launches; what it has planned shares weights and one arena.

    The arena serves one call at a time: the caller sees to that.

    Args:
        dtype: of images and results.
        device: of the model.
        normalization: what the network expects of its images and callers have not done.
        interpreted: under TRITON_INTERPRET=1, on the CPU: for tests.
    """

    name = "grouped"

    def __init__(
        self, dtype: torch.dtype, device: torch.device, normalization: Normalization | None, interpreted: bool = False
    ):
        self._dtype, self._device, self._normalization, self._interpreted = dtype, device, normalization, interpreted
        self.weights = GroupedWeights(dtype, device)
        self._arena = torch.empty(0, dtype=dtype, device=device)

    def prepare(self, graph: Graph, steps: list[Step]) -> "GroupedPlan":
        """A network for inputs of the shapes that it was recorded with.

        Raises:
            Refused: it cannot be planned.
        """
        tf32 = self._dtype == torch.float32 and torch.backends.cudnn.allow_tf32
        # the head's kernel multiplies on tensor cores alone
        lowered = lower(graph, steps, tf32 or self._dtype.itemsize == 2, self._normalization)
        program = GroupedProgram(lowered, self.weights, self._dtype, self._device, tf32, self._interpreted)
        self.arena(program.arena_bytes)
        return GroupedPlan(self, program, self._dtype)

    def arena(self, size: int) -> Tensor:
        """At least so many bytes, the same ones for all plans."""
        if size > self._arena.numel() * self._arena.element_size():
            self._arena = torch.empty(-(-size // self._dtype.itemsize), dtype=self._dtype, device=self._device)
        return self._arena

    def poison(self) -> None:
        """Fills the arena with NaN: a program must write what it reads."""
        self._arena.fill_(float("nan"))

    def places(self) -> tuple[int, ...]:
        """Where memory lies that captured graphs refer to: with other memory they must be captured again."""
        return tuple(t.data_ptr() for t in (self._arena, self.weights.weights, self.weights.biases))

    def refill(self) -> None:
        """Takes the values that the parameters have at this moment; they are the tensors that were recorded."""
        self.weights.refill()

    def memory(self) -> tuple[int, int]:
        """Bytes of the arena and of packed weights."""
        return self._arena.numel() * self._arena.element_size(), self.weights.total_bytes()


class GroupedPlan:
    """A network for inputs of given shapes, ready to run.

    Args:
        owner: has its memory.
        program: what runs.
        products: the dtype in which convolutions multiply.
    """

    def __init__(self, owner: Grouped, program: GroupedProgram, products: torch.dtype):
        self._owner, self._program, self.products = owner, program, products
        self.steps = len(program.launches)

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """The graph's ``outputs()`` for the network's inputs, in new memory."""
        return self._program.run(inputs, self._owner.arena(self._program.arena_bytes))

    def refill(self) -> None:
        """Forgets copies of parameters."""
        self._program.forget_casts()
