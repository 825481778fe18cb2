"""The named cases of the suite. Their inputs and weights come from a seed, so that everyone measures the same."""

import copy
import fnmatch
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.exchange_forms import Fused, OfficialOrder, PaperOrder
from hrnet_fast.bench import images, machine, network, report
from hrnet_fast.bench.contenders import (
    CHANNELS_LAST, COMPILED, EAGER, FAST, FOLDED, channels_last, compile_on_first_call, fold_batchnorm,
)  # fmt: skip
from hrnet_fast.bench.harness import Contender, compare
from hrnet_fast.models import randomize
from hrnet_fast.modules import ExchangeUnit, PlainExchangeUnit, PlainSegmentationHead, SegmentationHead
from hrnet_fast.tolerances import OPERATOR

SEED = 2
CLASSES = 19  # Cityscapes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_DTYPES = ("float32", "bfloat16")
PAPER = "eager, paper's order"


@dataclass(frozen=True)
class Case:
    """One thing to measure: ``measure(budget, compiled, progress)`` returns its record."""

    name: str
    description: str
    dtype: str
    baseline: str
    measure: Callable[[float, bool, Callable | None], report.Case]


def all_cases(dtypes: Sequence[str] = DEFAULT_DTYPES) -> list[Case]:
    """Every case of the suite in the given dtypes."""
    cases = []
    for dtype in dtypes:
        for (h, w), c in itertools.product(((128, 128), (128, 256)), (18, 32, 48)):
            cases.append(_exchange("exchange", c, h, w, dtype))
        cases += [_exchange("order", c, 128, 128, dtype) for c in (18, 48)]
        cases += [_unit(c, stage, dtype) for c in (18, 32, 48) for stage in (2, 3, 4)]
        cases += [_head(c, dtype) for c in (18, 48)]
        cases += [_model(c, h, w, dtype) for (h, w), c in itertools.product(((512, 512), (512, 1024)), (18, 32, 48))]
    return cases


def select(patterns: Sequence[str], dtypes: Sequence[str] = DEFAULT_DTYPES) -> list[Case]:
    """The cases whose names match one of the patterns (as in a shell: ``exchange-*``)."""
    return [case for case in all_cases(dtypes) if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)]


