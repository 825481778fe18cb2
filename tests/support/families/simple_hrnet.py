"""simple-HRNet: StageModule keeps the caller's list, and its identity is an empty Sequential."""

from torch import nn

from support.families import common, official


class StageModule(nn.Module):
    norm, inplace = nn.BatchNorm2d, True

    def __init__(self, channels, multi_scale_output=True):
        super().__init__()
        self.stage, self.output_branches = len(channels), len(channels) if multi_scale_output else 1
        self.branches = common.branches(channels)
        self.fuse_layers = common.fuse_layers(
            channels, self.output_branches, True, nn.BatchNorm2d,
            lambda k: nn.Upsample(scale_factor=float(2**k), mode="nearest"), nn.Sequential,
        )  # fmt: skip
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = [branch(z) for branch, z in zip(self.branches, x, strict=True)]
        fused = []
        for row in self.fuse_layers:
            y = row[0](x[0])
            for j in range(1, len(x)):
                y = y + row[j](x[j])
            fused.append(self.relu(y))
        return fused


class Network(official.Network):
    module = StageModule
