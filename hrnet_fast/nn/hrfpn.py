"""HRFPN, the feature pyramid of HRNetV2p for detection (Sun et al. 2019, section 3.3), plain and fast."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrnet_fast.nn.folds import FoldCache, needs_grad
from hrnet_fast.nn.module_fingerprint import altered
from hrnet_fast.nn.plain_mode import standard_operators_wanted
from hrnet_fast.nn.prepared_conv import PreparedConv
from hrnet_fast.nn.segmentation_head import is_conv1x1
from hrnet_fast.ops.exchange.api import exchange
from hrnet_fast.ops.transforms import ordinary, traced

POOLINGS = ("average", "max")


class PlainHRFPN(nn.Module):
    """HRFPN as the official code computes it: concatenate, reduce with a 1x1 convolution, pool, convolve each level.

    Keys: ``reduction_conv.0`` and ``fpn_conv.I`` (I: the level), as in ``mmdet/models/necks/hrfpn.py`` of
    HRNet-Object-Detection.

    Args:
        channels: channels of the streams, highest resolution first.
        out_channels: channels of every level.
        levels: of the pyramid; level I has 1 / 2**I of the first stream's size, rounded down.
        pooling: "average" or "max".

    Raises:
        ValueError: no streams, no levels, an unknown pooling.
    """

    def __init__(self, channels: Sequence[int], out_channels: int = 256, levels: int = 5, pooling: str = "average"):
        super().__init__()
        if not channels:
            raise ValueError("channels: expected at least one stream")
        if levels < 1:
            raise ValueError(f"levels: expected at least 1, got {levels}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(map(repr, POOLINGS))}, got {pooling!r}")
        self.reduction_conv = nn.Sequential(nn.Conv2d(sum(channels), out_channels, 1))
        self.fpn_conv = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in range(levels))
        self.channels, self.levels, self.pooling = tuple(channels), levels, pooling

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        """Streams [N, C_j, H >> j, W >> j] to levels [N, out_channels, H >> i, W >> i].

        Raises:
            ValueError: the number of streams, their channels or sizes do not fit, or are too small for the last level.
        """
        if not torch.jit.is_scripting():
            self._check(streams)
        return self._plain(streams)

    def _plain(self, streams: list[Tensor]) -> list[Tensor]:
        size = streams[0].shape[2:]
        enlarged = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in streams[1:]]
        reduced = self.reduction_conv(torch.cat([streams[0]] + enlarged, 1))
        levels: list[Tensor] = []
        for i, conv in enumerate(self.fpn_conv):
            levels.append(conv(reduced if i == 0 else self._pool(reduced, 1 << i)))
        return levels

    def _pool(self, x: Tensor, kernel: int) -> Tensor:
        return F.max_pool2d(x, kernel) if self.pooling == "max" else F.avg_pool2d(x, kernel)

    def extra_repr(self) -> str:
        return f"channels={list(self.channels)}, pooling={self.pooling!r}"

    def _check(self, streams: list[Tensor]) -> None:
        if traced():  # sizes are tensors there
            return
        if len(streams) != len(self.channels):
            raise ValueError(f"streams: expected {len(self.channels)} tensors, got {len(streams)}")
        size = tuple(streams[0].shape[2:])
        for j, (x, channels) in enumerate(zip(streams, self.channels, strict=True)):
            if x.dim() != 4 or x.shape[1] != channels:
                raise ValueError(f"streams[{j}]: expected [N, {channels}, H, W], got {list(x.shape)}")
            if (x.shape[2] << j, x.shape[3] << j) != size:  # the official code enlarges by 2**j exactly
                raise ValueError(f"streams[{j}]: expected 1/{2**j} of streams[0]'s {size}, got {tuple(x.shape[2:])}")
        if min(size) < 2 ** (self.levels - 1):
            raise ValueError(
                f"streams[0]: {self.levels} levels need at least {2 ** (self.levels - 1)} pixels per side, got {size}"
            )


def reduce_streams(streams: list[Tensor], weights: list[Tensor], bias: Tensor | None) -> Tensor:
    """``conv1x1(concat(x_0, up(x_1), ...))`` as one exchange, with the weight split along its input channels.

    Args:
        streams: [N, C_j, H_j, W_j], highest resolution first.
        weights: beside each stream [C_out, C_j, 1, 1].
        bias: [C_out] or None.

    Returns:
        [N, C_out, H_0, W_0].
    """
    return exchange(streams, weights, bias, size=tuple(streams[0].shape[2:]), activation=None)


class HRFPN(PlainHRFPN):
    """HRFPN with its reduction as one ``exchange``; same arguments, parameters, keys and results.

    Interpolation and the 1x1 convolution commute, so that the reduction runs at each stream's own resolution and the
    concatenated tensor is never made, in training too. Each level is pooled from the one above instead of from the
    first: the same mean (or maximum) of the same pixels. Evaluated without gradients for the parameters, the weights
    are split and prepared once (see FoldCache for how long they live). Under torch.jit tracing and scripting, and where
    an inner module has forward hooks or is no plain convolution, it does what PlainHRFPN does.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._folds = FoldCache()

    def train(self, mode: bool = True) -> "HRFPN":
        if mode:
            self._folds.drop()
        return super().train(mode)

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        if torch.jit.is_scripting():
            return self._plain(streams)
        else:  # TorchScript compiles what follows a return, but not the other branch of is_scripting()
            return self._fast(streams)

    @torch.jit.unused
    def _fast(self, streams: list[Tensor]) -> list[Tensor]:
        if standard_operators_wanted(streams):
            return self._plain(streams)
        self._check(streams)
        live = self.training or torch.compiler.is_compiling()
        prepared = None if live else self._folds.get(self)
        if prepared is None and self._altered():
            return self._plain(streams)
        if live or needs_grad(self, None if prepared is None else self._folds):
            reduction = self.reduction_conv[0]
            weights, bias, convs = list(reduction.weight.split(self.channels, dim=1)), reduction.bias, self.fpn_conv
        else:
            weights, bias, convs = prepared or self._folds.get_or_put(self, self._prepare)
        pooled, levels = reduce_streams(streams, weights, bias), []
        for i, conv in enumerate(convs):
            pooled = pooled if i == 0 else self._pool(pooled, 2)
            levels.append(conv(pooled))
        return levels

    def _altered(self) -> bool:
        """Whether somebody has hooked, replaced or parametrized what the fast form takes apart."""
        geometry = {
            "kernel_size": (3, 3),
            "stride": (1, 1),
            "padding": (1, 1),
            "dilation": (1, 1),
            "groups": 1,
            "padding_mode": "zeros",
        }
        changed = len(self.reduction_conv) != 1 or not is_conv1x1(self.reduction_conv[0])
        for conv in self.fpn_conv:
            changed |= type(conv) is not nn.Conv2d or any(getattr(conv, k) != v for k, v in geometry.items())
            changed |= not ordinary(list(conv.parameters()))
        return changed or altered(m for m in self.modules() if m is not self)

    def _prepare(self) -> tuple[list[Tensor], Tensor, list[PreparedConv]]:
        reduction = self.reduction_conv[0]
        weights = [w.contiguous() for w in reduction.weight.detach().split(self.channels, dim=1)]
        convs = [PreparedConv(c.weight.detach(), c.bias.detach(), padding=(1, 1)) for c in self.fpn_conv]
        return weights, reduction.bias.detach(), convs
