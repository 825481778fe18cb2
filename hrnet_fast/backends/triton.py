"""Triton kernels for NVIDIA GPUs (kernels/): 1x1 convolutions at low resolution by torch, the rest in one launch.

Inputs without weights, and the low-resolution products of those with one, go through the 4-tap kernel. Where a
full-size input has a weight (HRNet's V2 head) or a projection follows, in 16 bits or TF32 and channels_last, those
products run inside of the kernel, and the tensor in front of the projection is never in memory.
"""

import contextlib
import importlib.util
import subprocess

import torch
from torch import Tensor

from hrnet_fast import derivative, library
from hrnet_fast.backends import gpu
from hrnet_fast.call import BackendFailed, ExchangeCall, is_channels_last, output_memory_format

MIN_CAPABILITY = (8, 0)

_failure: str | None = None  # why Triton could not compile or launch here, once it has failed


def why_not(call: ExchangeCall | None) -> str | None:
    if _failure is not None:
        return _failure
    if call is None:
        return _why_not_machine()
    if torch.compiler.is_compiling() and call.inputs[0].is_cuda:
        return None  # the operator asks again when it runs; what the machine has cannot be traced
    return gpu.why_not_tensors(call) or _why_not_machine(call.inputs[0].device)


def _why_not_machine(device: torch.device | None = None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return gpu.why_not_device(MIN_CAPABILITY, device)


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
    return gpu.project(out, call, layout)


def why_not_together(calls: list[ExchangeCall]) -> str | None:
    """Why some calls cannot share a launch; None where they can. Each is known to be fit for this backend."""
    for call in calls:
        if call.projection is not None or _wants_products(
            call, output_memory_format(call.inputs, call.height, call.width)
        ):
            return "a call has products of full-size inputs"
    return gpu.why_not_together(calls)


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
        inputs = [gpu.product(x, w, layout) for x, w in zip(call.inputs, call.weights, strict=True)]
        sums.append(Sum(gpu.empty(call, inputs[0].shape[1], layout), inputs, gpu.dense(call.bias)))
    up_sum_relu(sums, mode=first.mode, align_corners=first.align_corners, relu=first.relu)
    return [s.out for s in sums]


def _wants_products(call: ExchangeCall, layout: torch.memory_format) -> bool:
    fits = layout == torch.channels_last and (call.inputs[0].dtype != torch.float32 or call.allow_tf32)
    return fits and (call.projection is not None or any(gpu.is_whole(call, j) for j in range(len(call.inputs))))


def _with_products(call: ExchangeCall, layout: torch.memory_format, settings: dict, interpreted: bool) -> Tensor:
    from hrnet_fast.kernels.product_up_sum import product_up_sum

    wholes, weights, inputs = [], [], []
    for j, (x, weight) in enumerate(zip(call.inputs, call.weights, strict=True)):
        if gpu.is_whole(call, j):
            wholes.append(gpu.dense(x, layout))
            weights.append(gpu.dense(weight).flatten(1))
        else:
            inputs.append(gpu.product(x, weight, layout))
    channels = inputs[0].shape[1] if inputs else weights[0].shape[0]
    projection = None if call.projection is None else gpu.dense(call.projection).flatten(1)
    out = gpu.empty(call, channels if projection is None else projection.shape[0], layout)
    product_up_sum(out, wholes, weights, inputs, gpu.dense(call.bias), projection, gpu.dense(call.projection_bias),
                   tf32=call.allow_tf32, interpreted=interpreted, **settings)  # fmt: skip
    return out


def why_not_tensor(x: Tensor) -> str | None:
    """Why kernels cannot take a tensor on a GPU; None where they can."""
    if x.dtype not in gpu.DTYPES:
        return f"it computes in float32, and this is {x.dtype}"
    return _failure or _why_not_machine(x.device)


why_not_backward = why_not_tensor  # of a gradient


def backward(*arguments) -> list[Tensor]:
    """The operator exchange_backward on a GPU."""
    with torch.cuda.device_of(arguments[0]), _failing():
        return compute_backward(*arguments)


def compute_backward(grad, output, sizes, mode, align_corners, same) -> list[Tensor]:
    """exchange_backward by the kernel, on tensors of a supported dtype."""
    from hrnet_fast.kernels.up_backward import up_backward

    layout = torch.contiguous_format if grad.is_contiguous() else torch.channels_last
    grad, output = gpu.dense(grad, layout), gpu.dense(output, layout)
    lows = [torch.empty((*grad.shape[:2], *size), dtype=grad.dtype, device=grad.device, memory_format=layout)
            for size in derivative.pairs(sizes)]  # fmt: skip
    full = torch.empty_like(grad, memory_format=layout) if same else None
    up_backward(grad, output, lows, full, mode=mode, align_corners=align_corners)
    return [*lows, full] if same else lows


def interpolate_argmax(scores: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """The operator of that name on a GPU: [N, height, width]."""
    with torch.cuda.device_of(scores), _failing():
        return compute_argmax(scores, height, width, align_corners, dtype)


def compute_argmax(scores: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """interpolate_argmax by the kernel, on scores of a supported dtype."""
    from hrnet_fast.kernels.interpolate_argmax import interpolate_argmax

    layout = torch.channels_last if is_channels_last(scores) else torch.contiguous_format
    out = torch.empty((scores.shape[0], height, width), dtype=dtype, device=scores.device)
    interpolate_argmax(out, gpu.dense(scores, layout), align_corners)
    return out


library.implement("exchange_triton", lambda *arguments: on_device(ExchangeCall.from_arguments(*arguments)))
