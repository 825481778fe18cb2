"""The V2 segmentation head (paper section 3.3, ``last_layer`` in the official code), plain and fast."""

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrnet_fast.exchange import exchange
from hrnet_fast.folding import FoldCache, fold_modules, has_hooks, needs_grad, why_not_fold
from hrnet_fast.modules.exchange_unit import up_path


class PlainSegmentationHead(nn.Sequential):
    """The V2 head as the official code computes it: all streams upsampled to the first one's size, then combined.

    combine="concat" (the official head): concatenation, 1x1 convolution with bias, BatchNorm, ReLU, 1x1 convolution to
    the classes. A Sequential, so that as the attribute ``last_layer`` its keys are the official ones,
    ``last_layer.{0,1,3}``. combine="sum": each stream goes through its own 1x1 convolution and BatchNorm to ``width``
    channels (keys ``last_layer.0.J.{0,1}``), is upsampled and added, as an exchange unit would make one more output;
    then ReLU and the 1x1 convolution to the classes (``last_layer.3``).

    Args:
        channels: channels of the streams, highest resolution first.
        num_classes: channels of the result.
        combine: "concat" or "sum".
        width: hidden channels; by default the sum of ``channels``, as in the official head.
        align_corners: of the bilinear upsampling.
        momentum: of the BatchNorms.

    Raises:
        ValueError: an unknown ``combine``, or no streams.
    """

    _concat: Final[bool]  # TorchScript compiles only the branch that is taken

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        combine: str = "concat",
        width: int | None = None,
        align_corners: bool = False,
        momentum: float = 0.01,
    ):
        if combine not in ("concat", "sum"):
            raise ValueError(f"combine: expected 'concat' or 'sum', got {combine!r}")
        if not channels:
            raise ValueError("channels: expected at least one stream")
        width = width or sum(channels)
        if combine == "concat":
            hidden = [nn.Conv2d(sum(channels), width, 1), nn.BatchNorm2d(width, momentum=momentum)]
        else:
            hidden = [nn.ModuleList(up_path(c, width, momentum) for c in channels), nn.Identity()]
        super().__init__(*hidden, nn.ReLU(), nn.Conv2d(width, num_classes, 1))
        self.channels = tuple(channels)
        self.combine, self.align_corners = combine, align_corners
        self._concat = combine == "concat"

    def forward(self, streams: list[Tensor]) -> Tensor:
        """Streams [N, C_j, H_j, W_j], highest resolution first, to logits [N, num_classes, H_0, W_0].

        Raises:
            ValueError: the number of streams or their channels do not fit.
        """
        if not torch.jit.is_scripting():
            self._check(streams)
        return self._plain(streams)

    def _plain(self, streams: list[Tensor]) -> Tensor:
        if self._concat:
            enlarged = [self._upsample(x, streams[0]) for x in streams[1:]]
            y = self[0](torch.cat([streams[0]] + enlarged, 1))
        else:
            y = streams[0]  # for TorchScript, where y needs a type before the loop
            for j, path in enumerate(self[0]):
                z = path(streams[j])
                y = z if j == 0 else y + self._upsample(z, streams[0])
        return self[3](self[2](self[1](y)))

    def extra_repr(self) -> str:
        return f"channels={list(self.channels)}, combine={self.combine!r}, align_corners={self.align_corners}"

    def _upsample(self, x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=self.align_corners)

    def _check(self, streams: list[Tensor]) -> None:
        if torch.jit.is_tracing():  # sizes are tensors there
            return
        if len(streams) != len(self.channels):
            raise ValueError(f"streams: expected {len(self.channels)} tensors, got {len(streams)}")
        for j, (x, channels) in enumerate(zip(streams, self.channels, strict=True)):
            if x.dim() != 4 or x.shape[1] != channels:
                raise ValueError(f"streams[{j}]: expected [N, {channels}, H, W], got {list(x.shape)}")


class SegmentationHead(PlainSegmentationHead):
    """The V2 head as one ``exchange``; same arguments, parameters, keys and results.

    Interpolation acts on each channel alone and a 1x1 convolution on each pixel alone, so that concatenation and 1x1
    convolution are ``sum_j up(W_j x_j)`` with the weight split along its input channels. The convolution then runs at
    each stream's own resolution and the concatenated tensor is never made. This holds in training too, where BatchNorm,
    ReLU and the classifier follow as they are. Evaluated without gradients for the parameters, BatchNorm is folded and
    the classifier is fused behind the sum. Under torch.jit tracing and scripting, and where an inner module has
    forward hooks, it does what PlainSegmentationHead does.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._folds = FoldCache()

    def train(self, mode: bool = True) -> "SegmentationHead":
        if mode:
            self._folds.drop()
        return super().train(mode)

    def forward(self, streams: list[Tensor]) -> Tensor:
        if torch.jit.is_scripting():
            return self._plain(streams)
        else:  # TorchScript compiles what follows a return, but not the other branch of is_scripting()
            return self._fast(streams)

    @torch.jit.unused
    def _fast(self, streams: list[Tensor]) -> Tensor:
        if torch.jit.is_tracing():
            return self._plain(streams)
        self._check(streams)
        compiling = torch.compiler.is_compiling()
        folded = None if compiling or self.training else self._folds.get(self)
        if folded is None and self._altered():
            return self._plain(streams)
        if self.training or needs_grad(self._folds, self) or (folded is None and not self._foldable()):
            return self._live(streams)
        if folded is None:
            folded = self._fold() if compiling else self._folds.get_or_put(self, self._fold)
        weights, bias, projection = folded
        return self._exchange(streams, weights, bias, "relu", projection)

    def _exchange(self, streams, weights, bias, activation, projection=None) -> Tensor:
        return exchange(streams, weights, bias, size=tuple(streams[0].shape[2:]), align_corners=self.align_corners,
                        activation=activation, projection=projection)  # fmt: skip

    def _live(self, streams: list[Tensor]) -> Tensor:
        if self._concat:
            weights = list(self[0].weight.split(self.channels, dim=1))
            return self[3](self[2](self[1](self._exchange(streams, weights, self[0].bias, None))))
        inputs = [path(x) for path, x in zip(self[0], streams, strict=True)]
        return self[3](self._exchange(inputs, None, None, "relu"))

    def _altered(self) -> bool:
        """Whether somebody has hooked, replaced or parametrized what the fused forms take apart."""
        convs = (self[0], self[3]) if self._concat else (self[3],)
        return has_hooks(m for m in self.modules() if m is not self) or any(type(c) is not nn.Conv2d for c in convs)

    def _foldable(self) -> bool:
        pairs = [(self[0], self[1])] if self._concat else [(path[0], path[1]) for path in self[0]]
        return all(why_not_fold(conv, norm) is None for conv, norm in pairs)

    def _fold(self) -> tuple[list[Tensor], Tensor, tuple[Tensor, Tensor | None]]:
        if self._concat:
            weight, bias = fold_modules(self[0], self[1])
            weights = [w.contiguous() for w in weight.split(self.channels, dim=1)]
        else:
            folds = [fold_modules(path[0], path[1]) for path in self[0]]
            weights = [w for w, _ in folds]
            # added up in float32: the sum is rounded once
            bias = sum(b.to(torch.promote_types(b.dtype, torch.float32)) for _, b in folds).to(folds[0][1].dtype)
        return weights, bias, (self[3].weight.detach(), None if self[3].bias is None else self[3].bias.detach())
