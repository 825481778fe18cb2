"""Small networks drawn at random, of what people write in forward: ``build(seed)`` gives the same program every time.

A program is a list of steps. A step reads maps [N, C, H, W] that earlier steps have made, and gives new maps, and other
tensors (views, sums) that belong to the results. What a step does is decided when it is built, never in forward, but for
what it decides by its input's size or values as its model's code would.

    program = build(17)
    args, kwargs = arguments(program, batch=2, height=33, width=47)
    with surroundings(program):  # the global hooks that it wants
        results = program(*args, **kwargs)

``kinds(program)`` says what it is made of. Programs compute continuous functions of what they compute themselves: numbers
are compared only with the images, which are multiples of 1/256, so that rounding turns no branch.
"""

import collections
import contextlib
import dataclasses
import functools
import random
import threading
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS: dict[type, float] = {}  # class -> how often it is drawn
DEEPEST = 2  # maps are as large as the image, or a half or a fourth of it
CLASSES = 5  # of the integers that some programs take

Pair = collections.namedtuple("Pair", "first second")
GLOBAL_CACHE: dict[Any, Tensor] = {}
GLOBAL_CALLS: list[int] = [0]


@dataclasses.dataclass
class Sample:
    first: Any
    second: Any = None


@dataclasses.dataclass
class Prediction:
    logits: Tensor
    more: Any = None


@functools.lru_cache
def ramp(n: int) -> Tensor:
    return torch.linspace(0.5, 1.5, n)


class Plan:
    """What is drawn, and the maps that there are so far: channels and level (the image's size halved so often)."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.maps: list[tuple[int, int]] = []

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def choice(self, *options: Any) -> Any:
        return self.random.choice(options)

    def channels(self) -> int:
        return self.choice(3, 4, 5, 6, 7, 8, 9, 12, 16)

    def pick(self, fits: Any = lambda c, level: True) -> int:
        """A map that fits, late ones rather than early ones."""
        fitting = [k for k, (c, level) in enumerate(self.maps) if fits(c, level)]
        return fitting[max(self.random.randrange(len(fitting)), self.random.randrange(len(fitting)))]


class Step(nn.Module):
    """Reads the maps ``reads`` and returns ``[*maps, *other results]``, the maps of the channels and levels ``makes``."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.reads: list[int] = []
        self.makes: list[tuple[int, int]] = []
        self.set_up(plan)

    def set_up(self, plan: Plan) -> None:
        self.read(plan)

    def read(self, plan: Plan, fits: Any = lambda c, level: True) -> tuple[int, int]:
        self.reads.append(plan.pick(fits))
        return plan.maps[self.reads[-1]]


def step(weight: float = 1.0):
    def register(kind: type) -> type:
        STEPS[kind] = weight
        return kind

    return register


class ConvNorm(nn.Module):
    """Convolution, perhaps a norm, perhaps an activation, in one of the many ways to write it."""

    def __init__(
        self, plan: Plan, c_in: int, c_out: int, stride: int = 1, kernel: int | None = None, act: bool | None = None
    ):
        super().__init__()
        kernel = kernel or plan.choice(1, 3, 3, 3, 5)
        dilation = 2 if kernel == 3 and stride == 1 and plan.chance(0.1) else 1
        groups = c_in if c_in == c_out and plan.chance(0.15) else 1
        norm = plan.choice("batch", "batch", "batch", "group", "none")
        mode = "reflect" if kernel == 3 and dilation == 1 and plan.chance(0.05) else "zeros"
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, dilation * (kernel // 2), dilation, groups,
                              bias=norm == "none" or plan.chance(0.3), padding_mode=mode)  # fmt: skip
        self.norm = nn.BatchNorm2d(c_out, affine=plan.chance(0.9)) if norm == "batch" else None
        if norm == "group":
            self.norm = nn.GroupNorm(plan.choice(*(g for g in range(1, c_out + 1) if c_out % g == 0)), c_out)
        acts = (
            nn.ReLU(),
            nn.ReLU(inplace=True),
            F.relu,
            F.relu_,
            F.relu,
            nn.ReLU6(),
            nn.GELU(),
            F.silu,
            nn.LeakyReLU(0.1),
        )
        act = plan.chance(0.7) if act is None else act
        self.act = plan.choice(*acts) if act else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = y if self.norm is None else self.norm(y)
        return y if self.act is None else self.act(y)


