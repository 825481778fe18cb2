"""What all implementations have alike: residual blocks, and the paths between two streams."""

from torch import nn


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_channels, channels, downsample=None, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.downsample = downsample

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels, channels, downsample=None, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, channels * 4, 1, bias=False)
        self.bn3 = norm(channels * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def layer1(in_channels=16, channels=8, norm=nn.BatchNorm2d):
    shortcut = nn.Sequential(nn.Conv2d(in_channels, channels * 4, 1, bias=False), norm(channels * 4))
    return nn.Sequential(
        Bottleneck(in_channels, channels, shortcut, norm), Bottleneck(channels * 4, channels, None, norm)
    )


def up_path(c_from, c_to, norm=nn.BatchNorm2d, upsample=None):
    return nn.Sequential(nn.Conv2d(c_from, c_to, 1, bias=False), norm(c_to), *([upsample] if upsample else []))


def down_path(c_from, c_to, steps, inplace, norm=nn.BatchNorm2d):
    layers = []
    for k in range(steps):
        last = k == steps - 1
        c = c_to if last else c_from
        conv = nn.Conv2d(c_from, c, 3, stride=2, padding=1, bias=False)
        layers.append(nn.Sequential(conv, norm(c), *([] if last else [nn.ReLU(inplace=inplace)])))
    return nn.Sequential(*layers)


def fuse_layers(channels, outputs, inplace, norm=nn.BatchNorm2d, upsample=lambda k: None, same=lambda: None):
    """Rows of paths; ``upsample(k)`` makes the last layer of an up path over k octaves."""
    rows = []
    for i in range(outputs):
        row = [up_path(c, channels[i], norm, upsample(j - i)) if j > i
               else same() if j == i else down_path(c, channels[i], i - j, inplace, norm)
               for j, c in enumerate(channels)]  # fmt: skip
        rows.append(nn.ModuleList(row))
    return nn.ModuleList(rows)


def branches(channels, norm=nn.BatchNorm2d):
    return nn.ModuleList(nn.Sequential(BasicBlock(c, c, None, norm)) for c in channels)


def conv_norm_relu(c_from, c_to, stride, norm=nn.BatchNorm2d, inplace=True):
    conv = nn.Conv2d(c_from, c_to, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, norm(c_to), nn.ReLU(inplace=inplace))
