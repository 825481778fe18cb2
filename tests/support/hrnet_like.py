"""HRNet-like networks drawn at random: ``build(seed)`` gives the same network every time, in evaluation.

Two to four streams of any widths, odd ones too, residual blocks of several kinds, exchanges in each style of
upsampling, and one of many heads. Weights and statistics are those that a trained network could have: activations of
order 1 everywhere, so that errors show, in half precision as well.
"""

import itertools
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STYLES = ("nearest", "bilinear", "corners", "nearest by scale", "bilinear by scale", "corners by scale")
BLOCKS = ("basic", "basic", "bottleneck", "group", "plain")
HEADS = ("v1", "v2", "v2", "ocr", "fpn", "fpn plain", "classes", "streams", "pyramid")


def resized(y: Tensor, like: Tensor, style: str) -> Tensor:
    """``y`` as large as ``like``; 'by scale' that only fits where sizes are multiples."""
    if "by scale" in style:
        where = {"scale_factor": max(1, round(like.shape[2] / y.shape[2]))}
    else:
        where = {"size": like.shape[2:]}
    if style.startswith("nearest"):
        return F.interpolate(y, mode="nearest", **where)
    return F.interpolate(y, mode="bilinear", align_corners=style.startswith("corners"), **where)


def conv_norm(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, norm: str = "batch", bias: bool = False) -> list:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=bias)
    return [conv, nn.BatchNorm2d(c_out) if norm == "batch" else nn.GroupNorm(1, c_out)]


