"""Cases with gradients: the backward of one exchange, and a step forward and back through a whole exchange unit."""

import copy
import functools
from collections.abc import Callable

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

import hrnet_fast as hf
from benchmarks.common import DTYPES, Case, randomize, streams
from hrnet_fast.bench import machine, report
from hrnet_fast.bench.contenders import CHANNELS_LAST, COMPILED, FAST, channels_last
from hrnet_fast.bench.harness import Contender, Prepared, compare
from hrnet_fast.nn import ExchangeUnit, PlainExchangeUnit
from hrnet_fast.tolerances import MODEL

# A gradient is taken twice over a network's worth of rounding, and half-precision outputs near 0 flip the ReLU.
TOLERANCES = MODEL


def eager_exchange(x: list[Tensor]) -> Tensor:
    """What a training exchange does behind its convolutions and norms, in the official order."""
    y = x[0]
    for low in x[1:]:
        y = y + F.interpolate(low, y.shape[2:], mode="bilinear", align_corners=False)
    return F.relu(y)


def backward(c: int, dtype_name: str) -> Case:
    """The gradients of the four inputs of stage 4's exchange to its first output, forward not included."""
    dtype, name = DTYPES[dtype_name], f"backward-c{c}-128x128-{dtype_name}"
    description = f"backward of the exchange, stage 4 output 0, c={c}, 128x128, {dtype_name}"

    def make(compiled: bool) -> Prepared:
        with torch.inference_mode(False), torch.enable_grad():
            inputs = [x.requires_grad_() for x in _same_channels(c, dtype)]
            upstream = _like(inputs[0])
            exact = [x.detach().double().requires_grad_() for x in inputs]
            reference = torch.autograd.grad(eager_exchange(exact), exact, upstream.double())
            forms: dict[str, Callable] = {CHANNELS_LAST: eager_exchange}
            if compiled:
                forms[COMPILED] = _compiled(eager_exchange)
            forms[FAST] = hf.exchange
        return Prepared([Contender(form, _backward_only(f, inputs, upstream)) for form, f in forms.items()],
                        list(reference), TOLERANCES[dtype])  # fmt: skip

    return _case(name, description, dtype_name, make)


def unit(c: int, dtype_name: str = "float32") -> Case:
    """Forward and backward of a stage-4 exchange unit with the statistics of the batch, strided convolutions included."""
    dtype, name = DTYPES[dtype_name], f"training-unit-w{c}-stage4-{dtype_name}"
    description = f"exchange unit of stage 4 in training, forward and backward, w{c}, 512x512, {dtype_name}"

    def make(compiled: bool) -> Prepared:
        with torch.inference_mode(False), torch.enable_grad():
            channels = [c << j for j in range(4)]
            plain, fast = PlainExchangeUnit(channels), ExchangeUnit(channels)
            fast.load_state_dict(randomize(plain).state_dict())
            inputs = [x.requires_grad_() for x in streams(c, 4, 128, 128, dtype)]
            upstream = [_like(x) for x in inputs]
            exact = copy.deepcopy(plain).to(dtype).double().train()
            doubles = [x.detach().double().requires_grad_() for x in inputs]
            reference = _step(exact, doubles, [g.double() for g in upstream])
            modules = {CHANNELS_LAST: plain, **({COMPILED: copy.deepcopy(plain)} if compiled else {}), FAST: fast}
            contenders = []
            for form, module in modules.items():
                module = channels_last(module.to(dtype).train())
                run = _compiled(module) if form == COMPILED else module
                contenders.append(
                    Contender(form, functools.partial(_step, run, inputs, upstream, list(module.parameters())))
                )
        return Prepared(contenders, reference, TOLERANCES[dtype])

    return _case(name, description, dtype_name, make)


def _same_channels(c: int, dtype: torch.dtype) -> list[Tensor]:
    return [x[:, :c].contiguous(memory_format=torch.channels_last) for x in streams(c, 4, 128, 128, dtype)]


def _like(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(x.shape[2])
    made = torch.randn(x.shape, generator=generator).to(x.dtype)
    return made.contiguous(memory_format=torch.channels_last)


def _compiled(function: Callable) -> Callable:
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def _backward_only(function: Callable, inputs: list[Tensor], upstream: Tensor) -> Callable:
    outputs: list[Tensor] = []

    def call():
        with torch.inference_mode(False), torch.enable_grad():
            if not outputs:
                # compiled graphs give their saved tensors' memory away otherwise, and run backward only once
                with torch._functorch.config.patch(donated_buffer=False):
                    outputs.append(function(inputs))
                    torch.autograd.grad(outputs[0], inputs, upstream, retain_graph=True)
            return torch.autograd.grad(outputs[0], inputs, upstream, retain_graph=True)

    return call


def _step(unit: Callable, inputs: list[Tensor], upstream: list[Tensor], parameters: list[Tensor] | None = None):
    parameters = list(unit.parameters()) if parameters is None else parameters
    with torch.inference_mode(False), torch.enable_grad():
        return list(torch.autograd.grad(unit(list(inputs)), [*inputs, *parameters], upstream))


def _case(name: str, description: str, dtype: str, make: Callable[[bool], Prepared]) -> Case:
    def measure(budget, compiled, progress):
        prepared = make(compiled)
        neighbours = machine.Neighbours()
        results = compare(prepared, budget=budget, progress=progress)
        return report.Case(name=name, description=description, dtype=dtype, tolerance=prepared.tolerance,
                           entries=report.entries(results), neighbours=neighbours.share())  # fmt: skip

    return Case(name, description, dtype, CHANNELS_LAST, lambda: make(False), measure)
