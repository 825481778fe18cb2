"""What the backends for NVIDIA GPUs share: which calls they can serve, and the tensors that they hand to kernels."""

import functools

import torch
from torch import Tensor

from hrnet_fast.ops import conv1x1
from hrnet_fast.ops.exchange.call import BackendFailed, ExchangeCall, output_memory_format

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def why_not_device(minimum: tuple[int, int], device: torch.device | None = None) -> str | None:
    """Why no GPU here, or not this one, can run kernels that need a compute capability of ``minimum``."""
    if device is None:
        reason = why_no_gpu()
        if reason is not None:
            return reason
    try:
        found = capability(index_of(device))
    except (RuntimeError, AssertionError) as error:
        return f"torch cannot use the GPU ({first_line(error)})"
    if found < minimum:
        return f"it needs compute capability {minimum[0]}.{minimum[1]} or newer, this GPU has {found[0]}.{found[1]}"
    return None


def why_no_gpu() -> str | None:
    """Why torch has no NVIDIA GPU here, in its own words where it has some; None where it has one."""
    if torch.cuda.is_available():
        return None
    reason = "torch finds no NVIDIA GPU"
    if torch.version.cuda is None:
        return f"{reason} (this torch is not a CUDA build)"
    try:
        torch.cuda.init()  # no driver, a driver too old, or no device: only this tells which
    except (RuntimeError, AssertionError) as error:
        return f"{reason} ({first_line(error)})"
    return reason


@functools.cache
def capability(index: int) -> tuple[int, int]:
    """Compute capability of a GPU."""
    return torch.cuda.get_device_capability(index)


def index_of(device: torch.device | None) -> int:
    """The number of a GPU; None or one without a number: the current one."""
    if device is not None and device.index is not None:
        return device.index
    return torch.cuda.current_device()


def first_line(error: Exception) -> str:
    """What an exception says, in one sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0].rstrip(".") if lines else type(error).__name__


class Failures:
    """Why a backend's kernels cannot be compiled or launched, for every GPU where that has turned out."""

    def __init__(self):
        self._reasons: dict[int, str] = {}

    def remember(self, device: torch.device, reason: str) -> BackendFailed:
        """The exception to raise. Another call would fail in the same way: none will be tried on this GPU."""
        self._reasons[device.index or 0] = reason
        return BackendFailed(reason)

    def on(self, device: torch.device | None) -> str | None:
        """The reason for a GPU; None where there is none. Device None: the current GPU."""
        if not self._reasons:
            return None
        return self._reasons.get(index_of(device) if device is None else device.index or 0)


def dtype_of(call: ExchangeCall) -> torch.dtype:
    """The dtype that kernels will see."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else call.inputs[0].dtype


def why_not_tensors(call: ExchangeCall) -> str | None:
    """Why a call's tensors are not for kernels on GPUs."""
    x = call.inputs[0]
    if not x.is_cuda:
        return f"it serves tensors on NVIDIA GPUs, these are on {x.device.type}"
    if torch.jit.is_tracing():
        return "under torch.jit tracing only standard operators are recorded"
    if any(t is not None and t.numel() == 0 for t in (*call.inputs, *call.weights, call.projection)):
        return "a tensor is empty"
    dtype = dtype_of(call)
    return None if dtype in DTYPES else f"it computes in float32, and this is {dtype}"


def why_not_together(calls: list[ExchangeCall]) -> str | None:
    """Why some calls cannot share a launch; None where they can. Each is known to be fit for the backend."""
    first, layouts = calls[0], set()
    for call in calls:
        layouts.add(output_memory_format(call.inputs, call.height, call.width))
        if call.needs_grad or torch.is_autocast_enabled("cuda"):
            return "autograd and autocast see one operator at a time"
        if call[7:] != first[7:] or call.inputs[0].dtype != first.inputs[0].dtype:
            return "the calls differ in their settings"
        if call.inputs[0].device != first.inputs[0].device:
            return "the calls are on different devices"
    return None if len(layouts) == 1 else "the calls differ in their memory format"


def is_whole(call: ExchangeCall, j: int) -> bool:
    """Whether an input of the output's own size has a weight."""
    return call.weights[j] is not None and tuple(call.inputs[j].shape[2:]) == (call.height, call.width)


def empty(call: ExchangeCall, channels: int, layout: torch.memory_format) -> Tensor:  # [N, channels, H, W]
    x = call.inputs[0]
    return torch.empty((x.shape[0], channels, call.height, call.width), dtype=x.dtype, device=x.device,
                       memory_format=layout)  # fmt: skip


def dense(x: Tensor | None, layout: torch.memory_format = torch.contiguous_format) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=layout)


def product(x: Tensor, weight: Tensor | None, layout: torch.memory_format) -> Tensor:
    """The 1x1 convolution at the input's own resolution, rounded once to the inputs' dtype; dense in ``layout``."""
    x = dense(x, layout)
    if weight is None:
        return x
    return dense(conv1x1.as_matrices(x, weight.flatten(1), None, layout == torch.channels_last), layout)


def project(y: Tensor, call: ExchangeCall, layout: torch.memory_format) -> Tensor:  # [N, C_p, H, W]
    """The projection of a call, by torch; y [N, C_out, H, W] as it is where the call has none."""
    if call.projection is None:
        return y
    weight, bias = call.projection.flatten(1), call.projection_bias
    return dense(conv1x1.as_matrices(y, weight, bias, layout == torch.channels_last), layout)
