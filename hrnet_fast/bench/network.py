"""A whole network on one image: plain PyTorch in its forms against hrnet_fast, agreement, latency, memory, shares."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hrnet_fast import create_model
from hrnet_fast.bench import BadInput, machine, report
from hrnet_fast.bench import contenders as forms
from hrnet_fast.bench.harness import Contender, Prepared, compare
from hrnet_fast.bench.memory import peak_bytes
from hrnet_fast.bench.shares import shares
from hrnet_fast.bench.variation import variation
from hrnet_fast.models import multiply_adds, randomize
from hrnet_fast.nn import PlainExchangeUnit, PlainHRFPN, PlainSegmentationHead
from hrnet_fast.tolerances import MODEL

GROUPS = {"exchange units": (PlainExchangeUnit,), "head": (PlainSegmentationHead, PlainHRFPN)}
# Of each task the network that people run most, and its official size (height, width) at test time; None: the image's
# own size. Detection: 800 pixels, the longer side at most 1333, padded to multiples of 32.
DEFAULTS: dict[str, tuple[str, tuple[int, int] | None]] = {
    "segmentation": ("hrnet_w48", None),
    "segmentation_ocr": ("hrnet_w48", None),
    "classification": ("hrnet_w18", (224, 224)),
    "pose": ("hrnet_w32", (256, 192)),
    "detection": ("hrnet_w32", (800, 1344)),
    "features": ("hrnet_w18", (224, 224)),  # timm's
}


@dataclass(frozen=True)
class Setup:
    """A network, and how it is to be measured."""

    model: str
    task: str = "segmentation"
    dtype: torch.dtype = torch.float32
    batch: int = 1
    checkpoint: str | None = None  # None: random weights, the same on every machine
    contenders: Sequence[str] = (forms.EAGER, forms.CHANNELS_LAST, forms.FAST, forms.OPTIMIZED)
    memory: bool = True


def prepare(setup: Setup, image: Tensor, plain: nn.Module | None = None) -> Prepared:
    """The contenders of a network on an image [1, 3, H, W] float32, and the float64 reference.

    The reference is a tensor or a list of tensors, as the network's outputs are; every tensor is compared.
    """
    plain = create(setup, image) if plain is None else plain
    with torch.inference_mode():
        # the weights and pixels that the contenders get: rounded to their dtype, computed with in float64
        reference = copy.deepcopy(plain).to(setup.dtype).double()(image.to(setup.dtype).double())
    # the same image throughout the batch: one float64 pass is enough
    reference = _repeat(reference, setup.batch)
    batch = image.to(setup.dtype).expand(setup.batch, -1, -1, -1).contiguous()
    contenders = [Contender(form, _prepare(form, plain, setup, batch)) for form in setup.contenders]
    return Prepared(contenders, reference, MODEL[setup.dtype])


def create(setup: Setup, image: Tensor) -> nn.Module:
    """The network in its plain form, on the device of an image [1, 3, H, W].

    Without a checkpoint it has the weights and statistics of ``randomize``, so that outputs vary with the image.

    Raises:
        BadInput: the network does not take images of this size; the checkpoint cannot be read or is another network's.
    """
    try:
        plain = create_model(setup.model, task=setup.task, fast=False, checkpoint=setup.checkpoint).eval()
    except Exception as error:  # whatever a file of anything at all makes the readers of checkpoints raise
        if setup.checkpoint is None:
            raise
        lines = str(error).splitlines()
        raise BadInput(f"checkpoint {setup.checkpoint}: {lines[0] if lines else type(error).__name__}") from None
    try:
        plain.check_image(image)
    except ValueError as error:
        raise BadInput(str(error)) from None
    return (randomize(plain, 0) if setup.checkpoint is None else plain).to(image.device)


def measure(setup: Setup, image: Tensor, *, budget: float, name: str, description: str,
            progress: Callable[[str, float], None] | None = None) -> report.Case:  # fmt: skip
    """Measures one network.

    Args:
        setup: what to measure.
        image: [1, 3, H, W] float32, on the device to measure on; a batch repeats it.
        budget: seconds for the timing; the float64 reference and the checks come on top.
        name: of the case in the results.
        description: of the case in tables.
        progress: called with what is going on and the share of the timing that is done.

    Returns:
        The case with one entry per contender.

    Raises:
        BadInput: the network does not take images of this size, or the checkpoint cannot be used.
    """
    progress = progress or (lambda doing, done: None)
    progress("creating the network", 0.0)
    plain = create(setup, image)
    progress("computing the float64 reference", 0.0)
    prepared = prepare(setup, image, plain)
    agreement: dict[str, float] = {}
    expected = _classes(prepared.reference, setup.task)

    def observe(contender: str, output) -> None:
        if expected is not None:
            agreement[contender] = float((_classes(output, setup.task) == expected).double().mean())

    neighbours = machine.Neighbours()
    results = compare(prepared, budget=budget, progress=progress, observe=observe)
    busy = neighbours.share()
    entries = report.entries(results)
    for entry in entries:
        entry.argmax_agreement = agreement.get(entry.name)
        call = prepared.contender(entry.name).call
        if isinstance(call, forms.Optimized):
            call.describe(entry)
        if setup.memory and entry.agrees:
            progress(f"peak memory of {entry.name}", 1.0)
            entry.peak_memory_bytes = peak_bytes(call, image.device)
    published, executed = _gflops(plain, image)
    ours = (forms.FAST, forms.FAST_COMPILED, forms.OPTIMIZED)
    for entry in entries:
        entry.gflops = setup.batch * (executed if entry.name in ours else published)

    progress("share of exchange units and head", 1.0)
    network = forms.channels_last(copy.deepcopy(plain).to(setup.dtype))
    groups = {name: kinds for name, kinds in GROUPS.items() if any(isinstance(m, kinds) for m in plain.modules())}
    batch = forms.channels_last(image.to(setup.dtype).repeat(setup.batch, 1, 1, 1))
    return report.Case(
        name=name, description=description, dtype=str(setup.dtype).removeprefix("torch."),
        tolerance=prepared.tolerance, entries=entries, batch=setup.batch,
        params=sum(p.numel() for p in plain.parameters()), gflops_published=published,
        shares=shares(network, batch, groups), neighbours=busy, variation=variation(_one_image(prepared.reference)),
    )  # fmt: skip


def _gflops(plain: nn.Module, image: Tensor) -> tuple[float, float]:
    """For one image: as the papers count, and as the fast form executes."""
    fast = create_model(**plain.recipe)
    counted = multiply_adds(fast, tuple(image.shape[2:]))
    return counted.published_gflops, counted.executed_gflops


def _classes(outputs: Tensor | Sequence[Tensor], task: str) -> Tensor | None:
    """The class [N, H, W] of every pixel; None where the task has none. OCR's second tensor is its result."""
    if task == "segmentation_ocr":
        return outputs[-1].argmax(1)
    return outputs.argmax(1) if task == "segmentation" else None


def _one_image(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [y[:1] for y in ([outputs] if isinstance(outputs, Tensor) else outputs)]


def _repeat(value: Tensor | Sequence[Tensor], batch: int) -> Tensor | list[Tensor]:
    if isinstance(value, Tensor):  # [1, ...]
        return value.expand(batch, *value.shape[1:])
    return [_repeat(item, batch) for item in value]


def _prepare(form: str, plain: nn.Module, setup: Setup, batch: Tensor) -> Callable:
    if form == forms.OPTIMIZED:
        return forms.Optimized(plain, forms.channels_last(batch), setup.dtype)
    if form in (forms.FAST, forms.FAST_COMPILED):
        network = create_model(**plain.recipe).eval().to(batch.device)
        network.load_state_dict(plain.state_dict())
    elif form in (forms.FOLDED, forms.COMPILED):
        network = forms.fold_batchnorm(plain)
    else:
        network = copy.deepcopy(plain)
    network = network.to(setup.dtype)
    if form != forms.EAGER:
        network, batch = forms.channels_last(network), forms.channels_last(batch)
    if form in (forms.COMPILED, forms.FAST_COMPILED):
        return forms.compile_on_first_call(network, batch)
    return lambda: network(batch)
