"""The official repositories: classification, pose, segmentation (master and pytorch-v1.1), facial landmarks."""

import torch
import torch.nn.functional as F
from torch import nn

from support.families import common

C = 8
CHANNELS = [C << j for j in range(4)]


class InPlaceABNSync(nn.Module):
    """The norm of segmentation's master branch: it scales by abs(weight) + eps."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels))  # half of them negative
        self.bias = nn.Parameter(0.2 * torch.randn(channels))
        self.register_buffer("running_mean", 0.2 * torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 3.0)
        self.eps, self.momentum, self.activation = 1e-5, 0.01, "none"

    def forward(self, x):
        weight = self.weight.abs() + self.eps
        return F.batch_norm(x, self.running_mean, self.running_var, weight, self.bias, self.training, 0.01, self.eps)


class NearestModule(nn.Module):
    """An Upsample inside the path, by the scale."""

    inplace, norm, mode = False, nn.BatchNorm2d, "nearest"

    def __init__(self, channels, multi_scale_output=True):
        super().__init__()
        self.num_branches, self.num_inchannels, self.multi_scale_output = len(channels), channels, multi_scale_output
        self.branches = common.branches(channels, self.norm)
        outputs = len(channels) if multi_scale_output else 1
        self.fuse_layers = self.make_fuse_layers(outputs) if len(channels) > 1 else None
        self.relu = nn.ReLU(inplace=self.inplace)

    def make_fuse_layers(self, outputs):
        return common.fuse_layers(
            self.num_inchannels,
            outputs,
            self.inplace,
            self.norm,
            lambda k: nn.Upsample(scale_factor=2**k, mode="nearest"),
        )

    def up(self, i, j, x, corners):
        return self.fuse_layers[i][j](x[j])

    def fuse(self, x, corners=None):
        if self.num_branches == 1:
            return [self.branches[0](x[0])]
        for i, branch in enumerate(self.branches):
            x[i] = branch(x[i])
        fused = []
        for i, row in enumerate(self.fuse_layers):
            y = x[0] if i == 0 else row[0](x[0])
            for j in range(1, self.num_branches):
                y = y + (x[j] if i == j else self.up(i, j, x, corners) if j > i else row[j](x[j]))
            fused.append(self.relu(y))
        return fused

    def forward(self, x):
        return self.fuse(x)


class PoseModule(NearestModule):
    inplace = True


class SizedModule(NearestModule):
    """Interpolated to the size of the higher stream; pytorch-v1.1 leaves align_corners unset."""

    inplace = True

    def make_fuse_layers(self, outputs):
        return common.fuse_layers(self.num_inchannels, outputs, self.inplace, self.norm)

    def up(self, i, j, x, corners):
        y = self.fuse_layers[i][j](x[j])
        return F.interpolate(y, size=x[i].shape[-2:], mode="bilinear", align_corners=corners)


class MasterModule(SizedModule):
    inplace, norm = False, InPlaceABNSync


class AlignedModule(SizedModule):
    """As somebody's fork may have it: align_corners=True in the text."""

    def forward(self, x):
        return self.fuse(x, True)


class Network(nn.Module):
    """Stem, stages, and what ``head`` makes: 'v2' on the concatenation, 'v1' on the first stream, None: all streams."""

    module, corners = NearestModule, None

    def __init__(self, head=None):
        super().__init__()
        norm, inplace = self.module.norm, self.module.inplace
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = norm(16)
        self.conv2 = nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = norm(16)
        self.relu = nn.ReLU(inplace=inplace)
        self.layer1 = common.layer1(16, 8, norm)
        before = [32]
        for k in (1, 2, 3):
            now = CHANNELS[: k + 1]
            layers = [
                common.conv_norm_relu(before[i], c, 1, norm, inplace)
                if i < len(before) and before[i] != c
                else None
                if i < len(before)
                else nn.Sequential(common.conv_norm_relu(before[-1], c, 2, norm, inplace))
                for i, c in enumerate(now)
            ]
            setattr(self, f"transition{k}", nn.ModuleList(layers))
            setattr(self, f"stage{k + 1}", nn.Sequential(self.module(now, head != "v1" or k < 3)))
            before = now
        self.head_kind = head
        if head == "v2":
            total = sum(CHANNELS)
            self.last_layer = nn.Sequential(
                nn.Conv2d(total, total, 1), norm(total), nn.ReLU(inplace=inplace), nn.Conv2d(total, 5, 1)
            )
        elif head == "v1":
            self.final_layer = nn.Conv2d(C, 5, 1)

    def run(self, x, corners):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer1(self.relu(self.bn2(self.conv2(x))))
        y = [x]
        for transition, stage in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            y = stage([y[i] if t is None else t(y[-1]) for i, t in enumerate(transition)])
        if self.head_kind is None:
            return y
        if self.head_kind == "v1":
            return self.final_layer(y[0])
        size = y[0].shape[-2:]
        ups = [F.interpolate(z, size=size, mode="bilinear", align_corners=corners) for z in y[1:]]
        return self.last_layer(torch.cat([y[0], *ups], 1))

    def forward(self, x):
        return self.run(x, None)


class PoseNetwork(Network):
    module = PoseModule


class SizedNetwork(Network):
    module = SizedModule


class MasterNetwork(Network):
    module = MasterModule


class AlignedNetwork(Network):
    module = AlignedModule

    def forward(self, x):
        return self.run(x, True)
