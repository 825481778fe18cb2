"""One exchange unit of a family with weights and statistics that show what it computes, and streams for it."""

import torch
from torch import nn

from support.families import official

CHANNELS = official.CHANNELS[:3]


def streams(sizes, channels=CHANNELS):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, c, *size, generator=generator) for c, size in zip(channels, sizes, strict=True)]


def unit(cls, *args):
    torch.manual_seed(2)
    module = cls(CHANNELS, *args)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
    return module.eval()
