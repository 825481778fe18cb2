"""The exchange in float64, for comparison: exact up to float64's rounding, on the very inputs that a backend got."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast.ops.exchange.call import ExchangeCall


def exact(call: ExchangeCall) -> Tensor:  # [N, C_out or C_p, H, W] float64
    """What the call should return, without any rounding to the inputs' dtype."""
    total = None
    for x, weight in zip(call.inputs, call.weights, strict=True):
        z = x.double() if weight is None else _conv1x1(x, weight)
        if z.shape[2:] != (call.height, call.width):
            z = _nearest(z, call) if call.mode == "nearest" else F.interpolate(
                z, (call.height, call.width), mode="bilinear", align_corners=call.align_corners)  # fmt: skip
        total = z if total is None else total + z
    if call.bias is not None:
        total = total + call.bias.double().view(1, -1, 1, 1)
    total = total.relu() if call.relu else total
    if call.projection is not None:
        total = _conv1x1(total, call.projection)
        if call.projection_bias is not None:
            total = total + call.projection_bias.double().view(1, -1, 1, 1)
    return total


def _conv1x1(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x.double(), weight.double().flatten(1)[..., None, None])


def _nearest(z: Tensor, call: ExchangeCall) -> Tensor:
    """Nearest picks pixels by an index that torch computes in float32, also for channels_last float64 tensors.

    At some odd sizes (26 -> 46) an index computed in float64 picks other pixels, so the pick is torch's own, in
    float32. (Contiguous float64 tensors have a third rule in torch, which differs from both at a few sizes, 45 -> 129
    among them.)
    """
    rows, columns = (
        F.interpolate(
            torch.arange(n, dtype=torch.float32, device=z.device).view(1, 1, n), size, mode="nearest"
        ).flatten()
        for n, size in ((z.shape[2], call.height), (z.shape[3], call.width))
    )
    return z.index_select(2, rows.long()).index_select(3, columns.long())
