"""Triton kernels for NVIDIA GPUs (kernels/): 1x1 convolutions at low resolution by torch, the rest in one launch.

Inputs without weights, and the low-resolution products of those with one, go through the 4-tap kernel. Where a
full-size input has a weight (HRNet's V2 head) or a projection follows, in 16 bits or TF32 and channels_last, those
products run inside of the kernel, and the tensor in front of the projection is never in memory.
"""

import contextlib
import importlib.util
import subprocess

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast import derivative, library
from hrnet_fast.call import BackendFailed, ExchangeCall, output_memory_format

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MIN_CAPABILITY = (8, 0)

_failure: str | None = None  # why Triton could not compile or launch here, once it has failed


def why_not(call: ExchangeCall | None) -> str | None:
    if _failure is not None:
        return _failure
    if call is None:
        return _why_not_machine()
    if not call.inputs[0].is_cuda:
        return f"it serves tensors on NVIDIA GPUs, these are on {call.inputs[0].device.type}"
    if torch.compiler.is_compiling():
        return None  # the operator asks again when it runs; what the machine has cannot be traced
    reason = _why_not_machine(call.inputs[0].device)
    if reason is not None:
        return reason
    if torch.jit.is_tracing():
        return "under torch.jit tracing only standard operators are recorded"
    if call.inputs[0].dtype not in DTYPES and not torch.is_autocast_enabled("cuda"):
        return f"it computes in float32, and this is {call.inputs[0].dtype}"
    return None


def _why_not_machine(device: torch.device | None = None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"it needs compute capability 8.0 or newer, this GPU has {capability[0]}.{capability[1]}"
    return None


def run(call: ExchangeCall) -> Tensor:  # [N, C_out or C_p, H, W]
    if call.needs_grad:
        return derivative.differentiable(call)
    return torch.ops.hrnet_fast.exchange_triton(*call.arguments())


def on_device(call: ExchangeCall) -> Tensor:
    """The operator's kernel for CUDA tensors."""
    with torch.cuda.device_of(call.inputs[0]), _failing():
        return compute(call)


@contextlib.contextmanager
def _failing():
    """Remembers and reports a Triton that is installed and cannot compile or launch."""
    global _failure
    import triton

    try:
        yield
    except (triton.TritonError, ImportError, OSError, subprocess.CalledProcessError) as error:
        lines = str(error).splitlines()
        _failure = f"Triton failed ({type(error).__name__}: {lines[0] if lines else ''})"
        raise BackendFailed(_failure) from error


def compute(call: ExchangeCall, interpreted: bool = False) -> Tensor:
    """The exchange by the kernels, on tensors of a supported dtype; ``interpreted`` under TRITON_INTERPRET=1."""
    layout = output_memory_format(call.inputs, call.height, call.width)
    if _wants_products(call, layout):
        settings = {"mode": call.mode, "align_corners": call.align_corners, "relu": call.relu}
        return _with_products(call, layout, settings, interpreted)
    (out,) = compute_together([call])
    return out if call.projection is None else _project(out, call, layout)


def why_not_together(calls: list[ExchangeCall]) -> str | None:
    """Why some calls cannot share a launch; None where they can. Each is known to be fit for this backend."""
    first, layouts = calls[0], set()
    for call in calls:
        layout = output_memory_format(call.inputs, call.height, call.width)
        layouts.add(layout)
        if call.needs_grad or torch.is_autocast_enabled("cuda"):
            return "autograd and autocast see one operator at a time"
        if call.projection is not None or _wants_products(call, layout):
            return "a call has products of full-size inputs"
        if call[7:] != first[7:] or call.inputs[0].dtype != first.inputs[0].dtype:
            return "the calls differ in their settings"
        if call.inputs[0].device != first.inputs[0].device:
            return "the calls are on different devices"
    return None if len(layouts) == 1 else "the calls differ in their memory format"


def run_together(calls: list[ExchangeCall]) -> list[Tensor]:
    """The calls, for which ``why_not_together`` has no objection, with one launch for all sums."""
    with torch.cuda.device_of(calls[0].inputs[0]), _failing():
        return compute_together(calls)


def compute_together(calls: list[ExchangeCall]) -> list[Tensor]:
    """As ``compute``, for several calls."""
    from hrnet_fast.kernels.up_sum_relu import Sum, up_sum_relu

    first, sums = calls[0], []
    layout = output_memory_format(first.inputs, first.height, first.width)
    for call in calls:
        inputs = [_product(x, w, layout) for x, w in zip(call.inputs, call.weights, strict=True)]
        sums.append(Sum(_empty(call, inputs[0].shape[1], layout), inputs, _dense(call.bias)))
    up_sum_relu(sums, mode=first.mode, align_corners=first.align_corners, relu=first.relu)
    return [s.out for s in sums]


def _wants_products(call: ExchangeCall, layout: torch.memory_format) -> bool:
    fits = layout == torch.channels_last and (call.inputs[0].dtype != torch.float32 or call.allow_tf32)
    return fits and (call.projection is not None or any(_is_whole(call, j) for j in range(len(call.inputs))))


def _is_whole(call: ExchangeCall, j: int) -> bool:
    return call.weights[j] is not None and tuple(call.inputs[j].shape[2:]) == (call.height, call.width)


def _with_products(call: ExchangeCall, layout: torch.memory_format, settings: dict, interpreted: bool) -> Tensor:
    from hrnet_fast.kernels.product_up_sum import product_up_sum

    wholes, weights, inputs = [], [], []
    for j, (x, weight) in enumerate(zip(call.inputs, call.weights, strict=True)):
        if _is_whole(call, j):
            wholes.append(_dense(x, layout))
            weights.append(_dense(weight).flatten(1))
        else:
            inputs.append(_product(x, weight, layout))
    channels = inputs[0].shape[1] if inputs else weights[0].shape[0]
    projection = None if call.projection is None else _dense(call.projection).flatten(1)
    out = _empty(call, channels if projection is None else projection.shape[0], layout)
    product_up_sum(out, wholes, weights, inputs, _dense(call.bias), projection, _dense(call.projection_bias),
                   tf32=call.allow_tf32, interpreted=interpreted, **settings)  # fmt: skip
    return out


def _empty(call: ExchangeCall, channels: int, layout: torch.memory_format) -> Tensor:
    x = call.inputs[0]
    return torch.empty((x.shape[0], channels, call.height, call.width), dtype=x.dtype, device=x.device,
                       memory_format=layout)  # fmt: skip


def _dense(x: Tensor | None, layout: torch.memory_format = torch.contiguous_format) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=layout)


