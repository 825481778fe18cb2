"""Weights that are loaded after ``patch``: fresh from their initialization units and blocks hide what they compute."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hrnet_fast as hf
from support.edits import CHANNELS, fault, is_upsample, randomized, unit
from support.families import official
from support.families.common import BasicBlock


class Variant(official.SizedModule):
    """An exchange unit whose forward does more than its structure says."""

    kind = ""

    def __init__(self, channels):
        super().__init__(channels)
        if self.kind == "attention":
            self.attention, self.gamma = nn.Conv2d(channels[0], channels[0], 1), nn.Parameter(torch.zeros(1))
        if self.kind == "buffer":
            self.register_buffer("gain", torch.zeros(1))

    def up(self, i, j, x, corners):
        if self.kind in ("nearest", "bicubic"):
            return F.interpolate(self.fuse_layers[i][j](x[j]), size=x[i].shape[-2:], mode=self.kind)
        return super().up(i, j, x, self.kind == "corners on one path" and (i, j) == (0, 2))

    def forward(self, x):
        y = super().forward(x)
        if self.kind == "attention":
            y[0] = y[0] + self.gamma * self.attention(y[0])
        if self.kind == "buffer":
            y[1] = y[1] * (1 + self.gain)
        if self.kind == "dropout":
            y[0] = F.dropout(y[0], 0.5, self.training)
        if self.kind == "scaled":
            y[-1] = y[-1] * 1.05
        return y


class BlockVariant(BasicBlock):
    """A residual block likewise."""

    kind = ""

    def forward(self, x):
        act = F.gelu if self.kind == "gelu" else F.relu
        if self.kind == "pre-activation":
            y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
            return y + x
        y = self.bn2(self.conv2(act(self.bn1(self.conv1(x)))))
        if self.kind == "gate":
            y = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        if self.kind == "tenth":
            y = y * 0.1
        if self.kind == "stochastic depth":
            y = y * (torch.rand(()) > 0.5) if self.training else y
        return act(y + x)


UNIT_KINDS = ("", "nearest", "bicubic", "corners on one path", "attention", "buffer", "dropout", "scaled")
BLOCK_KINDS = ("", "gelu", "pre-activation", "gate", "tenth", "stochastic depth")


class TwoBlocks(nn.Module):
    """A block in a model that has an exchange unit: others are not looked at."""

    def __init__(self, kind):
        super().__init__()
        cls = type("Block", (BlockVariant,), {"kind": kind})
        self.unit, self.block = official.SizedModule(CHANNELS), cls(CHANNELS[0], CHANNELS[0])

    def forward(self, x):
        y = self.unit(x)
        return [*y, self.block(y[0])]


@pytest.mark.parametrize("fresh", ["official", "zero gamma", "zero weights"])
@pytest.mark.parametrize(
    "kind", [*(("unit", k) for k in UNIT_KINDS), *(("block", k) for k in BLOCK_KINDS)], ids=lambda kind: " ".join(kind)
)
def test_weights_loaded_after_patch(kind, fresh):
    torch.manual_seed(0)
    model = type("Unit", (Variant,), {"kind": kind[1]})(CHANNELS) if kind[0] == "unit" else TwoBlocks(kind[1])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0, 0 if fresh == "zero weights" else 0.001)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(0 if fresh == "zero gamma" else 1)
    model.eval()
    plain, fast = copy.deepcopy(model), model
    report = hf.patch(fast)
    trained = randomized(copy.deepcopy(plain)).state_dict()
    for name in trained.keys() & {"gamma", "gain"}:
        trained[name] = torch.full_like(trained[name], 0.7)
    for m in (plain, fast):
        m.load_state_dict(trained)
    assert not fault(plain, fast, "evaluation", False)
    for m in (plain, fast):
        m.train()
    assert not fault(plain, fast, "training", False)
    what = {"unit": "exchange unit", "block": "residual block"}[kind[0]]
    rows = [row for row in report.rows if row.kind == what and row.name in ("", "block")]
    # in training a block runs its own forward
    assert [row.patched for row in rows] == [kind[1] in ("", "stochastic depth")], report


def test_an_upsampling_without_size_and_broken_units_are_left_alone():
    class Upsampling(nn.Module):
        scale_factor, mode = 2, "nearest"

        def forward(self, x):
            return F.interpolate(x, scale_factor=2.0)

    model = nn.ModuleList([unit(official.NearestModule), unit(official.NearestModule)])
    for row in model[0].fuse_layers:
        for path in row:
            if isinstance(path, nn.Sequential) and is_upsample(path[-1]):
                path[2] = Upsampling()
    del model[1].fuse_layers[0][1][1].running_mean
    before = [type(m) for m in model]
    report = hf.patch(model)
    alone = {row.name: row.detail for row in report.left_alone}
    assert "0" in alone and "1" in alone and [type(m) for m in model] == before
