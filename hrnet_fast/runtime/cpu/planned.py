"""The CPU program of a network: one plan for each shape of its inputs, weights and memory shared."""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor

from hrnet_fast.network.integers import Factor
from hrnet_fast.network.nodes import Graph, Refused
from hrnet_fast.network.sums import Step, Weight
from hrnet_fast.ops import library
from hrnet_fast.runtime.cpu import tiled_steps
from hrnet_fast.runtime.cpu.encode import DTYPES, Program
from hrnet_fast.runtime.cpu.operations import Lowered
from hrnet_fast.runtime.cpu.packed_weights import PackedWeights
from hrnet_fast.runtime.cpu.profile import Profile
from hrnet_fast.runtime.cpu.steps import lower
from hrnet_fast.runtime.cpu.tiled_encode import TiledProgram
from hrnet_fast.runtime.normalization import Normalization


def why_not(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why no network can be planned for this dtype and device; None where one can."""
    if library.extension_error is not None:
        return library.extension_error
    if device.type != "cpu":
        return f"planned programs are for the CPU, and this is {device}"
    if dtype not in DTYPES:
        return f"planned programs compute in float32, bfloat16 or float16, not in {dtype}"
    return torch.ops.hrnet_fast.why_not_program() or None


def is_in_doubt(dtype: torch.dtype) -> bool:
    """Whether torch's operators may be faster than programs on planes: where these lack instructions that torch has.

    In float32 they were slower in every case measured, and in bfloat16 where both multiply pairs of channels; AMX, and
    what may be there for float16, is torch's alone.
    """
    return not (dtype == torch.float32 or (dtype == torch.bfloat16 and has_pairs()))


def has_tiles() -> bool:
    """Whether networks in bfloat16 are computed by products of tiles: AMX, on ARM the instructions for matrices."""
    return torch.ops.hrnet_fast.has_tiles()


def has_pairs() -> bool:
    """Whether bfloat16 channels are multiplied in pairs, and not by tiles: faster than float32."""
    return torch.ops.hrnet_fast.has_bfloat16_pairs() and torch.ops.hrnet_fast.cpu_capability() != "amx"


def why_not_bytes() -> str | None:
    """Why convolutions cannot multiply bytes on this CPU; None where they can."""
    return None if torch.ops.hrnet_fast.has_bytes() else "int8 needs AVX2, AVX-VNNI, AVX512-VNNI, AMX or NEON"


class Planned:
    """Plans networks for the kernels; what it has planned shares weights and one arena.

    The arena serves one call at a time: the caller sees to that.

    Args:
        dtype: of the results, and of the images where nothing else is asked for.
        winograd: whether 3x3 convolutions of stride 1 may be computed by Winograd's algorithm.
        normalization: what the network expects of its images and callers have not done.
    """

    name = "planned"

    def __init__(self, dtype: torch.dtype, winograd: bool, normalization: Normalization | None):
        self._dtype, self._winograd, self._normalization = dtype, winograd, normalization
        self._weights = PackedWeights()
        self._arena = torch.empty(0, dtype=torch.uint8)

    def prepare(
        self,
        graph: Graph,
        steps: list[Step],
        products: torch.dtype | None = None,
        factors: Mapping[Weight, Factor] | None = None,
    ) -> "Plan":
        """A network for inputs of the shapes that it was recorded with.

        Args:
            graph: the recorded network.
            steps: what the passes made of it.
            products: in which convolutions multiply: the dtype of the results (None), or another one where there are
                kernels on tiles for it: bfloat16, int8.
            factors: for int8: what each weight multiplies that is to be multiplied in bytes.

        Raises:
            Refused: it cannot be planned.
        """
        products = products or self._dtype
        if products == torch.int8:
            return self._tiled(graph, steps, products, factors)
        if products == torch.bfloat16 and has_tiles():
            with contextlib.suppress(Refused):
                return self._tiled(graph, steps, products, None)
        pairs = self._dtype == torch.bfloat16 and torch.ops.hrnet_fast.has_bfloat16_pairs()
        lowered = lower(graph, steps, self._winograd, pairs, self._normalization, self._weights.has)
        program = Program(lowered, self._weights, self._dtype)
        return Plan(self, program, lowered, self._dtype, is_in_doubt(self._dtype))

    def _tiled(self, graph: Graph, steps: list[Step], products: torch.dtype, factors: Mapping | None) -> "Plan":
        lowered = tiled_steps.lower(graph, steps, self._normalization, factors)
        return Plan(self, TiledProgram(lowered, self._weights, self._dtype), lowered, products, False)

    def arena(self, size: int) -> Tensor:
        """At least so many bytes, the same ones for all plans."""
        if size > self._arena.numel():
            self._arena = torch.empty(size, dtype=torch.uint8)
        return self._arena

    def refill(self) -> None:
        """Takes the values that the parameters have at this moment; they are the tensors that were recorded."""
        self._weights.refill()

    def memory(self) -> tuple[int, int]:
        """Bytes of the arena and of packed weights."""
        return self._arena.numel(), self._weights.total_bytes()


class Plan:
    """A network for inputs of given shapes, ready to run.

    Args:
        owner: has its memory.
        program: what runs.
        lowered: what it was made of.
        products: the dtype in which convolutions multiply.
        in_doubt: whether torch's operators may be faster.
    """

    def __init__(self, owner: Planned, program: Program, lowered: Lowered, products: torch.dtype, in_doubt: bool):
        self._owner, self._program, self.products, self.in_doubt = owner, program, products, in_doubt
        self.steps, self.kernels = len(lowered.steps), lowered.kernels()

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """The graph's ``outputs()`` for the network's inputs, in new memory."""
        return self._program.run(inputs, self._owner.arena(self._program.arena_bytes))

    def profile(self, inputs: list[Tensor], repeat: int) -> Profile:
        """What each operation takes, the median of ``repeat`` runs after one that warms the caches."""
        samples: list[list] = [[] for _ in range(repeat + 1)]
        for times in samples:
            self._program.run(inputs, self._owner.arena(self._program.arena_bytes), times)
        return Profile.of(samples[1:])

    def refill(self) -> None:
        """Forgets copies of parameters."""
        self._program.forget_casts()
