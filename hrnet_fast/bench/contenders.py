"""The forms in which a case is computed: plain PyTorch as people run it, the best PyTorch can make of it, ours.

``TABLE`` lists those that the package ships, in the order in which they take turns; benchmarks/contenders.py adds
others.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hrnet_fast.bench.harness import Output
from hrnet_fast.bench.plain_forms import cast, commuted, fold_batchnorm
from hrnet_fast.runtime import optimize

EAGER, CHANNELS_LAST, FOLDED = "eager", "eager channels_last", "eager folded"
COMPILED, FAST, FAST_COMPILED = "torch.compile", "hrnet_fast", "hrnet_fast + torch.compile"
OPTIMIZED, OPTIMIZED_INT8 = "hrnet_fast.optimize", "hrnet_fast.optimize, int8"


@dataclass
class Problem:
    """What all contenders of a case compute. Weights and inputs are float32 numbers that ``dtype`` holds exactly.

    In int8 they are not rounded: every contender finds its own scales, from the images for calibration.
    """

    plain: nn.Module  # in plain PyTorch; rounded here, afterwards nobody changes it
    inputs: tuple  # of its forward: tensors, or lists of tensors
    dtype: torch.dtype  # to compute in
    fast: Callable[[nn.Module], nn.Module]  # the same weights in hrnet_fast's modules
    around: Callable[[nn.Module], nn.Module] | None = None  # makes a step of training of a form of the module
    batch: int = 1  # the first input is repeated so many times
    fold_eager: bool = False  # "eager channels_last" has BatchNorm folded, as other engines have
    calibration: Tensor | None = None  # [M, 3, H, W] float32: other images, for the scales of int8
    own: Mapping[str, Callable[[], Callable]] = field(default_factory=dict)  # contenders of this case alone
    # Of one image: GFLOPs as published, and as ours execute; None: counted by running.
    count: Callable[[], tuple[float, float]] | None = None

    def __post_init__(self):
        if self.dtype == torch.int8 and self.calibration is None:
            raise ValueError("calibration: expected images for int8, got None")
        self.plain = self.plain.requires_grad_(self.around is not None)
        if self.dtype != torch.int8:
            self.plain, self.inputs = (
                self.plain.to(self.dtype).float(),
                cast(cast(self.inputs, self.dtype), torch.float32),
            )

    def at(self, dtype: torch.dtype | None = None, layout: torch.memory_format = torch.contiguous_format) -> tuple:
        """The inputs as a contender gets them."""
        inputs = self.inputs if self.batch == 1 else (self.inputs[0].repeat(self.batch, 1, 1, 1),)
        return cast(inputs, dtype or self.dtype, layout)

    @property
    def image(self) -> Tensor:  # [N, C, H, W] float32, contiguous
        """The input of a network."""
        return self.at(torch.float32)[0]

    def reference(self) -> Output:
        """The outputs in float64. The same image throughout a batch: one pass is enough."""
        plain = self.step(copy.deepcopy(self.plain).double())
        with torch.inference_mode(self.around is None):
            found = plain(*cast(self.inputs, torch.float64))
        return found if self.batch == 1 else _repeated(found, self.batch)

    def step(self, form: nn.Module) -> nn.Module:
        """A form of the module, or the step of training that is made of it."""
        return form if self.around is None else self.around(form)


def _repeated(value: Output, batch: int) -> Output:
    if isinstance(value, Tensor):  # [1, ...]
        return value.expand(batch, *value.shape[1:])
    return [_repeated(item, batch) for item in value]


class Bound:
    """A module with its inputs, as a call without arguments."""

    def __init__(self, module: Callable, inputs: tuple):
        self.module, self.inputs = module, inputs

    def __call__(self) -> Output:
        return self.module(*self.inputs)


class FirstCallPrepares:
    """A contender's call. The first one makes it, so that a failure is the contender's own, and times it."""

    def __init__(self, prepare: Callable[..., Callable], *arguments):
        self._prepare, self._arguments = prepare, arguments
        self.call: Callable[[], Output] | None = None
        self.first_result_seconds: float | None = None

    def __call__(self) -> Output:
        if self.call is not None:
            return self.call()
        start = time.perf_counter()
        with torch.inference_mode(False):  # whose tensors could not be trained with
            call = self._prepare(*self._arguments)
        output = call()
        self.first_result_seconds = time.perf_counter() - start
        self.call, self._arguments = call, ()
        return output

    @property
    def engine(self) -> tuple[str, str | None] | None:
        """Which engine ``optimize`` chose, and why it is not the first; None for other contenders."""
        module = getattr(self.call, "module", None)
        return (module.engine, module.reason) if hasattr(module, "engine") else None


@dataclass(frozen=True)
class Form:
    """One way to compute a problem: ``prepare(problem)`` makes a call of it.

    ``unsupported_reason(dtype)`` says why it cannot run here, None: it can. ``settings`` are variables of the
    environment while it is made and checked. ``needs``: seconds without which making it is not begun.
    """

    prepare: Callable[[Problem], Callable[[], Output]]
    unsupported_reason: Callable[[torch.dtype], str | None]
    ours: bool = False
    dtype: torch.dtype | None = None  # its own, where it is not the case's
    settings: Mapping[str, str] = field(default_factory=dict)
    needs: float = 0.0


def modules(make: Callable[[Problem], nn.Module], layout: torch.memory_format = torch.channels_last) -> Callable:
    """What prepares a module that ``make`` returns (a new one each time) in the problem's dtype and a layout."""

    def prepare(problem: Problem) -> Bound:
        module = cast(make(problem), problem.dtype, layout)
        return Bound(problem.step(module), problem.at(layout=layout))

    return prepare


