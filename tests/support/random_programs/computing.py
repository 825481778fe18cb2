"""Steps that compute: convolutions, sums, pooling, attention, exchange units."""

import torch
import torch.nn.functional as F
from torch import nn

from support.random_programs.steps import DEEPEST, ConvNorm, Step, step, upsampled


@step(4)
class Convolution(Step):
    def set_up(self, plan):
        c, level = self.read(plan)
        stride = 2 if level < DEEPEST and plan.chance(0.3) else 1
        out = c if plan.chance(0.3) else plan.channels()
        self.layer = ConvNorm(plan, c, out, stride)
        self.makes = [(out, level + stride - 1)]

    def forward(self, x):
        return [self.layer(x)]


@step(2)
class Residual(Step):
    def set_up(self, plan):
        c, level = self.read(plan)
        self.one, self.two = ConvNorm(plan, c, c, kernel=3, act=True), ConvNorm(plan, c, c, kernel=3, act=False)
        self.in_place, self.relu = plan.chance(0.5), plan.chance(0.8)
        self.makes = [(c, level)]

    def forward(self, x):
        y = self.two(self.one(x))
        if self.in_place:
            y += x
        else:
            y = x + y
        return [F.relu(y) if self.relu else y]


@step(3)
class Sum(Step):
    """relu(a + up(conv(b))), of two or three maps, the first the largest."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.paths, self.modes = nn.ModuleList(), []
        for _ in range(plan.choice(1, 1, 2)):
            c_from, _ = self.read(plan, lambda c, other: other >= level)
            plain = c_from == c and plan.chance(0.5)
            self.paths.append(nn.Identity() if plain else ConvNorm(plan, c_from, c, kernel=1, act=False))
            self.modes.append(plan.choice("nearest", "bilinear", "corners"))
        self.act = plan.choice("no", "relu", "inplace", "clamp")
        self.makes = [(c, level)]

    def forward(self, x, *others):
        y = x
        for other, path, mode in zip(others, self.paths, self.modes, strict=True):
            y = y + upsampled(path(other), x, mode)
        if self.act == "clamp":
            return [y.clamp(min=0)]
        return [y if self.act == "no" else F.relu(y, inplace=self.act == "inplace")]


@step(2)
class Lateral(Step):
    """A 1x1 convolution without ReLU behind a sum that holds a 3x3 or strided convolution, as FPN has it."""

    def set_up(self, plan):
        c_from, level_from = self.read(plan, lambda c, level: level < DEEPEST)
        stride = plan.choice(1, 2)
        level, c = level_from + stride - 1, plan.channels()
        c_other, _ = self.read(plan, lambda c, other: other >= level) if self.has(plan, level) else (0, 0)
        self.down = ConvNorm(plan, c_from, c, stride, kernel=3, act=False)
        self.side = ConvNorm(plan, c_other, c, kernel=1, act=False) if c_other else None
        self.relu = plan.chance(0.6)
        self.lateral = nn.Conv2d(c, out := plan.channels(), 1)
        self.makes = [(c, level), (out, level)]

    @staticmethod
    def has(plan, level):
        return any(other >= level for _, other in plan.maps)

    def forward(self, x, other=None):
        y = self.down(x)
        if other is not None:
            y = y + upsampled(self.side(other), y, "bilinear")
        y = F.relu(y) if self.relu else y
        return [y, self.lateral(y)]


@step(2)
class WidthOfSum(Step):
    """conv1x1(relu(a + up(b))) with another number of channels than the sum."""

    def set_up(self, plan):
        c, level = self.read(plan)
        c_other, _ = self.read(plan, lambda c, other: other >= level)
        self.path = nn.Conv2d(c_other, c, 1) if c_other != c or plan.chance(0.5) else None
        self.mode = plan.choice("nearest", "bilinear")
        out = plan.choice(*({2, 3, 5, 10, 19} - {c}))
        self.conv = nn.Sequential(nn.Conv2d(c, out, 1), *([nn.BatchNorm2d(out)] if plan.chance(0.5) else []))
        self.relu = plan.chance(0.5)
        self.makes = [(out, level)]

    def forward(self, a, b):
        b = b if self.path is None else self.path(b)
        y = self.conv(F.relu(a + upsampled(b, a, self.mode)))
        return [F.relu(y) if self.relu else y]


@step(2)
class Concatenation(Step):
    def set_up(self, plan):
        c, level = self.read(plan)
        total = c
        for _ in range(plan.choice(1, 2)):
            c, _ = self.read(plan, lambda c, other: other >= level and c <= 16)
            total += c
        self.mode, self.out = plan.choice("nearest", "bilinear", "corners"), plan.chance(0.2)
        self.conv = ConvNorm(plan, total, c_out := plan.channels(), kernel=1)
        self.makes = [(c_out, level)]

    def forward(self, *maps):
        maps = [upsampled(y, maps[0], self.mode) for y in maps]
        if not self.out:
            return [self.conv(torch.cat(maps, 1))]
        joined = maps[0].new_empty(0)
        torch.cat(maps, 1, out=joined)
        return [self.conv(joined)]


@step(1)
class Scaled(Step):
    """Halved and doubled again: in odd sizes cut, or left to an error."""

    def set_up(self, plan):
        c, level = self.read(plan, lambda c, level: level < DEEPEST)
        self.down, self.cut = ConvNorm(plan, c, c, 2, kernel=3), plan.chance(0.8)
        self.up = nn.Upsample(scale_factor=2, mode=plan.choice("nearest", "bilinear"))
        self.makes = [(c, level)]

    def forward(self, x):
        y = self.up(self.down(x))
        return [x + (y[:, :, : x.shape[2], : x.shape[3]] if self.cut else y)]


@step(1)
class Pooling(Step):
    def set_up(self, plan):
        c, level = self.read(plan, lambda c, level: level < DEEPEST)
        self.pool = plan.choice(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, ceil_mode=True), nn.MaxPool2d(2, ceil_mode=True))
        self.makes = [(c, level + 1)]

    def forward(self, x):
        return [self.pool(x)]


@step(1)
class Gate(Step):
    """Squeeze and excitation, or one weight for each pixel."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.pixels = plan.chance(0.4)
        self.conv, self.in_place = nn.Conv2d(c, 1 if self.pixels else c, 1), plan.chance(0.3)
        self.makes = [(c, level)]

    def forward(self, x):
        weight = self.conv(x if self.pixels else F.adaptive_avg_pool2d(x, 1)).sigmoid()
        return [x.clone().mul_(weight) if self.in_place else x * weight]


