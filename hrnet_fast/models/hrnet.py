"""The HRNet backbone with the module names, and so the state-dict keys, of the official repositories."""

import torch
from torch import Tensor, nn

from hrnet_fast.models.configs import Config
from hrnet_fast.modules import ExchangeUnit, PlainExchangeUnit

EXPANSION = 4  # of a bottleneck's output channels


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015)."""

    def __init__(self, channels: int, momentum: float):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, momentum=momentum)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2015)."""

    def __init__(self, in_channels: int, channels: int, momentum: float):
        super().__init__()
        out_channels = channels * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, momentum=momentum)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, momentum=momentum)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, momentum=momentum)
        self.relu = nn.ReLU()
        self.downsample = None
        if in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out_channels, momentum=momentum))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class HighResolutionModule(nn.Module):
    """Residual blocks on every stream (``branches``), then an exchange between all streams (``fuse_layers``)."""

    def __init__(self, channels: list[int], blocks: int, exchange_unit: type[PlainExchangeUnit], **exchange):
        super().__init__()
        momentum = exchange["momentum"]
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(c, momentum) for _ in range(blocks))) for c in channels
        )
        self.fuse_layers = exchange_unit(channels, **exchange)

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        branched: list[Tensor] = []
        for i, branch in enumerate(self.branches):
            branched.append(branch(streams[i]))
        return self.fuse_layers(branched)


class HRNet(nn.Module):
    """The backbone: stem, bottlenecks, and stages 2 to 4 with two to four streams (paper, section 3.1).

    Args:
        config: a row of the configuration table.
        in_chans: channels of the image.
        mode, align_corners: upsampling of the exchange units.
        momentum: of the BatchNorms; 0.01 in the official segmentation code, 0.1 in the others.
        fast: ExchangeUnit instead of PlainExchangeUnit.
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

        wide = config.stem * EXPANSION
        inputs = [64] + [wide] * (config.bottlenecks - 1)
        self.layer1 = nn.Sequential(*(Bottleneck(c, config.stem, momentum) for c in inputs))

        unit = ExchangeUnit if fast else PlainExchangeUnit
        previous = [wide]
        for stage, modules in zip((2, 3, 4), config.modules, strict=True):
            channels = config.channels(stage)
            self.add_module(f"transition{stage - 1}", _transition(previous, channels, momentum))
            exchange = {"mode": mode, "align_corners": align_corners, "momentum": momentum}
            single = () if multi_scale_output or stage < 4 else (modules - 1,)
            stack = (
                HighResolutionModule(channels, config.blocks, unit, multi_scale_output=i not in single, **exchange)
                for i in range(modules)
            )
            self.add_module(f"stage{stage}", nn.Sequential(*stack))
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
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        y: list[Tensor] = []
        for transition in self.transition1:
            y.append(transition(x))
        for module in self.stage2:
            y = module(y)
        y.append(self.transition2[2](y[-1]))
        for module in self.stage3:
            y = module(y)
        y.append(self.transition3[3](y[-1]))
        for module in self.stage4:
            y = module(y)
        return y

    def check_image(self, image: Tensor) -> None:
        """Raise the ValueErrors of ``forward``."""
        if torch.jit.is_tracing():  # sizes are tensors there
            return
        if image.dim() != 4 or image.shape[1] != self.in_chans:
            raise ValueError(f"image: expected [N, {self.in_chans}, H, W], got {list(image.shape)}")
        for side, name in ((image.shape[2], "height"), (image.shape[3], "width")):
            if side < 1:
                raise ValueError(f"image: the {name} must be at least 1 pixel, got {list(image.shape)}")
            if self.mode == "nearest" and (side + 3) // 4 % 8:
                raise ValueError(f"image: {name} {side} does not suit nearest exchange units, which double sizes "
                                 "exactly; use a multiple of 32, or upsample='bilinear'")  # fmt: skip


def _transition(previous: list[int], channels: list[int], momentum: float) -> nn.ModuleList:
    """From the streams of one stage to those of the next: as they are, or new channels, or a new stream."""

    def convolution(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(c_out, momentum=momentum), nn.ReLU())

    layers: list[nn.Module] = []
    for i, c_out in enumerate(channels):
        if i >= len(previous):  # one level of nesting more, as in the official keys
            layers.append(nn.Sequential(convolution(previous[-1], c_out, 2)))
        else:
            layers.append(nn.Identity() if previous[i] == c_out else convolution(previous[i], c_out, 1))
    return nn.ModuleList(layers)
