"""The registry: every named case, on CPUs and GPUs. Inputs and weights come from a seed, the same for everyone."""

import fnmatch
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import contenders as others
from benchmarks import parts
from hrnet_fast.bench import networks
from hrnet_fast.bench.contenders import (
    CHANNELS_LAST,
    COMPILED,
    EAGER,
    FAST,
    FAST_COMPILED,
    FOLDED,
    OPTIMIZED,
    Bound,
    Problem,
)
from hrnet_fast.bench.images import NOISE
from hrnet_fast.bench.measure import Case
from hrnet_fast.bench.plain_forms import cast
from hrnet_fast.models import randomize
from hrnet_fast.nn import ExchangeUnit, PlainExchangeUnit, PlainSegmentationHead, SegmentationHead
from hrnet_fast.tolerances import MODEL, OPERATOR

SEED = 2
CLASSES = 19  # Cityscapes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
PAPER = "eager, paper's order"
ENGINES = "engines-"  # of the names of cases that compare with other inference engines
DEFAULT = {"": ("float32", "bfloat16"), ENGINES: ("float32", "bfloat16", "int8")}  # dtypes
SLACK = 2.0  # rounding makes some engines miss the tolerance of bfloat16 by a little
NETWORKS = (
    ("w48", "segmentation", (512, 512)),
    ("w18", "segmentation", (512, 512)),
    ("w18", "classification", (224, 224)),  # timm's hrnet_w18
    ("w32", "pose", (256, 192)),
)


@dataclass(frozen=True)
class Part:
    """How a part of HRNet becomes a problem: its plain module of the streams' channels, and the fast one of that."""

    plain: Callable[[list[int]], nn.Module]
    fast: Callable[[nn.Module], nn.Module]
    around: Callable[[nn.Module], nn.Module] | None = None
    same_channels: bool = False  # all streams have those of the first