# ---------------------------------------------------------------------------------------------- computing


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


def upsampled(y: Tensor, like: Tensor, mode: str) -> Tensor:
    if mode == "nearest":
        return F.interpolate(y, size=like.shape[2:], mode="nearest")
    return F.interpolate(y, size=like.shape[2:], mode="bilinear", align_corners=mode == "corners")


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


# ---------------------------------------------------------------------------------------------- views and writes


def normalize_slice(x):
    x[:, :3].sub_(0.4).div_(0.25)


def normalize_each(x):
    for k, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224))):
        x[:, k].sub_(mean).div_(std)


def assign_channel(x):
    x[:, 0] = (x[:, 0] - 0.485) / 0.229


def swap_channels(x):
    x[:, [0, 1]] = x[:, [1, 0]]


def threshold(x):
    x[x < 0.25] = 0.25


def border(x):
    x[..., 0] = 0.5
    x[:, :, -1:].mul_(2)


def transposed(x):
    x.transpose(2, 3)[:, :, 0].zero_()
    x.permute(0, 2, 3, 1)[..., 1].add_(0.7)


def by_foreach(x):
    torch._foreach_mul_([x[:, :1], x[:, 1:]], 1.5)
    torch._foreach_add_([x], [x * 0.5])


def by_out(x):
    torch.mul(x, 1.25, out=x)
    torch.add(x[:, :1], 0.3, out=x[:, 1:2])


def strided(x):
    x[:, :, ::2].add_(x[:, :, ::2])


def flipped(x):
    x.copy_(x.flip(-1))


def lerped(x):
    x.lerp_(x.mean((2, 3), keepdim=True), 0.25)


def through_data(x):
    x.data.mul_(1.5)


def through_detach(x):
    x.detach()[:, 1:].add_(0.2)


def diagonal(x):
    x.diagonal(0, 2, 3).fill_(0.75)


def masked(x):
    x.masked_fill_(x > 0.75, 0.75)
    x.clamp_(min=0.1)


def scattered(x):
    index = torch.tensor([0, 2])
    x.index_add_(1, index, torch.ones_like(x[:, :2]))
    x.index_fill_(1, torch.tensor([1]), 0.3)


def relu_of_slice(x):
    F.relu(x[:, 1:].sub_(0.3), inplace=True)


def whole_relu(x):
    F.relu(x.sub_(0.4), inplace=True)


def parts(x):
    for k, part in enumerate(x.unbind(1)[:3]):
        part.mul_(1 + 0.25 * k)
    first, second = x.split([1, x.shape[1] - 1], 1)
    first.add_(second[:, :1])


WRITES = (normalize_slice, normalize_each, assign_channel, swap_channels, threshold, border, transposed, by_foreach,
          by_out, strided, flipped, lerped, through_data, through_detach, diagonal, masked, scattered, relu_of_slice,
          whole_relu, parts)  # fmt: skip

VIEWS = {
    "slice": lambda x: x[:, 1:3],
    "step": lambda x: x[:, :, ::2, 1:],
    "transpose": lambda x: x.transpose(1, 3),
    "chunk": lambda x: x.chunk(2, 1)[0],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "unbind": lambda x: x.unbind(-1)[0],
    "select": lambda x: x.select(2, 0),
    "view": lambda x: x.contiguous().view(x.shape[0], -1),
    "viewed": lambda x: x.view(x.shape[0], x.shape[1], *x.shape[2:]),
    "reshape": lambda x: x.reshape(x.shape[0], x.shape[1], -1),
    "flatten": lambda x: x.flatten(1, 2),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "unsqueeze": lambda x: x.unsqueeze(2)[:, :, 0],
    "ellipsis": lambda x: x[..., -1],
    "detach": lambda x: x.detach()[:1],
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "unfold": lambda x: x.unfold(3, 2, 2),
    "movedim": lambda x: x.movedim(1, -1),
    "real": lambda x: x.real[:, :2],
    "swapped": lambda x: x.mT,
    "strided": lambda x: x.contiguous().as_strided((x.shape[1],), (1,)),
}


