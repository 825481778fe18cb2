"""The convolutional parts between two exchanges: residual blocks and convolution chains, plain and folded.

The folded forms are subclasses with the same parameters and keys. Evaluated without gradients for its parameters each
convolution runs with its BatchNorm folded in, ReLU and the residual sum in its epilogue (PreparedConv); in training
mode, with hooks inside and under torch.jit they are what they are derived from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.nn.folds import FoldCache, fold_modules, why_not_fold
from hrnet_fast.nn.plain_mode import standard_operators_wanted
from hrnet_fast.nn.prepared_conv import PreparedConv

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
        return self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
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
        return self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ConvNormReLU(nn.Sequential):
    """A convolution, its BatchNorm and a ReLU, with the keys of an nn.Sequential of the three."""

    def __init__(self, in_channels: int, out_channels: int, momentum: float, **geometry):
        conv = nn.Conv2d(in_channels, out_channels, **geometry)
        super().__init__(conv, nn.BatchNorm2d(out_channels, momentum=momentum), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class ChainPlan(NamedTuple):
    """Convolutions one after the other with BatchNorm folded, each with a ReLU; the last one adds a shortcut before."""

    convs: list[PreparedConv]
    residual: bool
    downsample: PreparedConv | None  # of the shortcut

    def __call__(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C', H', W']
        y = x
        for conv in self.convs[:-1] if self.residual else self.convs:
            y = conv(y)
        if not self.residual:
            return y
        return self.convs[-1].add_relu(y, x if self.downsample is None else self.downsample(x))


Pair = tuple[nn.Module, nn.Module]  # a convolution and the norm behind it


def current_chain(
    owner: nn.Module,
    folds: FoldCache,
    pairs: Sequence[Pair],
    residual: bool,
    downsample: Pair | None = None,
    activation: nn.Module | None = None,
) -> ChainPlan | None:
    """The folded form of a chain, kept in ``folds``; None where it must run unfolded (FoldCache.current says when).

    Args:
        owner: the module whose parameters these are.
        folds: the owner's cache; where its ``tried`` is used, that was asked just before.
        pairs: the convolutions with their norms, in order; a ReLU follows each.
        residual: whether the input is added in front of the last ReLU.
        downsample: of the input that is added.
        activation: the module that stands for the ReLUs, below the owner; None: somebody else has looked at it.
    """

    def foldable() -> bool:
        if activation is not None and (type(activation) is not nn.ReLU or (downsample and len(downsample) != 2)):
            return False
        return all(why_not_fold(*pair) is None for pair in (*pairs, *([downsample] if downsample else [])))

    def fold() -> ChainPlan:
        last = len(pairs) - 1 if residual else None
        convs = [folded(pair, relu=k != last) for k, pair in enumerate(pairs)]
        return ChainPlan(convs, residual, None if downsample is None else folded(downsample, relu=False))

    return folds.current(owner, foldable, fold, watched=True)


def folded(pair: Pair, relu: bool) -> PreparedConv:
    """One convolution with the geometry of a pair's and the norm folded in."""
    conv = pair[0]
    weight, bias = fold_modules(*pair)
    return PreparedConv(weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups, 0 if relu else None)


class _Folding:
    """What makes a fast form of a block: a cache of its own, and ``_pairs`` of convolutions and norms."""

    _residual = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._folds = FoldCache()

    def train(self, mode: bool = True):
        if mode:
            self._folds.drop()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._plain(x)
        else:  # TorchScript compiles what follows a return, but not the other branch of is_scripting()
            return self._fast(x)

    def _activation(self) -> nn.Module:
        return self.relu

    @torch.jit.unused
    def _fast(self, x: Tensor) -> Tensor:
        if standard_operators_wanted(x):
            return self._plain(x)
        downsample = getattr(self, "downsample", None)
        plan = current_chain(self, self._folds, self._pairs(), self._residual, downsample, self._activation())
        return self._plain(x) if plan is None else plan(x)


class FoldedBasicBlock(_Folding, BasicBlock):
    """BasicBlock with folded BatchNorm in evaluation."""

    def _pairs(self) -> list[Pair]:
        return [(self.conv1, self.bn1), (self.conv2, self.bn2)]


class FoldedBottleneck(_Folding, Bottleneck):
    """Bottleneck with folded BatchNorm in evaluation."""

    def _pairs(self) -> list[Pair]:
        return [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]


class FoldedConvNormReLU(_Folding, ConvNormReLU):
    """ConvNormReLU with folded BatchNorm in evaluation."""

    _residual = False

    def _pairs(self) -> list[Pair]:
        return [(self[0], self[1])]

    def _activation(self) -> nn.Module:
        return self[2] if len(self) == 3 else self  # with more inside it is no such chain


class FoldedStem(FoldCache):
    """The two strided convolutions at the image, which are attributes of the network itself and so have no module.

    Kept beside the network, it holds a view of their modules that no state dict and no parameter list sees.
    """

    def __init__(self):
        super().__init__()
        self._view: nn.Sequential | None = None

    def plan(self, net: nn.Module) -> ChainPlan | None:
        """The folded stem of a network with conv1, bn1, conv2 and bn2; None where it must run unfolded."""
        layers = [net.conv1, net.bn1, net.conv2, net.bn2, net.relu]
        view = self._view
        if view is None or any(a is not b for a, b in zip(view, layers, strict=True)):
            view = self._view = nn.Sequential(*layers)
        view.training = net.training
        pairs = [tuple(layers[:2]), tuple(layers[2:4])]
        return current_chain(view, self, pairs, residual=False, activation=net.relu)
