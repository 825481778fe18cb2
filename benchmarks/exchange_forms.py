"""The operator written in plain PyTorch, in the forms that it is compared with; weights folded and shared by all."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrnet_fast import exchange


class Weights(nn.Module):
    """Folded 1x1 convolutions of the lower streams into stream 0, and the sum of their biases.

    Args:
        channels: channels of the streams, highest resolution first.
        dtype: of the weights.
        seed: of the weights.
    """

    def __init__(self, channels: list[int], dtype: torch.dtype, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(channels[0], c, 1, 1, generator=generator) / c**0.5 for c in channels[1:]]
        self.weights = nn.ParameterList(w.to(dtype) for w in weights)
        self.bias = nn.Parameter(torch.randn(channels[0], generator=generator).to(dtype))


class OfficialOrder(Weights):
    """1x1 convolution at the low resolution, then upsampling: what every HRNet code does."""

    def forward(self, streams: list[Tensor]) -> Tensor:
        size = streams[0].shape[2:]
        y = streams[0]
        for j, (x, weight) in enumerate(zip(streams[1:], self.weights, strict=True)):
            # one of the convolutions carries the whole bias: interpolation passes constants through
            z = F.conv2d(x, weight, self.bias if j == 0 else None)
            z = F.interpolate(z, size, mode="bilinear", align_corners=False)
            y = y + z if j == 0 else y.add_(z)  # the first sum is a new tensor, the others go into it
        return y.relu_()


class PaperOrder(Weights):
    """Upsampling, then the 1x1 convolution at the high resolution: what the paper draws."""

    def forward(self, streams: list[Tensor]) -> Tensor:
        size = streams[0].shape[2:]
        y = streams[0]
        for j, (x, weight) in enumerate(zip(streams[1:], self.weights, strict=True)):
            up = F.interpolate(x, size, mode="bilinear", align_corners=False)
            z = F.conv2d(up, weight, self.bias if j == 0 else None)
            y = y + z if j == 0 else y.add_(z)
        return y.relu_()


class Fused(Weights):
    """One call of the operator."""

    def __init__(self, channels: list[int], dtype: torch.dtype, seed: int):
        super().__init__(channels, dtype, seed)
        self.requires_grad_(False)

    def forward(self, streams: list[Tensor]) -> Tensor:
        return exchange(streams, [None, *self.weights], self.bias)
