"""A network on the CPU as planned programs: one for each shape of its input, the weights shared."""

import collections
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hrnet_fast import library
from hrnet_fast.engine import graph
from hrnet_fast.engine.constants import Constants
from hrnet_fast.engine.lowering import Normalization, lower
from hrnet_fast.engine.program import DTYPES, Program
from hrnet_fast.engine.tape import record


class Preparation(NamedTuple):
    """What it took to be ready for images of a shape."""

    shape: tuple[int, ...]
    seconds: float
    operations: int  # of the network, BatchNorm and ReLU counted on their own
    steps: int  # that they became


class _Plan(NamedTuple):
    program: Program
    spec: Any  # of what the network returns


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
    """Whether torch's operators may be faster: where the kernels here do not have the instructions that those have.

    In float32 they were slower in every case measured, and in bfloat16 where both multiply pairs of channels; AMX, and
    what may be there for float16, is torch's alone.
    """
    pairs = torch.ops.hrnet_fast.has_bfloat16_pairs() and torch.ops.hrnet_fast.cpu_capability() != "amx"
    return not (dtype == torch.float32 or (dtype == torch.bfloat16 and pairs))


class Planned:
    """The engine for CPUs: a network recorded, fused, laid out in memory and run by C++ kernels, step by step.

    Calls from several threads run one after the other: all plans share one arena.

    Args:
        model: the network, in evaluation.
        dtype: that it computes in.
        max_shapes: plans that are kept, those used last.
        winograd: whether 3x3 convolutions of stride 1 may be computed by Winograd's algorithm.
        normalization: what the network expects of its images and callers have not done.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        max_shapes: int,
        winograd: bool,
        normalization: Normalization | None = None,
    ):
        self._model, self._dtype, self._normalization = model, dtype, normalization
        self._max_shapes, self._winograd = max_shapes, winograd
        self._lock = threading.RLock()
        self.preparations: list[Preparation] = []
        self.is_stale: Callable[[], bool] = lambda: False  # whether the model has other weights than were taken
        self._forget()

    def _forget(self) -> None:
        self._constants = Constants()
        self._plans: collections.OrderedDict[tuple, _Plan] = collections.OrderedDict()
        self._arena = torch.empty(0, dtype=torch.uint8)

    def prepare(self, shape: tuple[int, ...]) -> int:
        """Be ready for images of a shape; returns how many sums over several resolutions were found.

        Raises:
            NotPlannable: the network cannot be recorded or planned.
        """
        # what is made here serves calls outside of inference mode as well
        with torch.inference_mode(False), torch.no_grad():
            return self._prepare(shape)

    def _prepare(self, shape: tuple[int, ...]) -> int:
        start = time.perf_counter()
        like = next((p.dtype for p in self._model.parameters() if p.is_floating_point()), torch.float32)
        tape = record(self._model, shape, like)
        steps = graph.build(tape)
        pairs = self._dtype == torch.bfloat16 and torch.ops.hrnet_fast.has_bfloat16_pairs()
        lowered = lower(tape, steps, self._winograd, pairs, self._normalization)
        program = Program(lowered, self._constants, self._dtype)
        self._constants.commit()
        program.encode()
        if program.arena_bytes > self._arena.numel():
            self._arena = torch.empty(program.arena_bytes, dtype=torch.uint8)
        self._plans[shape] = _Plan(program, tape.spec)
        while len(self._plans) > self._max_shapes:
            self._plans.popitem(last=False)
        seconds = time.perf_counter() - start
        self.preparations.append(Preparation(shape, seconds, len(tape.nodes), len(lowered.steps)))
        return graph.exchanges(steps)

    def __call__(self, image: Tensor) -> Any:
        """What the network returns, for an image [N, C, H, W] of any floating dtype and layout."""
        shape = tuple(image.shape)
        with self._lock, torch.no_grad(), torch.autocast("cpu", enabled=False):
            if shape not in self._plans:
                if self.is_stale():  # some weights are packed, others would be packed now: a mixture
                    raise RuntimeError("the model's weights have changed, and this shape is not prepared: refresh()")
                self.prepare(shape)
            self._plans.move_to_end(shape)
            plan = self._plans[shape]
            return pytree.tree_unflatten(plan.program.run(image.detach(), self._arena), plan.spec)

    def refill(self) -> None:
        """Takes the values that the parameters have now; the parameters are those that were recorded."""
        with self._lock, torch.no_grad():
            self._constants.refill()
            for plan in self._plans.values():
                plan.program.forget_casts()

    def rebuild(self) -> None:
        """Records everything again: parameters or modules were replaced."""
        with self._lock:
            shapes = list(self._plans)
            self._forget()
            for shape in shapes:
                self.prepare(shape)