@step(4)
class Write(Step):
    """A write in place, into the image or into a map; a copy, a view or nothing of it is kept from before."""

    def set_up(self, plan):
        to_image = plan.chance(0.35)
        self.read(plan, lambda c, level: c >= 3) if not to_image else self.reads.append(0)
        self.write, self.before = plan.choice(*WRITES), plan.choice("copy", "view", "nothing", "nothing")
        self.view = plan.choice(*VIEWS)
        self.copies = plan.chance(0.3)  # a map of its own is written
        self.makes = [plan.maps[self.reads[0]]] if self.copies else []

    def forward(self, x):
        y = x * 1 if self.copies else x
        kept = {"copy": lambda: [y.clone()], "view": lambda: [VIEWS[self.view](y)], "nothing": list}[self.before]()
        self.write(y)
        return [y, *kept] if self.copies else kept


@step(3)
class View(Step):
    """A view that belongs to the results, and is perhaps written, before or after what it is a view of."""

    def set_up(self, plan):
        c, level = self.read(plan, lambda c, level: c >= 3)
        self.view, self.copies = plan.choice(*VIEWS), plan.chance(0.5)
        self.write = plan.choice("no", "sub", "mul", "fill", "base", "copy", "relu", "setitem")
        self.makes = [(c, level)] if self.copies else []

    def forward(self, x):
        x = x + 0.5 if self.copies else x
        view = VIEWS[self.view](x)
        if self.write == "sub":
            view.sub_(0.3)
        elif self.write == "mul":
            view.mul_(1.5)
        elif self.write == "fill":
            view.fill_(0.25)
        elif self.write == "base":
            x.add_(0.4)
        elif self.write == "copy":
            view.copy_(view.flip(0) * 0.5)
        elif self.write == "relu":
            F.relu(view, inplace=True)
        elif self.write == "setitem":
            view[..., 0] = 0.6
        return [x, view] if self.copies else [view]


@step(1.5)
class Expanded(Step):
    def set_up(self, plan):
        c, level = self.read(plan)
        self.makes, self.in_place = [(c, level)], plan.chance(0.5)

    def forward(self, x):
        mean = x.mean((0, 2, 3)).view(1, -1, 1, 1).expand_as(x)
        if not self.in_place:
            return [x - mean, mean[:, :, 0]]
        y = mean.clone()
        y += x
        return [y, mean]


@step(1.5)
class Shuffled(Step):
    """Channels taken apart and put together again."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.makes = [(c, level)]
        self.way = plan.choice("chunk", "unbind", "zeros", "roll", "select", "split")

    def forward(self, x):
        if self.way == "chunk":
            first, second = (x * 1).chunk(2, 1)
            first[:, : second.shape[1]].add_(second)
            second.mul_(first[:, : second.shape[1]])
            return [torch.cat([second, first], 1), first]
        if self.way == "unbind":
            return [torch.stack(x.unbind(1)[::-1], 1)]
        if self.way == "zeros":
            y = x.new_zeros(x.shape)
            y[:, ::2] = x[:, ::2]
            y[:, 1::2] = -x[:, 1::2]
            y[:, :, 1:, :] += 1
            return [y]
        if self.way == "roll":
            return [x.roll(1, 1)]
        if self.way == "select":
            return [x.select(1, 0).unsqueeze(1).expand(-1, x.shape[1], -1, -1)]
        first, second = x.split([1, x.shape[1] - 1], 1)
        return [torch.cat([second, first], 1), first[:, 0]]


@step(2.5)
class Out(Step):
    """Results by ``out=``, into a tensor, a view or a part of one; views of it are read later."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.way = plan.choice("view", "part", "name", "resized", "itself", "relu", "cat")
        self.makes = [(2 * c if self.way in ("part", "cat") else c, level)]

    def forward(self, x):
        if self.way == "view":
            y = torch.zeros_like(x)
            view = y.view(y.shape)
            torch.add(x, x, out=y)
            return [y, view * 1.0, view[:, :2]]
        if self.way == "part":
            y = x.new_full((x.shape[0], 2 * x.shape[1], *x.shape[2:]), 0.5)
            torch.mul(x, 2, out=y[:, : x.shape[1]])
            return [y]
        if self.way == "name":
            y = torch.zeros_like(x)
            part = y[:, :2]
            torch.mul(input=x, out=y, other=2.0)
            return [y, part + 1]
        if self.way == "resized":
            y = torch.empty(0)
            torch.add(x, 1, out=y)
            return [y]
        if self.way == "itself":
            y = x * 0.5
            view = y[:, 1:]
            torch.sub(y, 1.0, out=y)
            return [y, view]
        if self.way == "relu":
            y = torch.empty_like(x)
            torch.clamp(x, min=0.0, out=y)
            return [y]
        y = x.new_empty((x.shape[0], 2 * x.shape[1], *x.shape[2:]))
        torch.cat([x, -x], 1, out=y)
        return [y]


