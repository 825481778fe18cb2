"""The C++ kernel for CPUs (csrc/cpu): AVX2, AVX-512, AVX512-BF16, AMX or portable code, chosen at run time."""

import torch
from torch import Tensor

from hrnet_fast import library
from hrnet_fast.call import ExchangeCall


def why_not(call: ExchangeCall | None) -> str | None:
    if library.extension_error is not None:
        return library.extension_error
    if call is None:
        return None
    device = call.inputs[0].device.type
    if device != "cpu":
        return f"it serves tensors on the CPU, these are on {device}"
    if torch.jit.is_tracing() or torch.jit.is_scripting():
        return "under torch.jit tracing only standard operators are recorded"
    return None


def run(call: ExchangeCall) -> Tensor:  # [N, C_out or C_p, H, W]
    # The differentiable operator costs twice as much to call even where no gradient is wanted.
    op = torch.ops.hrnet_fast.exchange if call.needs_grad else torch.ops.hrnet_fast.exchange_fwd
    return op.default(*call.arguments())
