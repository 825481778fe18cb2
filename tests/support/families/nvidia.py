"""NVIDIA's semantic-segmentation: the global is called align_corners; the concatenation is the backbone's result."""

import torch
import torch.nn.functional as F

from support.families import official

align_corners = False


class Module(official.SizedModule):
    def forward(self, x):
        return self.fuse(x, align_corners)


class Network(official.Network):
    module = Module

    def forward(self, x):
        y = self.run(x, align_corners)
        size = y[0].shape[-2:]
        ups = [F.interpolate(z, size=size, mode="bilinear", align_corners=align_corners) for z in y[1:]]
        return torch.cat([y[0], *ups], 1)