def _twin(make: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """The fast module that ``make`` creates for a plain one, with its weights and mode."""

    def fast(plain: nn.Module) -> nn.Module:
        made = make(plain).to(next(plain.parameters()).device)
        made.load_state_dict(plain.state_dict())
        return made.train(plain.training).requires_grad_(plain.training)

    return fast


def _head(channels: list[int]) -> nn.Module:
    return PlainSegmentationHead(channels, CLASSES)


_unit_twin = _twin(lambda plain: ExchangeUnit(plain.channels))
PARTS = {
    "exchange": Part(parts.OutputZero, parts.FusedOutputZero),
    "unit": Part(PlainExchangeUnit, _unit_twin),
    "head": Part(_head, _twin(lambda plain: SegmentationHead(plain.channels, CLASSES))),
    "head without classifier": Part(lambda c: parts.WithoutClassifier(_head(c)), parts.FusedWithoutClassifier),
    "conv": Part(lambda c: parts.BasicBlock(c[0]), parts.FusedBasicBlock),
    "backward": Part(lambda c: parts.OutputZero(c, False), parts.FusedOutputZero, parts.Backward, True),
    "train": Part(lambda c: parts.OutputZero(c, False), parts.FusedOutputZero, parts.Step, True),
    "training unit": Part(PlainExchangeUnit, _unit_twin, parts.Step),
}


def streams(channels: Sequence[int], height: int, width: int) -> list[Tensor]:
    """What parallel streams hand to an exchange: [1, channels[j], height / 2^j, width / 2^j], behind a ReLU."""
    generator = torch.Generator().manual_seed(SEED)
    made = [torch.randn(1, c, height >> j, width >> j, generator=generator).relu() for j, c in enumerate(channels)]
    return cast(made, layout=torch.channels_last)


def part_problem(device: torch.device | str, *, part: str, channels: Sequence[int], size: tuple[int, int],
                 dtype: torch.dtype) -> Problem:  # fmt: skip
    """A part of HRNet on random streams of these channels; ``size``: of the first, height and width."""
    kind, channels = PARTS[part], list(channels)
    x = streams([channels[0]] * len(channels) if kind.same_channels else channels, *size)
    plain = randomize(kind.plain(channels), SEED, streams([y.shape[1] for y in x], 64, 64))
    if kind.around is None:
        inputs, plain = (x,), plain.eval()
    else:
        with torch.no_grad():
            outputs = plain.train()(list(x))
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        generator = torch.Generator().manual_seed(SEED)
        inputs = x, [torch.randn(y.shape, generator=generator).to(memory_format=torch.channels_last) for y in outputs]
    problem = Problem(plain.to(device), _to(inputs, device), dtype, kind.fast, kind.around)
    paper = functools.partial(_paper, problem)
    problem.own = {PAPER: paper} if part == "exchange" else {}
    return problem


def _paper(problem: Problem) -> Bound:
    module = parts.PaperOrder([c.in_channels for c in (problem.plain.convs[0], *problem.plain.convs)])
    module.convs = problem.plain.convs
    module = cast(module, problem.dtype, torch.channels_last)
    return Bound(module, problem.at(layout=torch.channels_last))


def _to(value, device: torch.device | str):
    return value.to(device) if isinstance(value, Tensor) else type(value)(_to(item, device) for item in value)


def _part(name: str, what: str, dtype: str, contenders: Sequence[str], baseline: str = FOLDED, tolerances=OPERATOR,
          **options) -> Case:  # fmt: skip
    make = functools.partial(part_problem, dtype=DTYPES[dtype], **options)
    return Case(f"{name}-{dtype}", f"{what}, {dtype}", DTYPES[dtype], make, contenders, baseline, tolerances)


def suite(dtype: str) -> Iterator[Case]:
    """The parts and whole networks on a CPU in a floating-point dtype."""
    exchange, forms = [FOLDED, COMPILED, FAST], [CHANNELS_LAST, FOLDED, COMPILED, FAST]
    training = {"contenders": [CHANNELS_LAST, COMPILED, FAST], "baseline": CHANNELS_LAST, "tolerances": MODEL,
                "size": (128, 128)}  # fmt: skip
    for (h, w), c in itertools.product(((128, 128), (128, 256)), (18, 32, 48)):
        yield _part(f"exchange-c{c}-{h}x{w}", f"exchange, stage 4 output 0, c={c}, {h}x{w}", dtype, exchange,
                    part="exchange", channels=_doubling(c), size=(h, w))  # fmt: skip
    for c in (18, 48):
        yield _part(f"order-c{c}-128x128", f"the paper's order against the official one, c={c}, 128x128", dtype,
                    [PAPER, *exchange], PAPER, part="exchange", channels=_doubling(c), size=(128, 128))  # fmt: skip
    for c, stage in itertools.product((18, 32, 48), (2, 3, 4)):
        yield _part(f"unit-w{c}-stage{stage}", f"exchange unit of stage {stage}, w{c}, 512x512", dtype, forms,
                    part="unit", channels=_doubling(c, stage), size=(128, 128))  # fmt: skip
    for c in (18, 48):
        yield _part(f"head-w{c}-128x128", f"V2 segmentation head, w{c}, 128x128", dtype, forms, part="head",
                    channels=_doubling(c), size=(128, 128))  # fmt: skip
        yield _part(f"backward-c{c}-128x128", f"backward of the exchange, stage 4 output 0, c={c}, 128x128", dtype,
                    part="backward", channels=_doubling(c), **training)  # fmt: skip
        # In half precision even the plain unit's gradients are far off: statistics and ReLUs multiply errors.
        if dtype == "float32":
            what = f"exchange unit of stage 4 in training, forward and backward, w{c}, 512x512"
            yield _part(
                f"training-unit-w{c}-stage4", what, dtype, part="training unit", channels=_doubling(c), **training
            )
    whole = [EAGER, CHANNELS_LAST, FOLDED, COMPILED, FAST_COMPILED, FAST, OPTIMIZED]
    for size, c in itertools.product(((512, 512), (512, 1024)), (18, 32, 48)):
        at = f"{size[0]}x{size[1]}"
        yield networks.network(f"model-w{c}-{at}-{dtype}", f"HRNet-W{c} segmentation, {at}, {dtype}", whole,
                               dtype=DTYPES[dtype], model=f"hrnet_w{c}", task="segmentation", size=size)  # fmt: skip
    whole = [form for form in whole if form != FAST_COMPILED]
    for c, s, n in itertools.product((18, 48), (224, 512), (1, 8)):
        yield networks.drop_in(f"timm-w{c}-{s}x{s}-b{n}-{dtype}",
                               f"timm's hrnet_w{c}, patched, {s}x{s}, batch {n}, {dtype}", whole,
                               dtype=DTYPES[dtype], model=f"hrnet_w{c}", size=(s, s), batch=n)  # fmt: skip


def engine(width: str, task: str, size: tuple[int, int], dtype: str) -> Case:
    """A whole network against other inference engines, each in its best form."""
    at = f"{size[0]}x{size[1]}"
    make = functools.partial(networks.network_problem, model=f"hrnet_{width}", task=task, size=size,
                             dtype=DTYPES[dtype], fold_eager=True, calibrated=dtype == "int8")  # fmt: skip
    return Case(f"{ENGINES}{width}-{task}-{at}-{dtype}", f"HRNet-{width.upper()} {task}, {at}, {dtype}", DTYPES[dtype],
                make, others.ENGINES, slack=SLACK, alone=others.resident_peak)  # fmt: skip


def _doubling(c: int, count: int = 4) -> list[int]:
    return [c << j for j in range(count)]


def cpu(prefix: str = "", dtypes: Sequence[str] | None = None) -> list[Case]:
    """The cases on CPUs: those whose names begin with ENGINES, or the suite."""
    dtypes = DEFAULT[prefix] if dtypes is None else dtypes
    if prefix == ENGINES:
        return [engine(*network, dtype) for network in NETWORKS for dtype in dtypes]
    return [case for dtype in dtypes if dtype != "int8" for case in suite(dtype)]


def contenders_of(prefix: str = "") -> dict[str, None]:
    """All contenders of these cases."""
    return dict.fromkeys(name for case in cpu(prefix) for name in case.contenders)


GPU_PARTS = ("op", "unit", "head", "conv", "model", "train")
GPU_SIZES = {"512x1024": (128, 256), "1024x2048": (256, 512)}  # of the image, and of stream 0
_OF_PART = {"op": "exchange", "head": "head without classifier", "head-classifier": "head"}


def gpu(part: str) -> list[Case]:
    """The cases on GPUs of a part; such as head-classifier-w48-1024x2048-float16."""
    variants, widths = [part], ["w18", "w32", "w48"]
    if part == "head":
        variants = ["head-classifier", "head"]
    if part == "conv":
        variants = [f"conv-stream{k}" for k in range(4)]
    if part in ("conv", "model"):
        widths = ["w48", "w18"]
    return [
        _on_gpu(variant, size, width, dtype)
        for size, width, dtype, variant in itertools.product(GPU_SIZES, widths, ("float16", "bfloat16"), variants)
    ]


def _on_gpu(variant: str, size: str, width: str, dtype: str) -> Case:
    (h, w), c = GPU_SIZES[size], int(width[1:])
    contenders = others.GPU_NETWORKS if variant.startswith(("conv", "model")) else others.GPU_OPERATORS
    tolerances = MODEL if variant.startswith(("conv", "model")) else OPERATOR
    name, what = f"{variant}-{width}-{size}", f"{variant}, {width}, {size}"
    if variant == "model":
        # with the official initialization, as random weights on noise take bfloat16 beyond its tolerance
        return networks.network(
            f"{name}-{dtype}",
            f"{what}, {dtype}",
            contenders,
            dtype=DTYPES[dtype],
            source=NOISE,
            model=f"hrnet_{width}",
            task="segmentation",
            size=(4 * h, 4 * w),
            official=True,
        )
    k = int(variant[-1]) if variant.startswith("conv") else 0
    kind = _OF_PART.get(variant, variant.split("-")[0])
    channels = [c << k] if kind == "conv" else _doubling(c)
    return _part(
        name, what, dtype, contenders, tolerances=tolerances, part=kind, channels=channels, size=(h >> k, w >> k)
    )


def select(patterns: Sequence[str], cases: Sequence[Case]) -> list[Case]:
    """The cases whose names match one of the patterns (as in a shell: ``exchange-*``)."""
    return [case for case in cases if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)]