@step(1)
class Foreach(Step):
    def set_up(self, plan):
        self.makes = [self.read(plan)]
        self.way = plan.choice("mul", "add", "list", "functional")

    def forward(self, x):
        y, z = x * 0.5, x + 0.25
        view = z[:, 1:]
        if self.way == "mul":
            torch._foreach_mul_([y, z], 1.5)
        elif self.way == "add":
            torch._foreach_add_([y, z], [z, y])
        elif self.way == "list":
            torch._foreach_mul_([y, z], [1.5, 0.75])
        else:
            y, z = torch._foreach_add([y, z], 1.0)
        return [y, z, view]


@step(0.7)
class InPlaceMetadata(Step):
    def set_up(self, plan):
        self.makes = [self.read(plan)]
        self.swap = plan.chance(0.4)

    def forward(self, x):
        if self.swap:
            y = x * 2
            y.data = x + 1
            y.add_(1)
            return [y]
        mean = x.mean((2, 3))
        mean.unsqueeze_(-1).unsqueeze_(-1)
        return [x * (1 + mean.sigmoid()), mean]


# ---------------------------------------------------------------------------------------------- state


@step(2)
class BufferWritten(Step):
    """A buffer or another tensor of the module is written; what is computed may depend on it."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.way = plan.choice("add", "view", "out", "foreach", "counter", "item", "rebound", "data", "weight", "norm")
        self.used = plan.chance(0.7)
        table = torch.rand(1, c, 1, 1)
        self.register_buffer("table", table) if plan.chance(0.7) else setattr(self, "table", table)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.conv = nn.Conv2d(c, c, 1) if self.way == "weight" else None
        self.makes = [(c, level)]

    def forward(self, x):
        mean = x.mean((0, 2, 3)).view(1, -1, 1, 1)
        if self.way == "add":
            self.table.mul_(0.5).add_(mean)
        elif self.way == "view":
            self.table[:, :2] = mean[:, :2]
        elif self.way == "out":
            torch.add(mean, mean, out=self.table)
        elif self.way == "foreach":
            torch._foreach_mul_([self.table], 1.25)
        elif self.way == "counter":
            self.count += 1
        elif self.way == "item":
            self.table.view(-1)[0] = mean.mean()
        elif self.way == "rebound":
            self.table = self.table * 0.5 + mean
        elif self.way == "data":
            self.table.data.add_(0.25)
        elif self.way == "weight":
            self.conv.weight.clamp_(-0.25, 0.25)
            return [self.conv(x)]
        else:
            x = F.batch_norm(x, self.table.view(-1), torch.ones_like(mean.view(-1)), training=True, momentum=0.5)
        return [x * (1 + self.table + self.count) if self.used else x * 1.5]


@step(2)
class BufferRead(Step):
    """Tensors that are only read: buffers, plain attributes, one number of each, and those of inference_mode."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.register_buffer("mean", torch.rand(1, c, 1, 1))
        self.register_buffer("ready", torch.tensor(True))
        self.register_buffer("scale", torch.tensor(1.5), persistent=False)
        self.plain = [torch.rand(c), {"bias": torch.rand(1, c, 1, 1)}]
        self.way = plan.choice("plain", "item", "flag", "float", "inference", "tied")
        self.conv, self.again = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.again.weight = self.conv.weight
        with torch.inference_mode():
            self.made = nn.Parameter(torch.rand(c, c, 1, 1), requires_grad=False)
        self.makes = [(c, level)]

    def forward(self, x):
        y = (x - self.mean) / (self.mean + 1)
        if self.way == "item":
            return [y * self.scale.item()]
        if self.way == "flag":
            return [y + self.mean if self.ready else y]
        if self.way == "float":
            return [y * float(self.conv.bias[0].abs() + 1)]
        if self.way == "inference":
            return [F.conv2d(y, self.made)]
        if self.way == "tied":
            return [self.again(F.relu(self.conv(y)))]
        return [y * self.plain[0].view(1, -1, 1, 1) + self.plain[1]["bias"]]