def plain_copy(problem: Problem) -> nn.Module:
    """The module as it is."""
    return copy.deepcopy(problem.plain)


def folded(problem: Problem) -> nn.Module:
    """With BatchNorm folded, but in training."""
    return plain_copy(problem) if problem.around else fold_batchnorm(problem.plain)


def fast(problem: Problem) -> nn.Module:
    """hrnet_fast's form."""
    return problem.fast(plain_copy(problem))


def compiled(make: Callable[[Problem], nn.Module], mode: str | None = None) -> Callable[[Problem], Bound]:
    """torch.compile in its best form for inference: static shapes, weights frozen into the code and reordered.

    Args:
        make: the module to compile.
        mode: of torch.compile; then weights are not frozen.
    """

    def prepare(problem: Problem) -> Bound:
        from torch._inductor import config

        module, inputs = cast(make(problem), problem.dtype, torch.channels_last), problem.at(layout=torch.channels_last)
        if problem.around is not None or mode is not None:
            return Bound(problem.step(torch.compile(module, dynamic=False, mode=mode)), inputs)
        with config.patch(freezing=True), torch.inference_mode():
            candidate = torch.compile(module, dynamic=False)
            candidate(*inputs)
        return Bound(candidate, inputs)

    return prepare


def best_plain(problem: Problem) -> nn.Module:
    """What torch.compile and other engines get."""
    return plain_copy(problem) if problem.around else commuted(problem.plain)


def optimized(problem: Problem) -> Bound:
    """``optimize`` of the network: for int8 with the images for calibration, and an image in float32."""
    if problem.dtype == torch.int8:
        inputs = problem.at(torch.float32, torch.channels_last)
        return Bound(optimize(plain_copy(problem), *inputs, dtype=torch.int8, calibration=problem.calibration), inputs)
    inputs = problem.at(layout=torch.channels_last)
    return Bound(optimize(plain_copy(problem), *inputs, dtype=problem.dtype), inputs)


def optimized_int8(problem: Problem) -> Bound:
    """``optimize`` in int8 beside contenders in another dtype."""
    return optimized(dataclasses.replace(problem, dtype=torch.int8))


def always(dtype: torch.dtype) -> None:
    """It runs in every dtype."""


def _floating(what: str) -> Callable[[torch.dtype], str | None]:
    return lambda dtype: f"{what} no scales for int8" if dtype == torch.int8 else None


def no_compiler(dtype: torch.dtype) -> str | None:
    """torch.compile needs a C++ compiler, and computes in the network's own dtype."""
    if dtype == torch.int8:
        return "torch.compile does not quantize: torchao does, which is not among the peers"
    from torch._inductor import config, cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return f"torch.compile finds no C++ compiler (tried {config.cpp.cxx})"
    return None


PLAIN, OURS = _floating("plain modules have"), _floating("its modules have")
TABLE: dict[str, Form] = {
    EAGER: Form(modules(plain_copy, torch.contiguous_format), PLAIN),
    CHANNELS_LAST: Form(modules(lambda problem: (folded if problem.fold_eager else plain_copy)(problem)), PLAIN),
    FOLDED: Form(modules(folded), PLAIN),
    COMPILED: Form(compiled(best_plain), no_compiler),
    FAST_COMPILED: Form(compiled(fast), no_compiler, ours=True),
    FAST: Form(modules(fast), OURS, ours=True),
    OPTIMIZED: Form(optimized, always, ours=True),
    OPTIMIZED_INT8: Form(optimized_int8, always, ours=True, dtype=torch.int8),
}


def ours(table: Mapping[str, Form] = TABLE) -> tuple[str, ...]:
    """The names of those contenders that are hrnet_fast."""
    return tuple(name for name, form in table.items() if form.ours)
