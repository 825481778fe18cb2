"""What the drop-in gains: one of timm's HRNets in its eager forms, compiled, patched, and optimized."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hrnet_fast.bench import BadInput, machine, report, timm_models
from hrnet_fast.bench import contenders as forms
from hrnet_fast.bench.harness import Contender, Prepared, compare
from hrnet_fast.bench.memory import peak_bytes
from hrnet_fast.models import randomize
from hrnet_fast.patching import patch
from hrnet_fast.tolerances import MODEL


@dataclass(frozen=True)
class Setup:
    """A network of timm's, and how it is to be measured."""

    name: str  # timm's
    dtype: torch.dtype = torch.float32
    batch: int = 1
    contenders: Sequence[str] = (forms.EAGER, forms.CHANNELS_LAST, forms.FAST, forms.OPTIMIZED)
    memory: bool = True


def prepare(setup: Setup, image: Tensor, plain: nn.Module | None = None) -> Prepared:
    """The contenders on an image [1, 3, H, W] float32, and the float64 reference.

    Raises:
        BadInput: timm is not there or has no such network, or the network cannot take images of this size.
    """
    plain = randomize(timm_models.create(setup.name)).to(image.device) if plain is None else plain
    with torch.inference_mode():
        try:
            reference = copy.deepcopy(plain).to(setup.dtype).double()(image.to(setup.dtype).double())
        except RuntimeError as error:  # streams whose sizes do not fit
            size = f"{image.shape[2]}x{image.shape[3]}"
            raise BadInput(f"size {size}: {setup.name} needs multiples of 32 ({error})") from None
    batch = image.to(setup.dtype).expand(setup.batch, -1, -1, -1).contiguous()
    contenders = [Contender(form, _prepare(form, plain, setup, batch)) for form in setup.contenders]
    return Prepared(contenders, reference.expand(setup.batch, -1), MODEL[setup.dtype])


def measure(setup: Setup, image: Tensor, *, budget: float, name: str, description: str,
            progress: Callable[[str, float], None] | None = None) -> report.Case:  # fmt: skip
    """Measures one network: the case with one entry per contender. Arguments and errors as in network.measure."""
    progress = progress or (lambda doing, done: None)
    progress("creating the network, computing the float64 reference", 0.0)
    plain = randomize(timm_models.create(setup.name)).to(image.device)
    prepared = prepare(setup, image, plain)
    neighbours = machine.Neighbours()
    results = compare(prepared, budget=budget, progress=progress)
    busy = neighbours.share()
    entries = report.entries(results)
    published = _gflops(plain, image)
    for entry in entries:
        entry.gflops = setup.batch * published  # patched or not, an exchange between equal sizes takes as many
        call = prepared.contender(entry.name).call
        if isinstance(call, forms.Optimized):
            call.describe(entry)
        if setup.memory and entry.agrees:
            progress(f"peak memory of {entry.name}", 1.0)
            entry.peak_memory_bytes = peak_bytes(call, image.device)
    return report.Case(
        name=name, description=description, dtype=str(setup.dtype).removeprefix("torch."),
        tolerance=prepared.tolerance, entries=entries, batch=setup.batch,
        params=sum(p.numel() for p in plain.parameters()), gflops_published=published, neighbours=busy,
    )  # fmt: skip


def _gflops(model: nn.Module, image: Tensor) -> float:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2 / 2**30


def _prepare(form: str, plain: nn.Module, setup: Setup, batch: Tensor) -> Callable:
    if form == forms.OPTIMIZED:
        return forms.Optimized(plain, forms.channels_last(batch), setup.dtype)
    folded = form in (forms.FOLDED, forms.COMPILED)
    model = (forms.fold_batchnorm(plain) if folded else copy.deepcopy(plain)).to(setup.dtype)
    if form != forms.EAGER:
        model, batch = forms.channels_last(model), forms.channels_last(batch)
    if form == forms.COMPILED:
        return forms.compile_on_first_call(model, batch)
    if form == forms.FAST:
        patch(model)
    return lambda: model(batch)
