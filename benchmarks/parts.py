"""The parts of HRNet that the suite measures, each in plain PyTorch and with the same weights in hrnet_fast.

All take their inputs as a list of streams [N, C_j, H_j, W_j], the highest resolution first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.bench.plain_forms import fold_batchnorm
from hrnet_fast.nn import PlainSegmentationHead
from hrnet_fast.nn.prepared_conv import PreparedConv


class OutputZero(nn.Module):
    """Output 0 of an exchange with BatchNorm folded, in the official order: 1x1 convolution, then upsampling.

    Args:
        channels: of the streams.
        weighted: whether the lower streams have a convolution; without one all have the same channels.
    """

    def __init__(self, channels: list[int], weighted: bool = True):
        super().__init__()
        lower = channels[1:] if weighted else []
        # one of the convolutions carries the whole bias: interpolation passes constants through
        self.convs = nn.ModuleList(nn.Conv2d(c, channels[0], 1, bias=k == 0) for k, c in enumerate(lower))

    def forward(self, streams: list[Tensor]) -> Tensor:
        y = streams[0]
        for k, x in enumerate(streams[1:]):
            z = self.raised(self.convs[k] if self.convs else nn.Identity(), x, streams[0].shape[2:])
            y = y + z if k == 0 else y.add_(z)  # the first sum is a new tensor, the others go into it
        return y.relu_()

    def raised(self, conv: nn.Module, x: Tensor, size: torch.Size) -> Tensor:
        """A lower stream at the first one's size."""
        return F.interpolate(conv(x), size, mode="bilinear", align_corners=False)


class PaperOrder(OutputZero):
    """Upsampling, then the 1x1 convolution at the high resolution: what the paper draws."""

    def raised(self, conv: nn.Module, x: Tensor, size: torch.Size) -> Tensor:
        return conv(F.interpolate(x, size, mode="bilinear", align_corners=False))


class FusedOutputZero(nn.Module):
    """The same weights in one call of the operator."""

    def __init__(self, plain: OutputZero):
        super().__init__()
        self.convs = plain.convs

    def forward(self, streams: list[Tensor]) -> Tensor:
        weights = [conv.weight for conv in self.convs] or [None] * (len(streams) - 1)
        return hf.exchange(streams, [None, *weights], self.convs[0].bias if self.convs else None)


class Step(nn.Module):
    """Forward and backward: the gradients of the streams and of all parameters."""

    def __init__(self, form: nn.Module):
        super().__init__()
        self.form, self.kept = form, None

    def forward(self, streams: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            x = [stream.detach().requires_grad_() for stream in streams]
            outputs = self.form(list(x))
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            return list(torch.autograd.grad(outputs, [*x, *self.form.parameters()], upstream))


class Backward(Step):
    """Backward alone, of a forward pass that the first call has made."""

    def forward(self, streams: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
        import torch._functorch.config as config

        with torch.inference_mode(False), torch.enable_grad():
            if self.kept is None:
                # compiled graphs give their saved tensors' memory away otherwise, and run backward only once
                with config.patch(donated_buffer=False):
                    x = [stream.detach().requires_grad_() for stream in streams]
                    self.kept = self.form(list(x)), x
                    torch.autograd.grad(*self.kept, *upstream, retain_graph=True)
            return list(torch.autograd.grad(*self.kept, *upstream, retain_graph=True))


class WithoutClassifier(nn.Module):
    """A V2 head with BatchNorm folded, up to its ReLU: the 15 C channels are the result."""

    def __init__(self, head: PlainSegmentationHead):
        super().__init__()
        self.head = fold_batchnorm(head)

    def forward(self, streams: list[Tensor]) -> Tensor:
        size = streams[0].shape[2:]
        x = [streams[0], *(F.interpolate(t, size, mode="bilinear", align_corners=False) for t in streams[1:])]
        return self.head[2](self.head[1](self.head[0](torch.cat(x, 1))))


class FusedWithoutClassifier(nn.Module):
    """The same weights, split along their input channels, through the operator."""

    def __init__(self, plain: WithoutClassifier):
        super().__init__()
        conv = plain.head[0]
        self.weights = nn.ParameterList(w.detach().contiguous() for w in conv.weight.split(plain.head.channels, dim=1))
        self.bias = nn.Parameter(conv.bias.detach())
        self.requires_grad_(False)

    def forward(self, streams: list[Tensor]) -> Tensor:
        return hf.exchange(streams, list(self.weights), self.bias, size=tuple(streams[0].shape[2:]))


class BasicBlock(nn.Module):
    """A residual block's two convolutions, BatchNorm folded: ReLU behind the first, sum and ReLU behind both."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: list[Tensor]) -> Tensor:
        return F.relu(self.convs[1](F.relu(self.convs[0](x[0]))) + x[0])


class FusedBasicBlock(nn.Module):
    """The same weights as two PreparedConv."""

    def __init__(self, plain: BasicBlock):
        super().__init__()
        self.convs = plain.convs
        self._folded: list[PreparedConv] = []

    def forward(self, x: list[Tensor]) -> Tensor:
        if not self._folded:
            geometry = (1, 1), (1, 1), (1, 1), 1
            self._folded = [PreparedConv(c.weight.detach(), c.bias.detach(), *geometry, relu)
                            for c, relu in zip(self.convs, (0, None), strict=True)]  # fmt: skip
        first, second = self._folded
        return second.add_relu(first(x[0]), x[0])