class Block(nn.Module):
    """A residual block: 'basic', 'bottleneck', 'group' (GroupNorm), or 'plain': one convolution."""

    def __init__(self, channels: int, kind: str):
        super().__init__()
        norm, mid = "group" if kind == "group" else "batch", max(2, channels // 2)
        if kind == "bottleneck":
            layers = [
                *conv_norm(channels, mid),
                nn.ReLU(),
                *conv_norm(mid, mid, 3),
                nn.ReLU(),
                *conv_norm(mid, channels),
            ]
        elif kind == "plain":
            layers = conv_norm(channels, channels, 3)
        else:
            layers = [
                *conv_norm(channels, channels, 3, norm=norm),
                nn.ReLU(),
                *conv_norm(channels, channels, 3, norm=norm),
            ]
        self.layers, self.adds, self.relu = nn.Sequential(*layers), kind != "plain", nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.layers(x)
        if self.adds:
            y = 0.4 * y + x if isinstance(self.layers[-1], nn.GroupNorm) else y + x
        return self.relu(y)


class Module(nn.Module):
    """An exchange unit in the structure of the official repositories."""

    def __init__(self, channels: list[int], blocks: int, kind: str, style: str, outputs: int):
        super().__init__()
        self.num_branches, self.num_inchannels = len(channels), channels
        self.multi_scale_output, self.style = outputs > 1, style
        self.branches = nn.ModuleList(nn.Sequential(*(Block(c, kind) for _ in range(blocks))) for c in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self.path(channels, i, j) for j in range(len(channels))) for i in range(outputs)
        )
        self.relu = nn.ReLU(inplace=style.startswith("nearest"))

    def path(self, channels: list[int], i: int, j: int) -> nn.Module | None:
        if i == j:
            return None
        if j > i:
            up = nn.Sequential(*conv_norm(channels[j], channels[i]))
            if "by scale" in self.style:
                mode = self.style.split()[0]
                corners = {} if mode == "nearest" else {"align_corners": mode == "corners"}
                mode = "nearest" if mode == "nearest" else "bilinear"
                up.append(nn.Upsample(scale_factor=2 ** (j - i), mode=mode, **corners))
            return up
        steps = [nn.Sequential(*conv_norm(channels[j], channels[j], 3, 2), nn.ReLU()) for _ in range(i - j - 1)]
        return nn.Sequential(*steps, nn.Sequential(*conv_norm(channels[j], channels[i], 3, 2)))

    def forward(self, x):
        x = [branch(y) for branch, y in zip(self.branches, x, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse_layers):
            y = x[0] if i == 0 else row[0](x[0])
            for j in range(1, self.num_branches):
                if j == i:
                    y = y + x[j]
                elif j > i and "by scale" not in self.style:
                    y = y + resized(row[j](x[j]), x[i], self.style)
                else:
                    y = y + row[j](x[j])
            fused.append(self.relu(y))
        return fused


class V1(nn.Module):
    """Logits of the first stream."""

    def __init__(self, channels, classes, style):
        super().__init__()
        self.last_layer = nn.Conv2d(channels[0], classes, 1)

    def forward(self, streams):
        return self.last_layer(streams[0])


class V2(nn.Module):
    """All streams upsampled, concatenated, and two 1x1 convolutions."""

    def __init__(self, channels, classes, style):
        super().__init__()
        total, self.style = sum(channels), style
        self.last_layer = nn.Sequential(*conv_norm(total, total, bias=True), nn.ReLU(), nn.Conv2d(total, classes, 1))

    def forward(self, streams):
        return self.last_layer(torch.cat([streams[0], *(resized(y, streams[0], self.style) for y in streams[1:])], 1))


class OCR(nn.Module):
    """Object-contextual representations: soft regions, pixels that attend to them; logits and auxiliary logits."""

    def __init__(self, channels, classes, style):
        super().__init__()
        total, width, self.style = sum(channels), 8, style
        self.aux = nn.Sequential(*conv_norm(total, total), nn.ReLU(), nn.Conv2d(total, classes, 1))
        self.pixels = nn.Sequential(*conv_norm(total, width, 3), nn.ReLU())
        self.query, self.key, self.value = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.last = nn.Conv2d(2 * width, classes, 1)

    def forward(self, streams):
        y = torch.cat([streams[0], *(resized(y, streams[0], self.style) for y in streams[1:])], 1)
        aux, pixels = self.aux(y), self.pixels(y)
        n, c, h, w = pixels.shape
        regions = (0.5 * aux).flatten(2).softmax(-1) @ pixels.flatten(2).transpose(1, 2)
        regions = regions.transpose(1, 2).unsqueeze(3)
        query, key = self.query(pixels).view(n, c, -1).transpose(1, 2), self.key(regions).view(n, c, -1)
        weights = (c**-0.5 * (query @ key)).softmax(-1)
        context = (weights @ self.value(regions).view(n, c, -1).transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w)
        return self.last(torch.cat([context, pixels], 1)), aux


class FPN(nn.Module):
    """Laterals without ReLU, sums from the lowest to the highest, 3x3 convolutions; a dict of maps."""

    norm = True

    def __init__(self, channels, classes, style):
        super().__init__()
        self.style = style.split(" by")[0]
        self.lateral = nn.ModuleList(
            nn.Sequential(*conv_norm(c, 10)) if self.norm else nn.Conv2d(c, 10, 1) for c in channels
        )
        self.smooth = nn.ModuleList(nn.Conv2d(10, 10, 3, padding=1) for _ in channels)

    def forward(self, streams):
        maps = [lateral(y) for lateral, y in zip(self.lateral, streams, strict=True)]
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + resized(maps[i + 1], maps[i], self.style)
        return {f"p{i + 2}": smooth(y) for i, (smooth, y) in enumerate(zip(self.smooth, maps, strict=True))}


class PlainFPN(FPN):
    norm = False


class Classes(nn.Module):
    """Streams widened, added from the highest to the lowest by strided convolutions, pooled: logits [N, classes]."""

    def __init__(self, channels, classes, style):
        super().__init__()
        widths = [2 * c + 1 for c in channels]
        self.widen = nn.ModuleList(
            nn.Sequential(*conv_norm(c, w), nn.ReLU()) for c, w in zip(channels, widths, strict=True)
        )
        self.down = nn.ModuleList(
            nn.Sequential(*conv_norm(a, b, 3, 2), nn.ReLU()) for a, b in itertools.pairwise(widths)
        )
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, streams):
        y = self.widen[0](streams[0])
        for widen, down, stream in zip(self.widen[1:], self.down, streams[1:], strict=True):
            y = widen(stream) + down(y)
        return self.classifier(F.avg_pool2d(y, kernel_size=y.shape[2:]).flatten(1))


class Streams(nn.Module):
    """The streams themselves, as a backbone gives them, and nothing of the model's own."""

    def __init__(self, channels, classes, style):
        super().__init__()

    def forward(self, streams):
        return streams