@step(1)
class Attention(Step):
    def set_up(self, plan):
        c, level = self.read(plan, lambda c, level: level == DEEPEST or c <= 16)
        self.project, self.pool = nn.Conv2d(c, 3 * c, 1), 4 >> level
        self.fused = plan.chance(0.4)
        self.makes = [(c, level)]

    def forward(self, x):
        small = F.avg_pool2d(x, self.pool, ceil_mode=True) if self.pool > 1 else x
        n, c, h, w = small.shape
        q, k, v = self.project(small).flatten(2).transpose(1, 2).chunk(3, -1)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(1, 2) / c**0.5).softmax(-1) @ v
        return [x + upsampled(y.transpose(1, 2).reshape(n, c, h, w), x, "bilinear")]


@step(0.7)
class Dropout(Step):
    def set_up(self, plan):
        self.makes = [self.read(plan)]
        self.drop = plan.choice(nn.Dropout2d(0.5), nn.Dropout(0.3, inplace=True), nn.Identity())

    def forward(self, x):
        return [F.dropout(self.drop(x * 1), 0.5, self.training)]


@step(0.7)
class StandardizedWeight(Step):
    def set_up(self, plan):
        c, level = self.read(plan)
        self.conv = nn.Conv2d(c, c, 3, padding=1)
        self.makes = [(c, level)]

    def forward(self, x):
        weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
        weight.div_(weight.std() + 1e-5)
        return [F.conv2d(x, weight * 0.2, self.conv.bias, padding=1)]


@step(0.7)
class ChannelsLast(Step):
    def set_up(self, plan):
        self.makes = [self.read(plan)]
        self.by_permute = plan.chance(0.5)

    def forward(self, x):
        if self.by_permute:
            return [x.permute(0, 2, 3, 1).contiguous().mul(1.5).permute(0, 3, 1, 2)]
        return [x.contiguous(memory_format=torch.channels_last) * 1.5]


@step(0.7)
class OtherDtypes(Step):
    def set_up(self, plan):
        self.makes = [self.read(plan)]

    def forward(self, x):
        return [(x.double() * 1.25).float(), x.double().mean((2, 3)), torch.ones_like(x, dtype=torch.int64) + 2]


class ExchangeUnit(nn.Module):
    """Two streams, a list of them in and out, as the official repositories write it."""

    def __init__(self, channels: list[int], mode: str, inplace: bool):
        super().__init__()
        c, d = channels
        self.num_branches, self.num_inchannels, self.multi_scale_output, self.mode = 2, channels, True, mode
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(k, k, 3, padding=1, bias=False), nn.BatchNorm2d(k), nn.ReLU()) for k in channels
        )
        up = nn.Sequential(nn.Conv2d(d, c, 1, bias=False), nn.BatchNorm2d(c))
        down = nn.Sequential(nn.Sequential(nn.Conv2d(c, d, 3, 2, 1, bias=False), nn.BatchNorm2d(d)))
        self.fuse_layers = nn.ModuleList([nn.ModuleList([None, up]), nn.ModuleList([down, None])])
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x):
        x = [branch(y) for branch, y in zip(self.branches, x, strict=True)]
        high = self.relu(x[0] + upsampled(self.fuse_layers[0][1](x[1]), x[0], self.mode))
        return [high, self.relu(self.fuse_layers[1][0](x[0]) + x[1])]


@step(5)
class Exchange(Step):
    """Two streams exchanged; the lower one is made here, unless there is one."""

    def set_up(self, plan):
        levels = [level for level in range(DEEPEST) if {level, level + 1} <= {other for _, other in plan.maps}]
        high = plan.choice(*levels) if levels else plan.maps[0][1]
        c, _ = self.read(plan, lambda c, level: level == high)
        d = c + 2
        self.reduce = ConvNorm(plan, c, d, 2, kernel=3)
        if levels and plan.chance(0.7):
            d, _ = self.read(plan, lambda c, level: level == high + 1)
            self.reduce = None
        self.unit = ExchangeUnit([c, d], plan.choice("nearest", "bilinear", "corners"), plan.chance(0.5))
        self.makes = [(c, high), (d, high + 1)]

    def forward(self, *x):
        return self.unit([x[0], x[1] if self.reduce is None else self.reduce(x[0])])