def streams(c: int, count: int, height: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """What ``count`` parallel streams hand to an exchange: [1, c * 2^j, height / 2^j, width / 2^j], channels_last."""
    generator = torch.Generator().manual_seed(SEED)
    # behind a ReLU, as in the network
    made = [torch.randn(1, c << j, height >> j, width >> j, generator=generator).relu() for j in range(count)]
    return channels_last([x.to(dtype) for x in made])


def _exchange(kind: str, c: int, h: int, w: int, dtype_name: str) -> Case:
    dtype, channels = DTYPES[dtype_name], [c, 2 * c, 4 * c, 8 * c]
    name = f"{kind}-c{c}-{h}x{w}-{dtype_name}"
    what = "exchange, stage 4 output 0" if kind == "exchange" else "the paper's order against the official one"
    description = f"{what}, c={c}, {h}x{w}, {dtype_name}"

    def measure(budget, compiled, progress):
        inputs = streams(c, 4, h, w, dtype)
        forms = {FOLDED: OfficialOrder, FAST: Fused} if kind == "exchange" else {
            PAPER: PaperOrder, FOLDED: OfficialOrder, FAST: Fused}  # fmt: skip
        modules = {form: channels_last(make(channels, dtype, SEED)) for form, make in forms.items()}
        exact = OfficialOrder(channels, dtype, SEED).double()
        return _compare(name, description, dtype_name, modules, exact, inputs, budget, compiled, progress)

    return Case(name, description, dtype_name, FOLDED if kind == "exchange" else PAPER, measure)


def _unit(c: int, stage: int, dtype_name: str) -> Case:
    channels = [c << j for j in range(stage)]
    return _module_case(
        f"unit-w{c}-stage{stage}-{dtype_name}", f"exchange unit of stage {stage}, w{c}, 512x512, {dtype_name}",
        dtype_name, lambda: PlainExchangeUnit(channels), lambda: ExchangeUnit(channels),
        lambda dtype: streams(c, stage, 128, 128, dtype),
    )  # fmt: skip


def _head(c: int, dtype_name: str) -> Case:
    channels = [c << j for j in range(4)]
    return _module_case(
        f"head-w{c}-128x128-{dtype_name}", f"V2 segmentation head, w{c}, 128x128, {dtype_name}", dtype_name,
        lambda: PlainSegmentationHead(channels, CLASSES), lambda: SegmentationHead(channels, CLASSES),
        lambda dtype: streams(c, 4, 128, 128, dtype),
    )  # fmt: skip


def _module_case(name: str, description: str, dtype_name: str, plain: Callable, fast: Callable, inputs: Callable) -> Case:
    dtype = DTYPES[dtype_name]

    def measure(budget, compiled, progress):
        original = plain().eval()
        randomize(original, SEED)
        quick = fast().eval()
        quick.load_state_dict(original.state_dict())
        # what is compared is the work, so every form gets the weights that BatchNorm was folded into
        folded = fold_batchnorm(original).to(dtype)
        modules = {CHANNELS_LAST: channels_last(copy.deepcopy(original).to(dtype)), FOLDED: channels_last(folded),
                   FAST: channels_last(quick.to(dtype))}  # fmt: skip
        exact = copy.deepcopy(original).double()
        return _compare(name, description, dtype_name, modules, exact, inputs(dtype), budget, compiled, progress)

    return Case(name, description, dtype_name, FOLDED, measure)


def _compare(name: str, description: str, dtype: str, modules: dict[str, nn.Module], exact: nn.Module,
             inputs: list[Tensor], budget: float, compiled: bool, progress: Callable | None) -> report.Case:  # fmt: skip
    for module in modules.values():
        module.eval().requires_grad_(False)
    calls: dict[str, Callable] = {form: _bind(module, inputs) for form, module in modules.items()}
    if compiled:
        calls = {**calls, COMPILED: compile_on_first_call(modules[FOLDED], inputs)}
        calls[FAST] = calls.pop(FAST)  # ours comes last in tables
    with torch.inference_mode():
        reference = exact([x.double() for x in inputs])
    neighbours = machine.Neighbours()
    results = compare([Contender(form, call) for form, call in calls.items()], reference, OPERATOR[DTYPES[dtype]],
                      budget=budget, progress=progress)  # fmt: skip
    busy = neighbours.share()
    entries = report.entries(results)
    for entry in entries:
        entry.gflops = _gflops(modules[FOLDED if entry.name == COMPILED else entry.name], inputs)
    return report.Case(name=name, description=description, dtype=dtype, tolerance=OPERATOR[DTYPES[dtype]],
                       entries=entries, neighbours=busy)  # fmt: skip


def _bind(module: nn.Module, inputs: list[Tensor]) -> Callable:
    return lambda: module(inputs)


def _gflops(module: nn.Module, inputs: list[Tensor]) -> float:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(inputs)
    return counter.get_total_flops() / 2 / 2**30


def _model(c: int, h: int, w: int, dtype_name: str) -> Case:
    name, model = f"model-w{c}-{h}x{w}-{dtype_name}", f"hrnet_w{c}"
    description = f"HRNet-W{c} segmentation, {h}x{w}, {dtype_name}"

    def measure(budget, compiled, progress):
        forms = [EAGER, CHANNELS_LAST, FOLDED, *([COMPILED] if compiled else []), FAST]
        setup = network.Setup(model, dtype=DTYPES[dtype_name], contenders=forms)
        return network.measure(setup, images.load(size=(h, w)), budget=budget, name=name, description=description,
                               progress=progress)  # fmt: skip

    return Case(name, description, dtype_name, CHANNELS_LAST, measure)
