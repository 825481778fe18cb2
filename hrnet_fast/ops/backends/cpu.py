"""The C++ kernel for CPUs (csrc/cpu): AVX2, AVX-512, AVX512-BF16, AMX, NEON or portable code, chosen at run time."""

import torch
from torch import Tensor

from hrnet_fast.ops import library
from hrnet_fast.ops.exchange import autograd
from hrnet_fast.ops.exchange.call import ExchangeCall
from hrnet_fast.ops.transforms import below_autograd

_FORWARD = torch.ops.hrnet_fast.exchange_fwd.default


def why_not(call: ExchangeCall | None) -> str | None:
    if library.extension_error is not None:
        return library.extension_error
    if call is None:
        return None
    if not call.inputs[0].is_cpu:
        return f"it serves tensors on the CPU, these are on {call.inputs[0].device.type}"
    if torch.jit.is_tracing():
        return "under torch.jit tracing only standard operators are recorded"
    return None


def run(call: ExchangeCall) -> Tensor:  # [N, C_out or C_p, H, W]
    # Recording for autograd costs as much as the call itself, even where no gradient is wanted.
    return autograd.differentiable(call) if call.needs_grad else below_autograd(_FORWARD, *call.arguments())
