"""The HRNet backbone with the module names, and so the state-dict keys, of the official repositories."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.models.configs import Config
from hrnet_fast.nn import ExchangeUnit, PlainExchangeUnit, residual_blocks
from hrnet_fast.nn.plain_mode import standard_operators_wanted
from hrnet_fast.nn.residual_blocks import EXPANSION
from hrnet_fast.ops.transforms import traced


class Parts(NamedTuple):
    """What a network is built from, plain or fast."""

    basic_block: type[residual_blocks.BasicBlock]
    bottleneck: type[residual_blocks.Bottleneck]
    convolution: type[residual_blocks.ConvNormReLU]
    exchange_unit: type[PlainExchangeUnit]


PLAIN = Parts(residual_blocks.BasicBlock, residual_blocks.Bottleneck, residual_blocks.ConvNormReLU, PlainExchangeUnit)
FAST = Parts(
    residual_blocks.FoldedBasicBlock, residual_blocks.FoldedBottleneck, residual_blocks.FoldedConvNormReLU, ExchangeUnit
)


class HighResolutionModule(nn.Module):
    """Residual blocks on every stream (``branches``), then an exchange between all streams (``fuse_layers``)."""

    def __init__(self, channels: list[int], count: int, parts: Parts, **exchange):
        super().__init__()
        momentum = exchange["momentum"]
        self.branches = nn.ModuleList(
            nn.Sequential(*(parts.basic_block(c, momentum) for _ in range(count))) for c in channels
        )
        self.fuse_layers = parts.exchange_unit(channels, **exchange)

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        branched: list[Tensor] = []
        for i, branch in enumerate(self.branches):
            branched.append(branch(streams[i]))
        return self.fuse_layers(branched)


class Stage(nn.Sequential):
    """Modules with the same streams, one after the other."""

    def forward(self, streams: list[Tensor]) -> list[Tensor]:  # TorchScript takes an nn.Sequential's input for a tensor
        for module in self:
            streams = module(streams)
        return streams


class HRNet(nn.Module):
    """The backbone: stem, bottlenecks, and stages 2 to 4 with two to four streams (paper, section 3.1).

    Args:
        config: a row of the configuration table.
        in_chans: channels of the image.
        mode, align_corners: upsampling of the exchange units.
        momentum: of the BatchNorms; 0.01 in the official segmentation code, 0.1 in the others.
        fast: built from the parts FAST instead of PLAIN.
        multi_scale_output: False: the last module of stage 4 makes the highest resolution only (HRNetV1).
    """

    def __init__(
        self,
        config: Config,
        in_chans: int,
        mode: str,
        align_corners: bool,
        momentum: float,
        fast: bool,
        multi_scale_output: bool = True,
    ):
        super().__init__()
        self.config = config
        self.in_chans, self.mode, self.fast = in_chans, mode, fast
        self.conv1 = nn.Conv2d(in_chans, 64, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, momentum=momentum)
        self.conv2 = nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64, momentum=momentum)
        self.relu = nn.ReLU()
        self._folded_stem = residual_blocks.FoldedStem() if fast else None

        wide = config.stem * EXPANSION
        inputs = [64] + [wide] * (config.bottlenecks - 1)
        self.parts = parts = FAST if fast else PLAIN
        self.layer1 = nn.Sequential(*(parts.bottleneck(c, config.stem, momentum) for c in inputs))

        previous = [wide]
        for stage, modules in zip((2, 3, 4), config.modules, strict=True):
            channels = config.channels(stage)
            self.add_module(f"transition{stage - 1}", _transition(previous, channels, momentum, parts.convolution))
            exchange = {"mode": mode, "align_corners": align_corners, "momentum": momentum}
            single = () if multi_scale_output or stage < 4 else (modules - 1,)
            stack = (
                HighResolutionModule(channels, config.blocks, parts, multi_scale_output=i not in single, **exchange)
                for i in range(modules)
            )
            self.add_module(f"stage{stage}", Stage(*stack))
            previous = channels

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image [N, in_chans, H, W] to four streams [N, C << k, ceil(H / (4 << k)), ceil(W / (4 << k))].

        Any size from 1x1 works in evaluation with bilinear exchange units; training needs more than one pixel per
        channel in the lowest stream (more than 32x32, or a batch of two), for BatchNorm's statistics. With nearest
        exchange units a quarter of each side, rounded up, must be a multiple of 8, as in the official code: multiples
        of 32 pixels always work.

        Raises:
            ValueError: wrong rank, channels or size.
        """
        if not torch.jit.is_scripting():
            self.check_image(image)
        return self.streams(image)

    def streams(self, image: Tensor) -> list[Tensor]:
        """``forward`` without its checks; only the first stream without ``multi_scale_output``."""
        x = self.layer1(self._stem(image))
        y: list[Tensor] = []
        for transition in self.transition1:
            y.append(transition(x))
        y = self.stage2(y)
        y.append(self.transition2[2](y[-1]))
        y = self.stage3(y)
        y.append(self.transition3[3](y[-1]))
        return self.stage4(y)

    def _stem(self, image: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._plain_stem(image)
        else:  # TorchScript compiles what follows a return, but not the other branch of is_scripting()
            return self._fast_stem(image)

    def _plain_stem(self, image: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(image)))
        return self.relu(self.bn2(self.conv2(x)))

    @torch.jit.unused
    def _fast_stem(self, image: Tensor) -> Tensor:
        plan = None if self._folded_stem is None or standard_operators_wanted(image) else self._folded_stem.plan(self)
        return self._plain_stem(image) if plan is None else plan(image)

    def check_image(self, image: Tensor) -> None:
        """Raise the TypeErrors and ValueErrors of ``forward``."""
        if traced():
            return
        channels = getattr(self.conv1, "in_channels", self.in_chans)  # somebody may have put another one there
        if not isinstance(image, Tensor):
            raise TypeError(f"image: expected a tensor [N, {channels}, H, W], got {type(image).__name__}")
        if image.dim() != 4 or image.shape[1] != channels:
            raise ValueError(f"image: expected [N, {channels}, H, W], got {list(image.shape)}")
        for side, name in ((image.shape[2], "height"), (image.shape[3], "width")):
            if side < 1:
                raise ValueError(f"image: the {name} must be at least 1 pixel, got {list(image.shape)}")
            if self.mode == "nearest" and (side + 3) // 4 % 8:
                raise ValueError(
                    f"image: {name} {side} does not suit nearest exchange units, which double sizes "
                    "exactly; use a multiple of 32, or upsample='bilinear'"
                )


def _transition(
    previous: list[int], channels: list[int], momentum: float, convolution: type[residual_blocks.ConvNormReLU]
) -> nn.ModuleList:
    """From the streams of one stage to those of the next: as they are, or new channels, or a new stream."""
    geometry = {"kernel_size": 3, "padding": 1, "bias": False}
    layers: list[nn.Module] = []
    for i, c_out in enumerate(channels):
        if i >= len(previous):  # one level of nesting more, as in the official keys
            layers.append(nn.Sequential(convolution(previous[-1], c_out, momentum, stride=2, **geometry)))
        elif previous[i] == c_out:
            layers.append(nn.Identity())
        else:
            layers.append(convolution(previous[i], c_out, momentum, **geometry))
    return nn.ModuleList(layers)
