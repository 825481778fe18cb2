"""The exchange unit of an HRNet module (paper section 3.2; ``fuse_layers`` in the official code), plain and fast."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrnet_fast.nn.folded_exchange import current_plan, exchange_streams
from hrnet_fast.nn.folds import FoldCache
from hrnet_fast.nn.plain_mode import standard_operators_wanted
from hrnet_fast.ops.exchange.call import MODES
from hrnet_fast.ops.transforms import traced


def up_path(in_channels: int, out_channels: int, momentum: float) -> nn.Sequential:
    """1x1 convolution and BatchNorm; the upsampling behind them has no parameters and is done in forward."""
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, momentum=momentum))


def down_path(in_channels: int, out_channels: int, steps: int, momentum: float) -> nn.Sequential:
    """Strided 3x3 convolutions with BatchNorm, each halving the size; ReLU between the steps, none after the last."""
    path = []
    for step in range(steps):
        last = step == steps - 1
        channels = out_channels if last else in_channels
        conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
        layers = [conv, nn.BatchNorm2d(channels, momentum=momentum)]
        path.append(nn.Sequential(*layers) if last else nn.Sequential(*layers, nn.ReLU()))
    return nn.Sequential(*path)


class PlainExchangeUnit(nn.ModuleList):
    """The exchange unit as the official code computes it, step by step.

    A ModuleList of rows (outputs) of columns (inputs), so that as the attribute ``fuse_layers`` of a
    HighResolutionModule its state-dict keys are the official ones: ``fuse_layers.I.J.{0,1}`` (convolution, BatchNorm)
    where stream J has the lower resolution, ``fuse_layers.I.J.K.{0,1}`` where it has the higher (K: the stride-2 step),
    none on the diagonal. Source: ``HighResolutionModule._make_fuse_layers`` of HRNet-Semantic-Segmentation and
    HRNet-Image-Classification.

    Args:
        channels: channels of the streams, highest resolution first; two or more.
        multi_scale_output: False: only output 0 is made.
        mode: "bilinear", to the very size of the higher stream (the segmentation and landmark repositories), or
            "nearest", by powers of two (the classification, pose and detection repositories, timm).
        align_corners: as in torch.nn.functional.interpolate; bilinear only.
        momentum: of the BatchNorms.

    Raises:
        ValueError: fewer than two streams, an unknown mode, align_corners with nearest.
    """

    def __init__(
        self,
        channels: Sequence[int],
        multi_scale_output: bool = True,
        mode: str = "bilinear",
        align_corners: bool = False,
        momentum: float = 0.1,
    ):
        if len(channels) < 2:
            raise ValueError(f"channels: an exchange needs two or more streams, got {list(channels)}")
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")
        if align_corners and mode == "nearest":
            raise ValueError("align_corners: only bilinear interpolation has it, got mode='nearest'")
        rows = []
        for i in range(len(channels) if multi_scale_output else 1):
            row = [
                up_path(c, channels[i], momentum)
                if j > i
                else down_path(c, channels[i], i - j, momentum)
                if j < i
                else nn.Identity()
                for j, c in enumerate(channels)
            ]
            rows.append(nn.ModuleList(row))
        super().__init__(rows)
        self.channels = tuple(channels)
        self.mode, self.align_corners = mode, align_corners

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        """Streams [N, C_j, H_j, W_j], highest resolution first, to as many streams (or one) of the same shapes.

        Raises:
            ValueError: the number of streams, their channels or sizes do not fit.
        """
        if not torch.jit.is_scripting():
            self._check(streams)
        return self._plain(streams)

    def _plain(self, streams: list[Tensor]) -> list[Tensor]:
        outputs: list[Tensor] = []
        for i, row in enumerate(self):
            y = streams[0]  # for TorchScript, where y needs a type before the loop
            for j, path in enumerate(row):
                z = path(streams[j])
                if j > i:
                    z = self._upsample(z, streams[i])
                y = z if j == 0 else y + z
            outputs.append(F.relu(y))
        return outputs

    def extra_repr(self) -> str:
        return f"channels={list(self.channels)}, mode={self.mode!r}, align_corners={self.align_corners}"

    def _upsample(self, z: Tensor, like: Tensor) -> Tensor:
        if self.mode == "bilinear":
            return F.interpolate(z, like.shape[2:], mode="bilinear", align_corners=self.align_corners)
        return F.interpolate(z, like.shape[2:], mode="nearest")

    def _check(self, streams: list[Tensor]) -> None:
        if traced():  # sizes are tensors there
            return
        if len(streams) != len(self.channels):
            raise ValueError(f"streams: expected {len(self.channels)} tensors, got {len(streams)}")
        for j, (x, channels) in enumerate(zip(streams, self.channels, strict=True)):
            if x.dim() != 4 or x.shape[1] != channels:
                raise ValueError(f"streams[{j}]: expected [N, {channels}, H, W], got {list(x.shape)}")
            if j == 0:
                continue
            above, here = streams[j - 1].shape[2:], x.shape[2:]
            # what a convolution of stride 2 makes of the stream above
            if here[0] != (above[0] + 1) // 2 or here[1] != (above[1] + 1) // 2:
                raise ValueError(
                    f"streams[{j}]: expected half of streams[{j - 1}]'s {tuple(above)}, rounded up, got {tuple(here)}"
                )
            if self.mode == "nearest" and (here[0] * 2 != above[0] or here[1] * 2 != above[1]):
                raise ValueError(
                    f"streams[{j}]: nearest upsampling by 2 makes {(here[0] * 2, here[1] * 2)} of "
                    f"{tuple(here)}, but streams[{j - 1}] is {tuple(above)}: the sizes of streams[0] "
                    f"must be multiples of {2 ** (len(self.channels) - 1)}"
                )


class ExchangeUnit(PlainExchangeUnit):
    """The exchange unit with one fused operator per output; same arguments, parameters, keys and results.

    Evaluated without gradients for its parameters, BatchNorm is folded (see FoldCache for how long a fold lives), the
    1x1 convolutions, upsampling, sum and ReLU of each output are one ``exchange``, and the strided convolutions that
    leave one stream run as one convolution with their output channels side by side. In training mode, and where the
    parameters need gradients or an inner module has forward hooks, BatchNorm stays what it is, and upsampling, sum and
    ReLU are fused; on the CPU, in channels_last, similar convolutions of one stream then run side by side too, with one
    kernel for their norms and ReLUs. Under torch.jit tracing it does what PlainExchangeUnit does.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._folds = FoldCache()

    def train(self, mode: bool = True) -> "ExchangeUnit":
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
        if not self._folds.tried.get(self, self._is_whole):
            return self._plain(streams)
        plan = current_plan(self, self._folds)
        return exchange_streams(self, plan, self._folds, streams, self.mode, self.align_corners)

    def _is_whole(self) -> bool:
        """Whether the up paths are what they were made of: somebody may have added a module."""
        return all(len(path) == 2 for i, row in enumerate(self) for path in list(row)[i + 1 :])
