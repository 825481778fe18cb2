"""mmdet, mmpose and mmseg: HRModule, FCNHead with resize_concat, HRFPN; and HRFormer, which derives from HRModule."""

import torch
import torch.nn.functional as F
from torch import nn

from support.families import common, official


class HRModule(nn.Module):
    """mmdet, and mmpose by default: nearest, by the scale."""

    mode, inplace, align_corners, second_pass, norm = "nearest", False, None, False, nn.BatchNorm2d

    def __init__(self, channels, multiscale_output=True):
        super().__init__()
        self.in_channels, self.num_branches, self.multiscale_output = channels, len(channels), multiscale_output
        self.with_cp, self.norm_cfg, self.conv_cfg = False, {"type": "BN"}, None
        self.branches = common.branches(channels)
        self.fuse_layers = self.make_fuse_layers()
        self.relu = nn.ReLU(inplace=self.inplace)

    def make_fuse_layers(self):
        return common.fuse_layers(
            self.in_channels, len(self.in_channels) if self.multiscale_output else 1, self.inplace, nn.BatchNorm2d,
            lambda k: nn.Upsample(scale_factor=2**k, mode=self.mode, align_corners=self.align_corners),
        )  # fmt: skip

    def forward(self, x):
        if self.num_branches == 1:
            return [self.branches[0](x[0])]
        for i in range(self.num_branches):
            x[i] = self.branches[i](x[i])
        fused = []
        for i in range(len(self.fuse_layers)):
            y = 0
            for j in range(self.num_branches):
                if i == j:
                    y = y + x[j]
                    continue
                z = self.fuse_layers[i][j](x[j])
                if self.second_pass and j > i:
                    z = F.interpolate(z, size=x[i].shape[2:], mode="bilinear", align_corners=False)
                y = y + z
            fused.append(self.relu(y))
        return fused


class FaceModule(HRModule):
    """mmpose for face and hand."""

    mode, inplace, align_corners = "bilinear", True, False


class SegModule(HRModule):
    """mmseg: by the scale, then to the size."""

    mode, align_corners, second_pass = "bilinear", False, True


class HRFormerModule(HRModule):
    """Depthwise down paths."""

    mode, align_corners = "bilinear", False

    def make_fuse_layers(self):
        rows = super().make_fuse_layers()
        for i, row in enumerate(rows):
            for j in range(i):
                steps = []
                for k in range(i - j):
                    c_from, c_to = self.in_channels[j], self.in_channels[i if k == i - j - 1 else j]
                    depthwise = nn.Conv2d(c_from, c_from, 3, stride=2, padding=1, groups=c_from, bias=False)
                    steps.append(nn.Sequential(depthwise, nn.BatchNorm2d(c_from), nn.Conv2d(c_from, c_to, 1),
                                               nn.BatchNorm2d(c_to)))  # fmt: skip
                row[j] = nn.Sequential(*steps)
        return rows


class Backbone(official.Network):
    module = HRModule

    def forward(self, x):
        return self.run(x, None)


class FaceBackbone(Backbone):
    module = FaceModule


class SegBackbone(Backbone):
    module = SegModule


class ConvModule(nn.Module):
    def __init__(self, c_from, c_to, kernel=1):
        super().__init__()
        self.conv = nn.Conv2d(c_from, c_to, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_to)
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.activate(self.bn(self.conv(x)))


class FCNHead(nn.Module):
    def __init__(self, align_corners=False, kernel=1, concat_input=False):
        super().__init__()
        self.in_channels, self.in_index, self.input_transform = official.CHANNELS, (0, 1, 2, 3), "resize_concat"
        self.align_corners, self.concat_input = align_corners, concat_input
        total = sum(self.in_channels)
        self.convs = nn.Sequential(ConvModule(total, total, kernel))
        if concat_input:
            self.conv_cat = ConvModule(2 * total, total, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(total, 5, 1)

    def forward(self, inputs):
        inputs = [inputs[i] for i in self.in_index]
        size = inputs[0].shape[2:]
        x = torch.cat(
            [F.interpolate(z, size=size, mode="bilinear", align_corners=self.align_corners) for z in inputs], 1
        )
        y = self.convs(x)
        if self.concat_input:
            y = self.conv_cat(torch.cat([x, y], 1))
        return self.conv_seg(self.dropout(y))


class HRFPN(nn.Module):
    def __init__(self, outs=5):
        super().__init__()
        self.in_channels, self.out_channels, self.num_outs = official.CHANNELS, 16, outs
        self.with_cp, self.pooling = False, F.avg_pool2d
        self.reduction_conv = nn.Sequential()
        self.reduction_conv.add_module("conv", nn.Conv2d(sum(self.in_channels), 16, 1))
        self.fpn_convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(outs))

    def forward(self, inputs):
        ups = [inputs[0], *(F.interpolate(x, scale_factor=2**i, mode="bilinear") for i, x in enumerate(inputs) if i)]
        out = self.reduction_conv(torch.cat(ups, 1))
        outs = [out, *(self.pooling(out, kernel_size=2**i, stride=2**i) for i in range(1, self.num_outs))]
        return tuple(conv(x) for conv, x in zip(self.fpn_convs, outs, strict=True))


class Model(nn.Module):
    """A backbone with a head on all streams."""

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.decode_head = backbone, head

    def forward(self, x):
        return self.decode_head(self.backbone(x))
