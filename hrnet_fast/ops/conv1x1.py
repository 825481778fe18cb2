"""1x1 convolutions as matrix products.

On GPUs torch rounds the products of float32 convolutions to TF32 by default (torch.backends.cudnn.allow_tf32), and those
of matrices only where torch.backends.cuda.matmul.allow_tf32 says so, which is the flag that this package follows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast.ops.exchange.call import is_channels_last


def conv1x1(x: Tensor, weight: Tensor) -> Tensor:  # [N, I, H, W], [O, I] -> [N, O, H, W]
    """The convolution, by whatever is right on the device."""
    if not x.is_cuda and weight.numel() > 0:  # conv2d refuses to make no channels
        return F.conv2d(x, weight[:, :, None, None])
    return as_matrices(x, weight, None, is_channels_last(x))


def as_matrices(x: Tensor, weight: Tensor, bias: Tensor | None, channels_last: bool) -> Tensor:
    """The same with a bias [O], by a matrix product that leaves channels innermost where they are."""
    if channels_last:
        return F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
    y = torch.matmul(weight, x.flatten(2)).unflatten(2, x.shape[2:])
    return y if bias is None else y + bias[:, None, None]