@step(2.5)
class Cached(Step):
    """What is computed once and kept: on the module, its class, in a global, in an lru_cache."""

    table: dict[Any, Tensor] = {}  # noqa: RUF012

    def set_up(self, plan):
        self.makes = [self.read(plan)]
        self.where = plan.choice("grid", "once", "class", "global", "lru", "dict", "buffer", "deleted")
        self.grid, self.by_size = None, {}
        if self.where == "buffer":
            self.register_buffer("kept", None, persistent=False)

    def forward(self, x):
        h, w = x.shape[2:]
        if self.where == "grid":
            if self.grid is None or self.grid.shape[-2:] != (h, w):
                ys, xs = torch.linspace(-1, 1, h), torch.linspace(-1, 1, w)
                self.grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij"))[None]
            return [x + self.grid[:, :1] * self.grid[:, 1:]]
        if self.where == "once":
            if self.grid is None:
                self.grid = torch.linspace(0.5, 1.5, x.shape[1]).view(1, -1, 1, 1)
            return [x * self.grid]
        if self.where == "deleted":
            if not hasattr(self, "bias"):
                self.bias = torch.full((1, 1, 1, 1), 0.5)
            y = x + self.bias
            del self.bias
            return [y]
        if self.where == "buffer":
            if self.kept is None or self.kept.shape[-1] != w:
                self.kept = torch.arange(w, dtype=torch.float32) / 7
            return [x + self.kept]
        if self.where == "lru":
            return [x * ramp(w)]
        place = {"class": type(self).table, "global": GLOBAL_CACHE, "dict": self.by_size}[self.where]
        if (h, w) not in place:
            place[h, w] = torch.linspace(0, 1, w).expand(h, w) * torch.linspace(0, 1, h)[:, None]
        return [x + place[h, w]]


@step(2)
class Remembered(Step):
    """Attributes that each call sets: features for others to read, counters, the last result."""

    calls = 0
    last = None

    def set_up(self, plan):
        self.makes = [self.read(plan)]
        self.way = plan.choice(
            "features", "append", "calls", "calls read", "last", "last read", "name", "global", "lock"
        )
        self.features, self.kept, self.by_name = [], [1], {"a": [2]}
        self.flag, self.unshared = "before", None

    def forward(self, x):
        if self.way == "features":
            self.features = [x, x[:, :2], F.relu(x)]
            return [self.features[2] + self.features[0]]
        if self.way == "append":
            self.kept.append(x)
            self.by_name["a"].append(x.mean())
            self.by_name["x"] = x.detach()
        elif self.way.startswith("calls"):
            self.calls += 1
            return [x * (1 + 0.1 * self.calls)] if self.way == "calls read" else [x * 2]
        elif self.way == "last read":
            last, self.last = self.last, x.mean((0, 2, 3)).view(1, -1, 1, 1)
            return [x if last is None else x + last]
        elif self.way == "last":
            self.last = x.shape[2:], x
        elif self.way == "name":
            self.flag, self.__dict__["by hand"] = "after", x.shape[2]
        elif self.way == "global":
            GLOBAL_CALLS[0] += 1
        else:
            self.unshared = self.unshared or threading.Lock()
            with self.unshared:
                return [x * 1.25]
        return [x * 1.5]


# ---------------------------------------------------------------------------------------------- sizes and values


