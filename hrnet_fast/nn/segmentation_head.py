"""The V2 segmentation head (paper section 3.3, ``last_layer`` in the official code), plain and fast."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrnet_fast.nn.exchange_unit import up_path
from hrnet_fast.nn.folds import FoldCache, fold_modules, why_not_fold
from hrnet_fast.nn.module_fingerprint import altered
from hrnet_fast.nn.plain_mode import standard_operators_wanted
from hrnet_fast.ops.exchange.api import exchange
from hrnet_fast.ops.transforms import ordinary, traced


class HeadPlan(NamedTuple):
    """A V2 head with BatchNorm folded."""

    weights: list[Tensor]  # per stream [C_hidden, C_j, 1, 1]
    bias: Tensor  # [C_hidden]
    projection: tuple[Tensor, Tensor | None] | None  # the classifier's weight [classes, C_hidden, 1, 1] and bias


def fold_concat_head(conv: nn.Module, norm: nn.Module, classifier: nn.Module, channels: Sequence[int]) -> HeadPlan:
    """1x1 convolution over the concatenation of streams, norm and classifier, prepared for ``exchange``.

    A classifier that is no plain 1x1 convolution (the official FINAL_CONV_KERNEL: 3) stays outside of the plan.
    """
    weight, bias = fold_modules(conv, norm)
    weights = [w.contiguous() for w in weight.split(tuple(channels), dim=1)]
    return HeadPlan(weights, bias, _projection(classifier) if is_conv1x1(classifier) else None)


def exchange_head(plan: HeadPlan, streams: list[Tensor], align_corners: bool) -> Tensor:
    """The folded head on streams [N, C_j, H_j, W_j]: [N, classes, H_0, W_0]; without projection [N, C_hidden, ...]."""
    size = tuple(streams[0].shape[2:])
    return exchange(
        streams, plan.weights, plan.bias, size=size, align_corners=align_corners, projection=plan.projection
    )


def exchange_concat(conv: nn.Conv2d, streams: list[Tensor], align_corners: bool) -> Tensor:
    """``conv(concat(x_0, up(x_1), ...))`` for a 1x1 convolution; autograd sees its weight; [N, C, H_0, W_0]."""
    weights = list(conv.weight.split([x.shape[1] for x in streams], dim=1))
    size = tuple(streams[0].shape[2:])
    return exchange(streams, weights, conv.bias, size=size, align_corners=align_corners, activation=None)


def is_conv1x1(module: nn.Module) -> bool:
    """Whether it is a plain 1x1 convolution, of which nobody has made something else."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == module.stride == (1, 1)
        and module.padding == (0, 0)
        and module.dilation == (1, 1)
        and module.groups == 1
        and ordinary(list(module.parameters()))
    )


def _projection(classifier: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    return classifier.weight.detach(), None if classifier.bias is None else classifier.bias.detach()


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
        if traced():  # sizes are tensors there
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
        if standard_operators_wanted(streams):
            return self._plain(streams)
        self._check(streams)
        plan = self._folds.current(self, self._foldable, self._fold)
        if plan is None:
            return self._plain(streams) if self._altered() else self._live(streams)
        return exchange_head(plan, streams, self.align_corners)

    def _live(self, streams: list[Tensor]) -> Tensor:
        if self._concat:
            return self[3](self[2](self[1](exchange_concat(self[0], streams, self.align_corners))))
        inputs = [path(x) for path, x in zip(self[0], streams, strict=True)]
        size = tuple(streams[0].shape[2:])
        return self[3](exchange(inputs, size=size, align_corners=self.align_corners))

    def _altered(self) -> bool:
        """Whether somebody has hooked, replaced or parametrized what the fused forms take apart."""
        convs = (self[0], self[3]) if self._concat else (self[3],)
        changed = len(self) != 4 or type(self[2]) is not nn.ReLU or not all(map(is_conv1x1, convs))
        return changed or altered(m for m in self.modules() if m is not self)

    def _foldable(self) -> bool:
        if self._altered():
            return False
        pairs = [(self[0], self[1])] if self._concat else [(path[0], path[1]) for path in self[0]]
        return all(why_not_fold(conv, norm) is None for conv, norm in pairs)

    def _fold(self) -> HeadPlan:
        if self._concat:
            return fold_concat_head(self[0], self[1], self[3], self.channels)
        folds = [fold_modules(path[0], path[1]) for path in self[0]]
        # added up in float32: the sum is rounded once
        bias = sum(b.to(torch.promote_types(b.dtype, torch.float32)) for _, b in folds).to(folds[0][1].dtype)
        return HeadPlan([w for w, _ in folds], bias, _projection(self[3]))