class Pyramid(nn.Module):
    """HRFPN: the concatenation reduced, pooled to several sizes."""

    def __init__(self, channels, classes, style):
        super().__init__()
        self.reduction, self.style = nn.Conv2d(sum(channels), 7, 1), style
        self.convs = nn.ModuleList(nn.Conv2d(7, 7, 3, padding=1) for _ in range(3))

    def forward(self, streams):
        y = self.reduction(torch.cat([streams[0], *(resized(y, streams[0], self.style) for y in streams[1:])], 1))
        maps = [y, *(F.avg_pool2d(y, 2**k, 2**k, ceil_mode=True) for k in (1, 2))]
        return tuple(conv(y) for conv, y in zip(self.convs, maps, strict=True))


HEAD = {
    "v1": V1,
    "v2": V2,
    "ocr": OCR,
    "fpn": FPN,
    "fpn plain": PlainFPN,
    "classes": Classes,
    "streams": Streams,
    "pyramid": Pyramid,
}


class Network(nn.Module):
    """A stem, stages that each bring one stream more, and a head."""

    def __init__(self, seed: int):
        super().__init__()
        draw = random.Random(seed)
        self.seed, self.style, self.head_kind = seed, draw.choice(STYLES), draw.choice(HEADS)
        self.kind, count = draw.choice(BLOCKS), draw.choice((2, 3, 3, 4))
        first = draw.choice((4, 6, 7, 8, 9, 12, 18))
        doubled = draw.random() < 0.5
        self.channels = [first << k if doubled else draw.randrange(3, 24) for k in range(count)]
        width, quarter = draw.choice((8, 11, 16)), draw.random() < 0.6
        self.conv1, self.bn1 = conv_norm(3, width, 3, 2)
        self.conv2, self.bn2 = conv_norm(width, width, 3, 2 if quarter else 1)
        self.relu, self.layer1 = nn.ReLU(inplace=True), Block(width, draw.choice(BLOCKS))
        self.transitions, self.stages, before = nn.ModuleList(), nn.ModuleList(), [width]
        for k in range(2, count + 1):
            now = self.channels[:k]
            self.transitions.append(nn.ModuleList(self.transition(before, now, i) for i in range(k)))
            one = self.head_kind == "v1" and k == count and draw.random() < 0.5
            blocks, modules = draw.choice((1, 2)), draw.choice((1, 1, 2))
            stage = [Module(now, blocks, self.kind, self.style, k) for _ in range(modules - 1)]
            self.stages.append(nn.Sequential(*stage, Module(now, blocks, self.kind, self.style, 1 if one else k)))
            before = now
        self.head = HEAD[self.head_kind](self.channels, draw.choice((1, 5, 19)), self.style)

    @staticmethod
    def transition(before: list[int], now: list[int], i: int) -> nn.Module | None:
        if i < len(before):
            return None if before[i] == now[i] else nn.Sequential(*conv_norm(before[i], now[i], 3), nn.ReLU())
        return nn.Sequential(nn.Sequential(*conv_norm(before[-1], now[i], 3, 2), nn.ReLU()))

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer1(self.relu(self.bn2(self.conv2(x))))
        streams = [x]
        for transition, stage in zip(self.transitions, self.stages, strict=True):
            streams = [
                streams[min(i, len(streams) - 1)] if layer is None else layer(streams[min(i, len(streams) - 1)])
                for i, layer in enumerate(transition)
            ]
            streams = stage(streams)
        return self.head(streams)

    def extra_repr(self) -> str:
        """What was drawn."""
        drawn = f"seed={self.seed}, channels={self.channels}, {self.kind} blocks"
        return f"{drawn}, style={self.style!r}, head={self.head_kind!r}"


def build(seed: int) -> Network:
    """The network of this seed, with the statistics that its own activations have."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        network = Network(seed)
        last = {block.layers[-1] for block in network.modules() if isinstance(block, Block) and block.adds}
        norms = [m for m in network.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))]
        for layer in (m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
            layer.weight.normal_(0, (2 / layer.weight[0].numel()) ** 0.5)
            if layer.bias is not None:
                layer.bias.normal_(0, 0.2)
        for norm in norms:  # residual branches are small beside what they are added to, as training leaves them
            norm.weight.normal_(*((0.2, 0.05) if norm in last else (0.8, 0.15)))
            norm.bias.normal_(0.4, 0.2)
            norm.momentum = 1.0
        network.train()(torch.rand(2, 3, 64, 64))
        for norm in norms:
            norm.momentum = 0.1
    return network.eval()
