"""Lite-HRNet's module: it adds up in its first stream, in place, and so doubles it."""

from torch import nn

from support.families import common


class LiteHRModule(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.in_channels, self.num_branches, self.multiscale_output = channels, len(channels), True
        self.module_type, self.with_fuse, self.norm_cfg, self.conv_cfg = "LITE", True, {"type": "BN"}, None
        self.layers = nn.Sequential(nn.Identity())
        self.fuse_layers = common.fuse_layers(channels, len(channels), False, nn.BatchNorm2d,
                                              lambda k: nn.Upsample(scale_factor=2**k, mode="nearest"))  # fmt: skip
        self.relu = nn.ReLU()

    def forward(self, x):
        out = x
        fused = []
        for i, row in enumerate(self.fuse_layers):
            y = out[0] if i == 0 else row[0](out[0])
            for j in range(self.num_branches):
                if i == j:
                    y += out[j]
                else:
                    y += row[j](out[j])
            fused.append(self.relu(y))
        return fused
