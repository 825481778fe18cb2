"""The named cases of the suite. Their inputs and weights come from a seed, so that everyone measures the same."""

import copy
import fnmatch
import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training
from benchmarks.common import DTYPES, SEED, Case, randomize, streams
from benchmarks.exchange_forms import Fused, OfficialOrder, PaperOrder
from hrnet_fast.bench import drop_in, images, machine, network, report
from hrnet_fast.bench.contenders import (
    CHANNELS_LAST,
    COMPILED,
    EAGER,
    FAST,
    FAST_COMPILED,
    FOLDED,
    OPTIMIZED,
    channels_last,
    compile_on_first_call,
    fold_batchnorm,
)  # fmt: skip
from hrnet_fast.bench.harness import Contender, Prepared, compare
from hrnet_fast.nn import ExchangeUnit, PlainExchangeUnit, PlainSegmentationHead, SegmentationHead
from hrnet_fast.tolerances import OPERATOR

CLASSES = 19  # Cityscapes
DEFAULT_DTYPES = ("float32", "bfloat16")
PAPER = "eager, paper's order"


def all_cases(dtypes: Sequence[str] = DEFAULT_DTYPES) -> list[Case]:
    """Every case of the suite in the given dtypes."""
    cases = []
    for dtype in dtypes:
        for (h, w), c in itertools.product(((128, 128), (128, 256)), (18, 32, 48)):
            cases.append(_exchange("exchange", c, h, w, dtype))
        cases += [_exchange("order", c, 128, 128, dtype) for c in (18, 48)]
        cases += [_unit(c, stage, dtype) for c in (18, 32, 48) for stage in (2, 3, 4)]
        cases += [_head(c, dtype) for c in (18, 48)]
        cases += [training.backward(c, dtype) for c in (18, 48)]
        cases += [_model(c, h, w, dtype) for (h, w), c in itertools.product(((512, 512), (512, 1024)), (18, 32, 48))]
        cases += [_timm(c, size, n, dtype) for c, size, n in itertools.product((18, 48), (224, 512), (1, 8))]
    # In half precision even the plain unit's gradients are far off: the batch's statistics and the ReLUs multiply errors.
    cases += [training.unit(c) for c in (18, 48)] if "float32" in dtypes else []
    return cases


def select(patterns: Sequence[str], dtypes: Sequence[str] = DEFAULT_DTYPES) -> list[Case]:
    """The cases whose names match one of the patterns (as in a shell: ``exchange-*``)."""
    return [case for case in all_cases(dtypes) if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)]


def _exchange(kind: str, c: int, h: int, w: int, dtype_name: str) -> Case:
    dtype, channels = DTYPES[dtype_name], [c, 2 * c, 4 * c, 8 * c]
    what = "exchange, stage 4 output 0" if kind == "exchange" else "the paper's order against the official one"
    forms = {FOLDED: OfficialOrder, FAST: Fused}
    if kind == "order":
        forms = {PAPER: PaperOrder, **forms}

    def build():
        modules = {form: make(channels, dtype, SEED) for form, make in forms.items()}
        return modules, OfficialOrder(channels, dtype, SEED), streams(c, 4, h, w, dtype)

    return _module_case(f"{kind}-c{c}-{h}x{w}-{dtype_name}", f"{what}, c={c}, {h}x{w}, {dtype_name}", dtype_name,
                        FOLDED if kind == "exchange" else PAPER, build)  # fmt: skip


def _unit(c: int, stage: int, dtype_name: str) -> Case:
    channels = [c << j for j in range(stage)]

    def build():
        return _forms(
            PlainExchangeUnit(channels), ExchangeUnit(channels), streams(c, stage, 128, 128, DTYPES[dtype_name])
        )

    return _module_case(f"unit-w{c}-stage{stage}-{dtype_name}",
                        f"exchange unit of stage {stage}, w{c}, 512x512, {dtype_name}",
                        dtype_name, FOLDED, build)  # fmt: skip


def _head(c: int, dtype_name: str) -> Case:
    channels = [c << j for j in range(4)]

    def build():
        return _forms(PlainSegmentationHead(channels, CLASSES), SegmentationHead(channels, CLASSES),
                      streams(c, 4, 128, 128, DTYPES[dtype_name]))  # fmt: skip

    return _module_case(f"head-w{c}-128x128-{dtype_name}", f"V2 segmentation head, w{c}, 128x128, {dtype_name}",
                        dtype_name, FOLDED, build)  # fmt: skip