@step(3)
class SizeBranch(Step):
    """Python decides by sizes."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.way = plan.choice("pad", "one", "large", "ratio", "float", "odd", "area", "wide", "tensor", "loop")
        self.multiple, self.limit = plan.choice(2, 4, 8, 32), plan.choice(10, 20, 35)
        self.conv = ConvNorm(plan, c, c)
        self.makes = [(c, level)]

    def forward(self, x):
        n, _, h, w = x.shape
        if self.way == "pad":
            if h % self.multiple or w % self.multiple:
                bottom, right = -h % self.multiple, -w % self.multiple
                return [self.conv(F.pad(x, (0, right, 0, bottom)))[..., :h, :w]]
            return [self.conv(x)]
        if self.way == "one":
            return [self.conv(x[0][None]) if x.shape[0] == 1 else self.conv(x) * 2]
        if self.way == "large":
            return [self.conv(x) if h > self.limit else x - 1]
        if self.way == "ratio":
            return [F.interpolate(x, scale_factor=0.5, mode="nearest").mean() + x]
        if self.way == "float":
            return [x * (h * 1.5 / w) + x.sum() / float(h * w)]
        if self.way == "odd":
            if h % 2 and w % 2 and self.multiple > 4:
                raise ValueError(f"{h}x{w} is odd")
            return [self.conv(x)]
        if self.way == "area":
            return [self.conv(x) * (n * h * w) ** 0.5 / 50 + max(h, w) // 3 * 0.05]
        if self.way == "wide":
            return [x.transpose(2, 3).flip(2).transpose(2, 3) if w >= h else x + 1]
        if self.way == "tensor":
            return [x * torch.tensor([h, w]).float().mean() / torch.tensor(float(w))]
        y = x
        for k in range(0, h, 16):
            y = y + x[:, :, k : k + 1]
        return [y]


@step(2.5)
class Values(Step):
    """Python looks at values: numbers, branches, shapes that depend on them."""

    def set_up(self, plan):
        self.way = plan.choice("item", "branch", "tolist", "boolean", "nonzero", "numpy", "numpy write", "pointer",
                               "from numpy", "argmax", "topk", "one hot", "random", "where", "format")  # fmt: skip
        self.reads.append(0)  # the image, exact
        self.makes = [self.read(plan)]

    def forward(self, image, x):
        if self.way == "item":
            return [x * (1 + abs(x.mean().item()))]
        if self.way == "branch":
            return [x * 0 if x.max() > 1e9 else x * 1.5]
        if self.way == "tolist":
            return [x + sum(x.mean((0, 2, 3)).tolist())]
        if self.way == "boolean":
            return [x * 1, image.flatten()[image.flatten() > 0.5037]]
        if self.way == "nonzero":
            return [x * 1, (image > 0.7513).nonzero()]
        if self.way == "numpy":
            return [x + float(x.detach().numpy().max())]
        if self.way == "numpy write":
            y = x * 2
            y.numpy()[:, 0] = 0.5
            return [y]
        if self.way == "from numpy":
            return [x + torch.from_numpy(image.numpy() * 0.5).mean()]
        if self.way == "pointer":
            return [x + (x.data_ptr() != 0)]
        if self.way == "argmax":
            return [x * 1, image.argmax(1)]
        if self.way == "topk":
            values, places = torch.topk(x.flatten(1), 2)
            return [x + values[:, :1, None, None], places.clamp(max=0)]
        if self.way == "one hot":
            classes = (image[:, :1, 0, 0] > 0.5037).long()
            return [x * 1, F.one_hot(classes, 2) if image.shape[0] > 1 else F.one_hot(classes)]
        if self.way == "random":
            return [x + torch.rand_like(x)]
        if self.way == "where":
            return [torch.where(x > 0, x, x * 0.25)]
        return [x * len(f"{x.shape} {x.dtype}")]


# ---------------------------------------------------------------------------------------------- hooks and the like


@step(2.5)
class Hooked(Step):
    """Layers with hooks, with a forward of their own, or parametrized."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.layer = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU())
        self.way = plan.choice("capture", "double", "before", "keywords", "forward", "weight norm", "write", "partial")
        getattr(self, "hook_" + self.way.replace(" ", "_"))()
        self.makes = [(c, level)]

    def hook_capture(self):
        seen: list[Tensor] = []
        self.layer[0].register_forward_hook(lambda module, args, output: seen.append(output))
        self.look = lambda: seen

    def hook_double(self):
        self.layer[1].register_forward_hook(lambda module, args, output: output * 2)

    def hook_before(self):
        self.layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))

    def hook_keywords(self):
        self.layer.register_forward_hook(lambda module, args, kwargs, output: output + args[0].mean(), with_kwargs=True)

    def hook_forward(self):
        conv = self.layer[0]
        conv.forward = types.MethodType(lambda module, x: F.conv2d(x, module.weight * 2, module.bias, padding=1), conv)

    def hook_weight_norm(self):
        torch.nn.utils.parametrizations.weight_norm(self.layer[0])

    def hook_write(self):
        def write(module, args, output):
            output[:, :1].add_(1)

        self.layer[0].register_forward_hook(write)

    def hook_partial(self):
        store: dict[str, Tensor] = {}
        self.layer[2].register_forward_hook(functools.partial(keep, store, "relu"))

    def forward(self, x):
        return [self.layer(x)]


