"""Triton kernels for NVIDIA GPUs (kernels/): 1x1 convolutions at low resolution by torch, the rest in one launch.

Inputs without weights, and the low-resolution products of those with one, go through the 4-tap kernel. Where a
full-size input has a weight (HRNet's V2 head) or a projection follows, in 16 bits or TF32 and channels_last, those
products run inside of the kernel, and the tensor in front of the projection is never in memory.
"""

import contextlib
import functools
import importlib.util
import subprocess

import torch
from torch import Tensor

from hrnet_fast.ops import library
from hrnet_fast.ops.backends import gpu
from hrnet_fast.ops.exchange import autograd
from hrnet_fast.ops.exchange.call import ExchangeCall, is_channels_last, output_memory_format
from hrnet_fast.ops.transforms import below_autograd

MIN_CAPABILITY = (8, 0)

failures = gpu.Failures()


def why_not(call: ExchangeCall | None) -> str | None:
    if call is None:
        return why_not_machine()
    if torch.compiler.is_compiling() and call.inputs[0].is_cuda:
        return None  # the operator asks again when it runs; what the machine has cannot be traced
    return gpu.why_not_tensors(call) or why_not_machine(call.inputs[0].device)


def why_not_machine(device: torch.device | None = None) -> str | None:
    """Why no kernel can run here, or on this GPU; None where they can."""
    if not is_installed():
        return "triton is not installed"
    return gpu.why_not_device(MIN_CAPABILITY, device) or failures.on(device)


@functools.cache
def is_installed() -> bool:
    """Whether there is a Triton; importing it takes 100 ms and more, which only its first kernel should pay."""
    return importlib.util.find_spec("triton") is not None


def run(call: ExchangeCall) -> Tensor:  # [N, C_out or C_p, H, W]
    if call.needs_grad:
        return autograd.differentiable(call)
    return below_autograd(torch.ops.hrnet_fast.exchange_triton, *call.arguments())


def on_device(call: ExchangeCall) -> Tensor:
    """The operator's kernel for CUDA tensors."""
    with torch.cuda.device_of(call.inputs[0]):
        return compute(call)


@contextlib.contextmanager
def _launching(kernel: str, device: torch.device):
    """Remembers and reports a Triton that is installed and cannot be imported, compile or launch on this GPU.

    Nothing but launches of kernels belongs into it. Triton raises RuntimeErrors where there is no C compiler for its
    launcher, and where the driver does not take its code.
    """
    try:
        yield
    except Exception as error:
        transient = isinstance(error, RuntimeError) and "out of memory" in str(error)
        if device.type != "cuda" or transient or not _is_tritons(error):
            raise
        reason = f"Triton failed at {kernel} ({type(error).__name__}: {gpu.first_line(error)})"
        raise failures.remember(device, reason) from error


def _is_tritons(error: Exception) -> bool:
    if isinstance(error, (ImportError, AttributeError, OSError, RuntimeError, subprocess.CalledProcessError)):
        return True
    return any(kind.__module__.partition(".")[0] == "triton" for kind in type(error).__mro__)


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
    with torch.cuda.device_of(calls[0].inputs[0]):
        return compute_together(calls)


def compute_together(calls: list[ExchangeCall]) -> list[Tensor]:
    """As ``compute``, for several calls."""
    first, sums = calls[0], []
    layout = output_memory_format(first.inputs, first.height, first.width)
    for call in calls:
        inputs = [gpu.product(x, w, layout) for x, w in zip(call.inputs, call.weights, strict=True)]
        sums.append((gpu.empty(call, inputs[0].shape[1], layout), inputs, gpu.dense(call.bias)))
    with _launching("up_sum_relu", first.inputs[0].device):
        from hrnet_fast.kernels.up_sum_relu import Sum, up_sum_relu

        up_sum_relu([Sum(*s) for s in sums], mode=first.mode, align_corners=first.align_corners, relu=first.relu)
    return [out for out, _, _ in sums]


def _wants_products(call: ExchangeCall, layout: torch.memory_format) -> bool:
    fits = layout == torch.channels_last and (call.inputs[0].dtype != torch.float32 or call.allow_tf32)
    return fits and (call.projection is not None or any(gpu.is_whole(call, j) for j in range(len(call.inputs))))


def _with_products(call: ExchangeCall, layout: torch.memory_format, settings: dict, interpreted: bool) -> Tensor:
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
    bias, projection_bias = gpu.dense(call.bias), gpu.dense(call.projection_bias)
    with _launching("product_up_sum", out.device):
        from hrnet_fast.kernels.product_up_sum import product_up_sum

        product_up_sum(
            out,
            wholes,
            weights,
            inputs,
            bias,
            projection,
            projection_bias,
            tf32=call.allow_tf32,
            interpreted=interpreted,
            **settings,
        )
    return out


def why_not_tensor(x: Tensor) -> str | None:
    """Why kernels cannot take a tensor on a GPU; None where they can."""
    if x.dtype not in gpu.DTYPES:
        return f"it computes in float32, and this is {x.dtype}"
    return why_not_machine(x.device)


why_not_backward = why_not_tensor  # of a gradient


def backward(*arguments) -> list[Tensor]:
    """The operator exchange_backward on a GPU."""
    with torch.cuda.device_of(arguments[0]):
        return compute_backward(*arguments)


def compute_backward(grad, output, sizes, mode, align_corners, same) -> list[Tensor]:
    """exchange_backward by the kernel, on tensors of a supported dtype."""
    layout = autograd.backward_layout(grad, output)
    grad, output = gpu.dense(grad, layout), gpu.dense(output, layout)
    lows = [
        torch.empty((*grad.shape[:2], *size), dtype=grad.dtype, device=grad.device, memory_format=layout)
        for size in autograd.pairs(sizes)
    ]
    full = torch.empty_like(grad, memory_format=layout) if same else None
    with _launching("up_backward", grad.device):
        from hrnet_fast.kernels.up_backward import up_backward

        up_backward(grad, output, lows, full, mode=mode, align_corners=align_corners)
    return [*lows, full] if same else lows


def why_not_argmax(scores: Tensor) -> str | None:
    if not scores.is_cuda:
        return f"it serves tensors on NVIDIA GPUs, these are on {scores.device.type}"
    return why_not_tensor(scores)


def interpolate_argmax(scores: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """The operator of that name on a GPU: [N, height, width]."""
    with torch.cuda.device_of(scores):
        return compute_argmax(scores, height, width, align_corners, dtype)


def compute_argmax(scores: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """interpolate_argmax by the kernel, on scores of a supported dtype."""
    layout = torch.channels_last if is_channels_last(scores) else torch.contiguous_format
    out = torch.empty((scores.shape[0], height, width), dtype=dtype, device=scores.device)
    scores = gpu.dense(scores, layout)
    with _launching("interpolate_argmax", scores.device):
        from hrnet_fast.kernels.interpolate_argmax import interpolate_argmax

        interpolate_argmax(out, scores, align_corners)
    return out


library.define_exchange("exchange_triton", lambda *arguments: on_device(ExchangeCall.from_arguments(*arguments)))