def _forms(plain: nn.Module, fast: nn.Module, inputs: list[Tensor]):
    """A module of the network as people run it, with BatchNorm folded, and ours, all from the same weights."""
    plain = randomize(plain.eval())
    fast.load_state_dict(plain.state_dict())
    dtype = inputs[0].dtype
    modules = {
        CHANNELS_LAST: copy.deepcopy(plain).to(dtype),
        FOLDED: fold_batchnorm(plain).to(dtype),
        FAST: fast.to(dtype),
    }
    return modules, plain, inputs


def _module_case(name: str, description: str, dtype: str, baseline: str, build: Callable) -> Case:
    """A case from ``build() -> (contender -> module, the exact module, inputs)``."""

    def make(compiled: bool) -> tuple[dict[str, nn.Module], list[Tensor], Prepared]:
        modules, exact, inputs = build()
        for module in modules.values():
            channels_last(module.eval().requires_grad_(False))
        with torch.inference_mode():
            reference = copy.deepcopy(exact).to(DTYPES[dtype]).double()([x.double() for x in inputs])
        contenders = [Contender(form, functools.partial(module, inputs)) for form, module in modules.items()]
        if compiled:  # ours comes last in tables
            modules[COMPILED] = modules[FOLDED]
            contenders.insert(-1, Contender(COMPILED, compile_on_first_call(modules[FOLDED], inputs)))
        return modules, inputs, Prepared(contenders, reference, OPERATOR[DTYPES[dtype]])

    def measure(budget, compiled, progress):
        modules, inputs, prepared = make(compiled)
        neighbours = machine.Neighbours()
        results = compare(prepared, budget=budget, progress=progress)
        busy = neighbours.share()
        entries = report.entries(results)
        for entry in entries:
            entry.gflops = _gflops(modules[entry.name], inputs)
        return report.Case(name=name, description=description, dtype=dtype, tolerance=prepared.tolerance,
                           entries=entries, neighbours=busy)  # fmt: skip

    return Case(name, description, dtype, baseline, lambda: make(False)[2], measure)


def _gflops(module: nn.Module, inputs: list[Tensor]) -> float:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(inputs)
    return counter.get_total_flops() / 2 / 2**30


def _model(c: int, h: int, w: int, dtype_name: str) -> Case:
    name, description = f"model-w{c}-{h}x{w}-{dtype_name}", f"HRNet-W{c} segmentation, {h}x{w}, {dtype_name}"

    def setup(compiled: bool) -> network.Setup:
        forms = [EAGER, CHANNELS_LAST, FOLDED, *([COMPILED, FAST_COMPILED] if compiled else []), FAST, OPTIMIZED]
        return network.Setup(f"hrnet_w{c}", dtype=DTYPES[dtype_name], contenders=forms)

    def prepare():
        return network.prepare(setup(False), images.load(size=(h, w)))

    def measure(budget, compiled, progress):
        return network.measure(setup(compiled), images.load(size=(h, w)), budget=budget, name=name,
                               description=description, progress=progress)  # fmt: skip

    return Case(name, description, dtype_name, CHANNELS_LAST, prepare, measure)


def _timm(c: int, size: int, batch: int, dtype_name: str) -> Case:
    name = f"timm-w{c}-{size}x{size}-b{batch}-{dtype_name}"
    description = f"timm's hrnet_w{c}, patched, {size}x{size}, batch {batch}, {dtype_name}"

    def setup(compiled: bool) -> drop_in.Setup:
        contenders = [EAGER, CHANNELS_LAST, FOLDED, *([COMPILED] if compiled else []), FAST, OPTIMIZED]
        return drop_in.Setup(f"hrnet_w{c}", DTYPES[dtype_name], batch, contenders)

    def prepare():
        return drop_in.prepare(setup(False), images.load(size=(size, size)))

    def measure(budget, compiled, progress):
        return drop_in.measure(setup(compiled), images.load(size=(size, size)), budget=budget, name=name,
                               description=description, progress=progress)  # fmt: skip

    return Case(name, description, dtype_name, CHANNELS_LAST, prepare, measure)
