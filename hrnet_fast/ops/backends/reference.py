"""The reference: the exchange in the plainest PyTorch there is, computed in float32 or wider.

It is the truth that every other backend is compared with, it runs wherever PyTorch runs, and it is made of standard
operators only, so that it can be traced and exported to ONNX, and is differentiated and batched in every way of torch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast.ops import conv1x1
from hrnet_fast.ops.exchange.call import ExchangeCall, lay_out, output_memory_format


def why_not(call: ExchangeCall | None) -> str | None:
    return None


def run(call: ExchangeCall) -> Tensor:  # [N, C_out or C_p, H, W]
    device = call.inputs[0].device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _compute(call, dtype)
    return _compute(call, call.inputs[0].dtype)


def _compute(call: ExchangeCall, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    y = None
    for x, weight in zip(call.inputs, call.weights, strict=True):
        z = x.to(wide) if weight is None else _conv1x1(x, weight, wide)
        if z.shape[2] != call.height or z.shape[3] != call.width:
            z = _interpolate(z, call)
        y = z if y is None else y + z
    if call.bias is not None:
        y = y + call.bias.to(wide).reshape(1, -1, 1, 1)
    if call.relu:
        y = F.relu(y)
    if call.projection is not None:
        y = _conv1x1(y, call.projection, wide)
        if call.projection_bias is not None:
            y = y + call.projection_bias.to(wide).reshape(1, -1, 1, 1)
    y = lay_out(y.to(dtype), output_memory_format(call.inputs, call.height, call.width))
    # one identity input at full size without bias or ReLU: y would be the input itself
    return y.clone() if any(y is x for x in call.inputs) else y


def _conv1x1(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return conv1x1.conv1x1(x.to(dtype), weight.to(dtype).reshape(weight.shape[0], weight.shape[1]))


def _interpolate(z: Tensor, call: ExchangeCall) -> Tensor:
    if z.shape[1] == 0:  # which torch refuses: with one more channel, of zeros
        return _interpolate(F.pad(z, (0, 0, 0, 0, 0, 1)), call)[:, :0]
    corners = call.align_corners if call.mode == "bilinear" else None
    return F.interpolate(z, (call.height, call.width), mode=call.mode, align_corners=corners)
