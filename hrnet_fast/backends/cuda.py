"""CUDA C++ kernels for NVIDIA GPUs (csrc/cuda): the exchange in one kernel, several of them in one launch.

With channels innermost, the 1x1 convolutions of a low-resolution patch go through the tensor cores into shared memory
and are interpolated from there. With columns innermost torch makes the products at their own resolution, and the kernel
takes four taps of them. A projection that follows is torch's.
"""

import torch
from torch import Tensor

from hrnet_fast import derivative, library
from hrnet_fast.backends import gpu
from hrnet_fast.call import BackendFailed, ExchangeCall, output_memory_format

MIN_CAPABILITY = (7, 5)
MIN_CAPABILITY_BFLOAT16 = MIN_CAPABILITY_TF32 = (8, 0)
MAX_TOGETHER = 4  # outputs of a launch: kMaxOutputs of csrc/cuda/problem.h

library.define(
    "exchange_sums(Tensor[] inputs, int[] counts, Tensor[] weights, int[] weighted, Tensor[] biases, int[] biased, "
    "int[] sizes, bool channels_last, str mode, bool align_corners, bool relu, bool allow_tf32) -> Tensor[]"
)
library.define(
    "exchange_backward_sums(Tensor grad, Tensor? output, int[] sizes, bool channels_last, str mode, bool align_corners) "
    "-> Tensor[]"
)
extension_error: str | None = None  # why the compiled CUDA kernels are not there
try:
    import hrnet_fast._C_cuda  # noqa: F401
except ImportError as error:
    extension_error = f"the compiled extension hrnet_fast._C_cuda is not there ({error})"

_failure: str | None = None  # why a kernel could not be launched, once that has happened


def why_not(call: ExchangeCall | None) -> str | None:
    missing = extension_error or _failure
    if missing is not None:
        return missing
    if call is None:
        return gpu.why_not_device(MIN_CAPABILITY)
    if torch.compiler.is_compiling() and call.inputs[0].is_cuda:
        return None  # the operator asks again when it runs; what the machine has cannot be traced
    reason = gpu.why_not_tensors(call)
    if reason is not None:
        return reason
    least = MIN_CAPABILITY_BFLOAT16 if gpu.dtype_of(call) == torch.bfloat16 else MIN_CAPABILITY
    return gpu.why_not_device(least, call.inputs[0].device)


def run(call: ExchangeCall) -> Tensor:  # [N, C_out or C_p, H, W]
    if call.needs_grad:
        return derivative.differentiable(call)
    return torch.ops.hrnet_fast.exchange_cuda(*call.arguments())


def on_device(call: ExchangeCall) -> Tensor:
    """The operator's kernel for CUDA tensors."""
    (y,) = run_together([call])
    return gpu.project(y, call, output_memory_format(call.inputs, call.height, call.width))


def why_not_together(calls: list[ExchangeCall]) -> str | None:
    """Why some calls cannot share a launch; None where they can. Each is known to be fit for this backend."""
    if len(calls) > MAX_TOGETHER:
        return f"a launch serves at most {MAX_TOGETHER} outputs"
    if any(call.projection is not None for call in calls):
        return "a call has a projection"
    return gpu.why_not_together(calls)


def run_together(calls: list[ExchangeCall]) -> list[Tensor]:
    """The calls, for which ``why_not_together`` has no objection, in one launch; without their projections."""
    arguments = launch_arguments(calls)
    x = arguments[0][0]
    if arguments[-1] and torch.cuda.get_device_capability(x.device) < MIN_CAPABILITY_TF32:
        arguments = (*arguments[:-1], False)
    return _launch(torch.ops.hrnet_fast.exchange_sums, arguments)


def _launch(operator, arguments: tuple) -> list[Tensor]:
    """Runs a kernel; remembers one that cannot be launched, which another call would not change."""
    global _failure
    try:
        return operator(*arguments)
    except RuntimeError as error:
        if "failed to launch" not in str(error):
            raise
        _failure = str(error).splitlines()[0]
        raise BackendFailed(_failure) from error


def launch_arguments(calls: list[ExchangeCall]) -> tuple:
    """The calls as the arguments of ``exchange_sums``."""
    first = calls[0]
    layout = output_memory_format(first.inputs, first.height, first.width)
    channels_last = layout == torch.channels_last
    inputs, counts, weights, weighted, biases, sizes = [], [], [], [], [], []
    for call in calls:
        bits = 0
        for j, (x, weight) in enumerate(zip(call.inputs, call.weights, strict=True)):
            if weight is not None and channels_last:
                weights.append(gpu.dense(weight.flatten(1)))
                bits |= 1 << j
                weight = None
            inputs.append(gpu.product(x, weight, layout))
        counts.append(len(call.inputs))
        weighted.append(bits)
        biases.append(gpu.dense(call.bias))
        sizes += [call.height, call.width]
    biased = [int(bias is not None) for bias in biases]
    biases = [bias for bias in biases if bias is not None]
    return (inputs, counts, weights, weighted, biases, biased, sizes, channels_last, first.mode, first.align_corners,
            first.relu, first.allow_tf32)  # fmt: skip


def why_not_backward(grad: Tensor) -> str | None:
    """Why the backward kernel cannot serve a gradient; None where it can."""
    if grad.dtype not in gpu.DTYPES:
        return f"it computes in float32, and this is {grad.dtype}"
    return extension_error or _failure or gpu.why_not_device(MIN_CAPABILITY, grad.device)


def backward(*arguments) -> list[Tensor]:
    """The operator exchange_backward on a GPU."""
    return _launch(torch.ops.hrnet_fast.exchange_backward_sums, backward_arguments(*arguments))


def backward_arguments(grad, output, sizes, mode, align_corners, same) -> tuple:
    """Those of exchange_backward as the arguments of ``exchange_backward_sums``."""
    layout = torch.contiguous_format if grad.is_contiguous() else torch.channels_last
    sizes = [*sizes, *(grad.shape[2:] if same else ())]
    return (
        gpu.dense(grad, layout),
        gpu.dense(output, layout),
        sizes,
        layout == torch.channels_last,
        mode,
        align_corners,
    )


library.implement("exchange_cuda", lambda *arguments: on_device(ExchangeCall.from_arguments(*arguments)))
