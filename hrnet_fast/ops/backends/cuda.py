"""CUDA C++ kernels for NVIDIA GPUs (csrc/cuda): the exchange in one kernel, several of them in one launch.

With channels innermost, the 1x1 convolutions of a low-resolution patch go through the tensor cores into shared memory
and are interpolated from there. With columns innermost torch makes the products at their own resolution, and the kernel
takes four taps of them. A projection that follows is torch's.
"""

import functools

import torch
from torch import Tensor

from hrnet_fast.ops import library
from hrnet_fast.ops.backends import gpu
from hrnet_fast.ops.exchange import autograd
from hrnet_fast.ops.exchange.call import ExchangeCall, output_memory_format
from hrnet_fast.ops.transforms import below_autograd

MIN_CAPABILITY = (7, 5)
MIN_CAPABILITY_BFLOAT16 = MIN_CAPABILITY_TF32 = (8, 0)
MAX_TOGETHER = 4  # outputs of a launch: kMaxOutputs of csrc/cuda/problem.h

library.define(
    "exchange_sums(Tensor[] inputs, int[] counts, Tensor[] weights, int[] weighted, Tensor[] biases, int[] biased, "
    "int[] sizes, bool channels_last, str mode, bool align_corners, bool relu, bool allow_tf32) -> Tensor[]"
)
library.define(
    "exchange_backward_sums(Tensor grad, Tensor? output, int[] sizes, bool channels_last, str mode, "
    "bool align_corners) -> Tensor[]"
)
for _name in ("exchange_sums", "exchange_backward_sums"):
    library.refuse_derivatives(_name)
library.define("cuda_kernels_error(int device) -> str")
extension_error: str | None = None  # why the compiled CUDA kernels are not there
try:
    import hrnet_fast._C_cuda  # noqa: F401
except ImportError as error:
    extension_error = f"the compiled extension hrnet_fast._C_cuda is not there ({error})"
    if isinstance(error, ModuleNotFoundError):
        extension_error += "; it is built where torch is a CUDA build and the CUDA toolkit is there, nvcc included"

failures = gpu.Failures()


def why_not(call: ExchangeCall | None) -> str | None:
    if extension_error is not None:
        return extension_error
    if call is None:
        return _why_not_machine(MIN_CAPABILITY)
    if torch.compiler.is_compiling() and call.inputs[0].is_cuda:
        return None  # the operator asks again when it runs; what the machine has cannot be traced
    reason = gpu.why_not_tensors(call)
    if reason is not None:
        return reason
    least = MIN_CAPABILITY_BFLOAT16 if gpu.dtype_of(call) == torch.bfloat16 else MIN_CAPABILITY
    return _why_not_machine(least, call.inputs[0].device)


def _why_not_machine(minimum: tuple[int, int], device: torch.device | None = None) -> str | None:
    reason = gpu.why_not_device(minimum, device)
    return reason or kernels_error(gpu.index_of(device)) or failures.on(device)


@functools.cache
def kernels_error(index: int) -> str | None:
    """Why the driver cannot load the kernels on a GPU: it is too old, or they were compiled for others."""
    error = torch.ops.hrnet_fast.cuda_kernels_error(index)
    major, minor = gpu.capability(index)
    return f"its kernels cannot be loaded on this GPU of compute capability {major}.{minor}: {error}" if error else None


def run(call: ExchangeCall) -> Tensor:  # [N, C_out or C_p, H, W]
    if call.needs_grad:
        return autograd.differentiable(call)
    return below_autograd(torch.ops.hrnet_fast.exchange_cuda, *call.arguments())


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
    if arguments[-1] and gpu.capability(gpu.index_of(x.device)) < MIN_CAPABILITY_TF32:
        arguments = (*arguments[:-1], False)
    return _launch(torch.ops.hrnet_fast.exchange_sums, arguments, x.device)


def _launch(operator, arguments: tuple, device: torch.device) -> list[Tensor]:
    """Runs a kernel; remembers one that cannot be launched, which another call would not change."""
    try:
        return below_autograd(operator, *arguments)
    except RuntimeError as error:
        reason = gpu.first_line(error)
        if "failed to launch" not in reason or "out of memory" in reason:
            raise
        raise failures.remember(device, reason) from error


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
    return (
        inputs,
        counts,
        weights,
        weighted,
        biases,
        biased,
        sizes,
        channels_last,
        first.mode,
        first.align_corners,
        first.relu,
        first.allow_tf32,
    )


def why_not_backward(grad: Tensor) -> str | None:
    """Why the backward kernel cannot serve a gradient; None where it can."""
    if grad.dtype not in gpu.DTYPES:
        return f"it computes in float32, and this is {grad.dtype}"
    return extension_error or _why_not_machine(MIN_CAPABILITY, grad.device)


def backward(*arguments) -> list[Tensor]:
    """The operator exchange_backward on a GPU."""
    return _launch(torch.ops.hrnet_fast.exchange_backward_sums, backward_arguments(*arguments), arguments[0].device)


def backward_arguments(grad, output, sizes, mode, align_corners, same) -> tuple:
    """Those of exchange_backward as the arguments of ``exchange_backward_sums``."""
    layout = autograd.backward_layout(grad, output)
    sizes = [*sizes, *(grad.shape[2:] if same else ())]
    return (
        gpu.dense(grad, layout),
        gpu.dense(output, layout),
        sizes,
        layout == torch.channels_last,
        mode,
        align_corners,
    )


library.define_exchange("exchange_cuda", lambda *arguments: on_device(ExchangeCall.from_arguments(*arguments)))