def keep(store: dict[str, Any], name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
    store[name] = output


@step(0.7)
class InferenceMode(Step):
    def set_up(self, plan):
        c, level = self.read(plan)
        self.conv = ConvNorm(plan, c, c)
        self.makes = [(c, level)]

    @torch.inference_mode()
    def forward(self, x):
        y = self.conv(x)
        y[:, :2].mul_(2)
        return [y]


# ---------------------------------------------------------------------------------------------- programs


INPUTS = ("image",) * 10 + (
    "keyword",
    "two",
    "mask",
    "mapping",
    "list",
    "tuple",
    "named",
    "dataclass",
    "bytes",
    "classes",
)
RESULTS = ("tensor",) * 3 + ("list", "list", "tuple", "dict", "ordered", "named", "dataclass", "mixed", "nested")


class Program(nn.Module):
    """See the file's docstring; ``inputs`` and ``results`` are the forms of the arguments and of what is returned."""

    def __init__(self, seed: int):
        super().__init__()
        plan = Plan(seed)
        self.seed, self.inputs, self.results = seed, plan.choice(*INPUTS), plan.choice(*RESULTS)
        self.shared = plan.choice("nothing", "nothing", "twice", "view", "image", "parameter")
        self.surrounding = plan.choice(*["nothing"] * 12, "capture", "scale", "before")
        plan.maps.append((3, 0))
        if self.inputs in ("two", "mapping", "list", "tuple", "named", "dataclass"):
            plan.maps.append((3, 0))
        self.embedding = nn.Embedding(CLASSES, 3) if self.inputs == "classes" else None
        steps: list[Step] = []
        kinds, weights = list(STEPS), list(STEPS.values())
        for k in range(plan.random.randrange(4, 11)):
            kind = Convolution if k == 1 else plan.random.choices(kinds, weights)[0]
            steps.append(kind(plan))
            plan.maps += steps[-1].makes
        self.steps = nn.ModuleList(steps)
        self.last = nn.Conv2d(plan.maps[-1][0], 4, 1)

    def forward(self, image=None, other=None, *, mask=None, gain=1.0, classes=None):
        maps, scale = self.take(image, other)
        image = maps[0]
        if mask is not None:
            maps[0] = image * mask * gain
        if classes is not None:
            maps[0] = image + self.embedding(classes)[:, :, None, None]
        rest = []
        for each in self.steps:
            made = each(*[maps[k] for k in each.reads])
            maps += made[: len(each.makes)]
            rest += made[len(each.makes) :]
        logits = self.last(maps[-1])
        return self.give(logits if scale is None else logits * scale, image, [*maps[1:-1][-3:], *rest])

    def take(self, image, other):
        if isinstance(image, dict):
            return [image["image"], image["meta"][0]], image["meta"][1]
        if isinstance(image, Sample):
            return [image.first, image.second], None
        if isinstance(image, (list, tuple)):
            return list(image), None
        if image.dtype == torch.uint8:
            image = image.float() / 256
        return [image] if other is None else [image, other], None

    def give(self, logits, image, rest):
        if self.results == "tensor":
            return logits
        shared = {"nothing": [], "twice": [logits], "view": [logits[:, 1:], logits.permute(0, 2, 3, 1)],
                  "image": [image, image[:, :1]], "parameter": [self.last.weight, self.last.bias[:2]]}  # fmt: skip
        rest = [*rest, *shared[self.shared]]
        size = logits.shape[2:]
        return {
            "list": lambda: [logits, *rest],
            "tuple": lambda: (logits, *rest),
            "dict": lambda: {"logits": logits, **{f"rest {k}": y for k, y in enumerate(rest)}},
            "ordered": lambda: collections.OrderedDict(rest=rest, logits=logits),
            "named": lambda: Pair(logits, rest),
            "dataclass": lambda: Prediction(logits, {"aux": rest}),
            "mixed": lambda: (logits, None, 3, "a name", 2.5, rest, True),
            "nested": lambda: {"a": [(logits, {"size": tuple(size)}), rest], 1: {}, "none": (None, [])},
        }[self.results]()


def build(seed: int) -> Program:
    """The program of this seed, in evaluation, with weights that show errors."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        program = Program(seed)
        for name, tensor in program.state_dict(keep_vars=True).items():
            if tensor.is_inference():
                continue
            with torch.no_grad():
                if name.endswith("running_mean"):
                    tensor.normal_(0, 0.3)
                elif name.endswith("running_var"):
                    tensor.uniform_(0.5, 2)
                elif isinstance(tensor, nn.Parameter) and tensor.dim() == 4:
                    tensor.normal_(0, (1.5 / tensor[0].numel()) ** 0.5)
                elif isinstance(tensor, nn.Parameter) and name.endswith("bias"):
                    tensor.normal_(0, 0.3)
                elif isinstance(tensor, nn.Parameter) and tensor.dim() == 1:
                    tensor.uniform_(0.5, 1.5).mul_(torch.rand_like(tensor).sub(0.2).sign())
    return program.eval()


def kinds(program: Program) -> list[str]:
    """What the program is made of, as 'Write/by_foreach'."""
    ways = (getattr(s, "way", None) or getattr(s, "where", None) or getattr(s, "write", None) for s in program.steps)
    ways = [getattr(way, "__name__", way) for way in ways]
    names = [
        f"{type(s).__name__}/{way}" if way else type(s).__name__ for s, way in zip(program.steps, ways, strict=True)
    ]
    return [f"takes {program.inputs}", f"gives {program.results}", f"hook {program.surrounding}", *names]


def arguments(program: Program, batch: int, height: int, width: int) -> tuple[tuple, dict[str, Any]]:
    """The same arguments every time, in memory of their own."""
    generator = torch.Generator().manual_seed(1000 * height + 10 * width + batch)

    def image() -> Tensor:
        return torch.randint(0, 256, (batch, 3, height, width), generator=generator) / 256

    first, second = image(), image()
    return {
        "image": lambda: ((first,), {}),
        "keyword": lambda: ((), {"image": first}),
        "two": lambda: ((first, second), {}),
        "mask": lambda: ((first,), {"mask": second[:, :1] > 0.25, "gain": 1.5}),
        "mapping": lambda: (({"image": first, "meta": [second, 0.5 + second[:, :1, :1, :1], "a name"]},), {}),
        "list": lambda: (([first, second],), {}),
        "tuple": lambda: (((first, second),), {}),
        "named": lambda: ((Pair(first, second),), {}),
        "dataclass": lambda: ((Sample(first, second),), {}),
        "bytes": lambda: (((first * 256).to(torch.uint8),), {}),
        "classes": lambda: ((first,), {"classes": torch.arange(batch) % CLASSES}),
    }[program.inputs]()


@contextlib.contextmanager
def surroundings(program: Program):
    """Registers the global hooks that the program wants; afterwards the globals of this file are as they were."""
    seen: list[Any] = []
    hooks = nn.modules.module
    if program.surrounding == "capture":
        handle = hooks.register_module_forward_hook(lambda module, args, output: seen.append(output))
    elif program.surrounding == "scale":
        handle = hooks.register_module_forward_hook(lambda m, args, y: y * 1.25 if isinstance(m, nn.Conv2d) else None)
    elif program.surrounding == "before":
        handle = hooks.register_module_forward_pre_hook(lambda m, args: args[0] + 1 if isinstance(m, nn.ReLU) else None)
    else:
        handle = contextlib.nullcontext()
    try:
        yield
    finally:
        getattr(handle, "remove", lambda: None)()
        GLOBAL_CACHE.clear()
        Cached.table.clear()
        GLOBAL_CALLS[0] = 0
        ramp.cache_clear()
