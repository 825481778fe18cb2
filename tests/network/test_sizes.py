"""Recordings of a few sizes as one graph for all: right at sizes that were not recorded, or refused with a reason."""

import collections

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hrnet_fast.export.emit import Emitted
from hrnet_fast.network.nodes import Constants, Refused
from hrnet_fast.network.passes import all_streams, no_streams, steps_of
from hrnet_fast.network.record import record
from hrnet_fast.network.sizes import Sizes
from hrnet_fast.network.trees import flatten
from support import hrnet_like
from support.exhaustive import sampled
from support.judge import INTERNAL, called, leaves_differ
from support.random_programs import arguments, build, surroundings

RECORDED = ((2, 44, 61), (3, 75, 53), (5, 64, 96), (4, 19, 28))  # batch, height, width
# sides of two digits like most of those, for a program that counts digits
TRIED = ((2, 36, 40), (3, 33, 47), (6, 92, 27))
PROGRAMS, CHUNK = 300, 50


def emitted(model, arguments, recorded=RECORDED, choose=all_streams):
    constants = Constants()
    graphs = [record(model, *arguments(*size), constants=constants, calls=2) for size in recorded]
    if any(g.writes for g in graphs):
        raise Refused("it writes into its input")
    return Emitted(graphs[0], steps_of(graphs[0], choose), Sizes(graphs))


def fault(fast, model, arguments, tried=TRIED):
    """What is wrong with it at sizes that were not recorded; empty if nothing is."""
    for size in tried:
        expected, error = called(model, *arguments(*size))
        if error is None:
            tensors = [x for x in flatten(arguments(*size))[0] if isinstance(x, torch.Tensor)]
            got, own = called(fast.compute, (tensors,), {})
            if own is not None or (difference := leaves_differ(got, expected)):
                return f"{size}: {own or difference}"
    return ""


@pytest.mark.parametrize("first", sampled(range(0, PROGRAMS, CHUNK), 6))
def test_random_programs(first):
    counts, faults = collections.Counter(), []
    for seed in range(first, first + CHUNK):
        program, twin = build(seed), build(seed)
        with surroundings(program):
            try:
                fast = emitted(program, lambda *size, p=program: arguments(p, *size))
            except Refused as refused:
                counts["refused"] += 1
                if INTERNAL.search(str(refused)):
                    faults.append(f"build({seed}): {refused}")
                continue
            found = fault(fast, twin, lambda *size, p=twin: arguments(p, *size))
            counts["wrong" if found else "right"] += 1
            if found:
                faults.append(f"build({seed}): {found}")
    print(dict(counts))
    assert not faults, "\n".join(faults)
    assert counts["right"] > CHUNK // 10


@pytest.mark.parametrize("choose", [all_streams, no_streams, lambda channels: 1], ids=["all", "none", "one"])
@pytest.mark.parametrize("seed", sampled(range(0, 62, 6), 3))
def test_hrnet_like_networks(seed, choose):
    model = hrnet_like.build(seed)

    def image(n, h, w):
        return (torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(h)),), {}

    sizes = [(n, -(-h // 32) * 32, -(-w // 32) * 32) for n, h, w in RECORDED]
    sizes = [(n, h + 32 * k, w) for k, (n, h, w) in enumerate(sizes)]
    assert not fault(emitted(model, image, sizes, choose), model, image, ((1, 96, 160), (6, 256, 64)))


class Head(nn.Module):
    """Streams of different resolutions, enlarged, side by side, and a 1x1 convolution."""

    def __init__(self, order=(0, 1, 2)):
        super().__init__()
        self.order = order
        self.streams = nn.ModuleList(nn.Conv2d(3, c, 1, stride=2**j) for j, c in enumerate((2, 3, 4)))
        self.conv, self.last = nn.Conv2d(9, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        streams = [stream(x) for stream in self.streams]
        size = streams[0].shape[2:]
        ups = [streams[0], *(F.interpolate(y, size, mode="bilinear") for y in streams[1:])]
        return self.last(torch.relu(self.conv(torch.cat([ups[k] for k in self.order], 1))))


def images(n, h, w):
    return (torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(h)),), {}


@pytest.mark.parametrize(
    ("order", "moved", "moves"),
    [
        *((o, moved, min(moved, 2)) for o in ((0, 1, 2), (1, 0, 2)) for moved in (0, 1, 2, 7)),
        # what stays must lie side by side: here the one that moves is in the middle
        ((2, 1, 0), 1, 0),
        ((2, 1, 0), 2, 2),
    ],
)
def test_a_part_of_the_streams_moves(order, moved, moves):
    model = Head(order).eval()
    graph = record(model, *images(2, 16, 24), constants=Constants())
    steps = steps_of(graph, lambda channels: moved)
    heads = [s for s in steps if not hasattr(s, "node") and any(u.weight is not None for u in s.ups)]
    assert sum(len(s.ups) for s in heads) == moves
    assert not fault(emitted(model, images, choose=lambda channels: moved), model, images)


class Branches(nn.Module):
    """What a comparison of one kind makes of an image."""

    def __init__(self, way):
        super().__init__()
        self.way, self.conv = way, nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        n, c, h, w = x.shape
        return {
            "comparison": lambda: self.conv(x) if h > 70 else x,
            "float": lambda: x * (h / w),
            "grid": lambda: x + torch.linspace(-1, 1, w),
            "range": lambda: x + torch.arange(h)[:, None] * 0.01,
            "offset": lambda: x[:, :, : h - 1],
            "area": lambda: self.conv(x).reshape(n, c, h * w).softmax(2),
            "minus one": lambda: self.conv(x).reshape(n, -1).cumsum(1),
            "number": lambda: (x, h),
        }[self.way]()


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("comparison", "its operators depend on the size"),
        ("float", "by the size of the image"),
        ("grid", None),
        ("range", None),
        ("offset", "is the size of no tensor"),
        ("area", None),
        ("minus one", None),
        ("number", "it returns a number that depends on the size"),
    ],
)
def test_what_depends_on_the_size(way, reason):
    model = Branches(way).eval()
    if reason is None:
        assert not fault(emitted(model, images), model, images, ((1, 31, 32), *TRIED))
    else:
        with pytest.raises(Refused, match=reason):
            emitted(model, images)


def test_norms_that_cannot_be_folded_stay():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y  # the convolution's own result is needed, too

    model = Twice().eval()
    nn.init.normal_(model.norm.running_mean)
    nn.init.uniform_(model.norm.weight, 0.5, 2)
    assert not fault(emitted(model, images), model, images)
