"""A whole network on one image: plain PyTorch in its forms against hrnet_fast, agreement, latency, memory, shares."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hrnet_fast import create_model
from hrnet_fast.bench import contenders as forms
from hrnet_fast.bench import machine, report
from hrnet_fast.bench.harness import Contender, compare
from hrnet_fast.bench.memory import peak_bytes
from hrnet_fast.bench.shares import shares
from hrnet_fast.models import flops, randomize
from hrnet_fast.modules import PlainExchangeUnit, PlainSegmentationHead
from hrnet_fast.tolerances import MODEL

GROUPS = {"exchange units": (PlainExchangeUnit,), "head": (PlainSegmentationHead,)}


@dataclass(frozen=True)
class Setup:
    """A network, and how it is to be measured."""

    model: str
    task: str = "segmentation"
    dtype: torch.dtype = torch.float32
    batch: int = 1
    checkpoint: str | None = None  # None: random weights, the same on every machine
    contenders: Sequence[str] = (forms.EAGER, forms.CHANNELS_LAST, forms.FAST)
    memory: bool = True


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
    """
    progress = progress or (lambda doing, done: None)
    plain = create_model(setup.model, task=setup.task, fast=False, checkpoint=setup.checkpoint).eval()
    if setup.checkpoint is None:
        randomize(plain, 0)
    plain = plain.to(image.device)

    progress("computing the float64 reference", 0.0)
    with torch.inference_mode():
        reference = copy.deepcopy(plain).double()(image.double())
    # the same image throughout the batch: one float64 pass is enough
    reference = _map(lambda y: y.expand(setup.batch, -1, -1, -1), reference)
    batch = image.to(setup.dtype).expand(setup.batch, -1, -1, -1).contiguous()

    progress("preparing the contenders", 0.0)
    calls = {form: _prepare(form, plain, setup, batch) for form in setup.contenders}
    agreement: dict[str, float] = {}

    def observe(contender: str, output) -> None:
        if setup.task == "segmentation":
            agreement[contender] = float((output.argmax(1) == reference.argmax(1)).double().mean())

    neighbours = machine.Neighbours()
    results = compare([Contender(form, call) for form, call in calls.items()], reference, MODEL[setup.dtype],
                      budget=budget, progress=progress, observe=observe)  # fmt: skip
    busy = neighbours.share()
    entries = report.entries(results)
    executed = _executed(setup, image.shape)
    for entry in entries:
        entry.gflops = executed[entry.name == forms.FAST]
        entry.argmax_agreement = agreement.get(entry.name)
        if setup.memory and entry.agrees:
            progress(f"peak memory of {entry.name}", 1.0)
            entry.peak_memory_bytes = peak_bytes(calls[entry.name], image.device)

    progress("share of exchange units and head", 1.0)
    network = forms.channels_last(copy.deepcopy(plain).to(setup.dtype))
    return report.Case(
        name=name, description=description, dtype=str(setup.dtype).removeprefix("torch."),
        tolerance=MODEL[setup.dtype], entries=entries, batch=setup.batch,
        params=sum(p.numel() for p in plain.parameters()), gflops_published=_published(setup, image.shape),
        shares=shares(network, forms.channels_last(batch), GROUPS), neighbours=busy,
    )  # fmt: skip


def _map(function: Callable, value):
    return function(value) if isinstance(value, Tensor) else [function(item) for item in value]


def _prepare(form: str, plain: nn.Module, setup: Setup, batch: Tensor) -> Callable:
    if form == forms.FAST:
        network = create_model(setup.model, task=setup.task, fast=True).eval().to(batch.device)
        network.load_state_dict(plain.state_dict())
    elif form in (forms.FOLDED, forms.COMPILED):
        network = forms.fold_batchnorm(plain)
    else:
        network = copy.deepcopy(plain)
    network = network.to(setup.dtype)
    if form != forms.EAGER:
        network, batch = forms.channels_last(network), forms.channels_last(batch)
    if form == forms.COMPILED:
        return forms.compile_on_first_call(network, batch)
    return lambda: network(batch)
