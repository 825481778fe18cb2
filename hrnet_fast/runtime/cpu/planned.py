"""The CPU program of a network: one plan for each shape of its inputs, weights and memory shared."""

import contextlib
import functools
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from hrnet_fast.network.integers import Factor
from hrnet_fast.network.nodes import Graph, Refused
from hrnet_fast.network.sums import Step, Weight
from hrnet_fast.ops import library
from hrnet_fast.runtime.cpu import rates, tiled_steps
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


def has_tiles() -> bool:
    """Whether networks in bfloat16 are computed by products of tiles: AMX, on ARM the instructions for matrices."""
    return torch.ops.hrnet_fast.has_tiles()


def form(dtype: torch.dtype) -> str:
    """How networks of a dtype are computed here, the fastest way.

    "tiles": products of tiles; "pairs": of pairs of bfloat16 channels; "half": images in the dtype, products in
    float32; "float32": everything.
    """
    return rates.best(milliseconds_of_forms(dtype)) if dtype != torch.float32 else "float32"


def milliseconds_of_forms(dtype: torch.dtype) -> dict[str, float]:
    """What each form takes that bfloat16 or float16 can have here, for a small network."""
    forms = ["half", "float32"]
    if dtype == torch.bfloat16:
        forms[:0] = ["tiles"] * has_tiles() + ["pairs"] * torch.ops.hrnet_fast.has_bfloat16_pairs()

    def make(form: str, graph: Graph, steps: list[Step]) -> Plan:
        return Planned(dtype, True, None, form).prepare(graph, steps)

    what = f"{str(dtype).removeprefix('torch.')}; {torch.ops.hrnet_fast.cpu_capability()}"
    return rates.of_this_machine().of(what, {form: functools.partial(make, form) for form in forms})


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
        form: how it is computed; None: the fastest way (``form``).
    """

    name = "planned"

    def __init__(
        self, dtype: torch.dtype, winograd: bool, normalization: Normalization | None, form: str | None = None
    ):
        self._dtype, self._winograd, self._normalization = dtype, winograd, normalization
        self._form = form
        self._weights = PackedWeights()
        self._programs: weakref.WeakSet[Program] = weakref.WeakSet()
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
        if products == torch.int8:
            return self._tiled(graph, steps, products, factors)
        if self._form is None:
            self._form = form(self._dtype)
        if self._form == "tiles" or products == torch.bfloat16:
            with contextlib.suppress(Refused):
                return self._tiled(graph, steps, torch.bfloat16, None)
        images = torch.float32 if self._form == "float32" else self._dtype
        lowered = lower(graph, steps, self._winograd, self._form == "pairs", self._normalization, self._weights.has)
        program = Program(lowered, self._weights, images)
        self._programs.add(program)
        outgrown = self._weights.outgrown()
        for other in self._programs:
            if any(map(other.reads, outgrown)):
                other.encode()
        return Plan(self, program, lowered, self._dtype, self._form)

    def _tiled(self, graph: Graph, steps: list[Step], products: torch.dtype, factors: Mapping | None) -> "Plan":
        lowered = tiled_steps.lower(graph, steps, self._normalization, factors)
        return Plan(self, TiledProgram(lowered, self._weights, self._dtype), lowered, products, "tiles")

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
        form: how it is computed.

    Attributes:
        in_doubt: whether torch's operators may be faster: the CPU may have instructions for them that programs lack.
    """

    def __init__(self, owner: Planned, program: Program, lowered: Lowered, products: torch.dtype, form: str):
        self._owner, self._program, self.products = owner, program, products
        self.in_doubt = products != torch.float32 and form in ("half", "float32")
        self._form = form
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

    @property
    def reason(self) -> str | None:
        """Why it is computed in another dtype than the network's; None where it is not."""
        if not self.in_doubt or self._form != "float32":
            return None
        ms = milliseconds_of_forms(self.products)
        said = ", ".join(f"{form} {ms[form]:.2f} ms" for form in ms)
        return f"in {self.products} it runs in float32 inside, which was measured to be faster here: {said}"

    def refill(self) -> None:
        """Forgets copies of parameters."""
        self._program.forget_casts()