def _product(x: Tensor, weight: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The 1x1 convolution at the input's own resolution, rounded once to the inputs' dtype; dense in ``layout``."""
    x = _dense(x, layout)
    if weight is None:
        return x
    if layout == torch.channels_last and x.shape[0] > 0:  # a plain matrix product: cuBLAS, without cuDNN's heuristics
        return (x.permute(0, 2, 3, 1) @ weight.flatten(1).t()).permute(0, 3, 1, 2)
    return _dense(F.conv2d(x, weight.flatten(1)[:, :, None, None]), layout)


def _project(y: Tensor, call: ExchangeCall, layout: torch.memory_format) -> Tensor:
    weight = call.projection.flatten(1)[:, :, None, None]
    return _dense(F.conv2d(y, weight, call.projection_bias), layout)


def backward(grad, output, sizes, mode, align_corners, same) -> list[Tensor]:
    """exchange_backward on a GPU: by the kernel, or in standard operators where it cannot serve."""
    if _failure or grad.dtype not in DTYPES or _why_not_machine(grad.device) is not None:
        return derivative.exchange_backward(grad, output, sizes, mode, align_corners, same)
    with torch.cuda.device_of(grad), _failing():
        return compute_backward(grad, output, sizes, mode, align_corners, same)


def compute_backward(grad, output, sizes, mode, align_corners, same) -> list[Tensor]:
    """exchange_backward by the kernel, on tensors of a supported dtype."""
    from hrnet_fast.kernels.up_backward import up_backward

    layout = torch.contiguous_format if grad.is_contiguous() else torch.channels_last
    grad, output = _dense(grad, layout), _dense(output, layout)
    lows = [torch.empty((*grad.shape[:2], *size), dtype=grad.dtype, device=grad.device, memory_format=layout)
            for size in derivative.pairs(sizes)]  # fmt: skip
    full = torch.empty_like(grad, memory_format=layout) if same else None
    up_backward(grad, output, lows, full, mode=mode, align_corners=align_corners)
    return [*lows, full] if same else lows


library.implement("exchange_triton", lambda *arguments: on_device(ExchangeCall.from_arguments(*arguments)))
library.implement("exchange_backward", backward)
library.implement("exchange_backward_fwd", backward)
