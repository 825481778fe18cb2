"""Grouped launches in Triton's interpreter against float64: a level of everything, and whole networks."""

import copy

import pytest
import torch
import torch.nn.functional as F

from hrnet_fast.kernels import configurations, taps
from hrnet_fast.kernels.grouped_level import Picture, Task, Term, constants, grouped_level, padded, table
from hrnet_fast.network.nodes import Constants, Value
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.network.trees import flatten
from hrnet_fast.runtime.gpu.grouped import Grouped
from hrnet_fast.tolerances import MODEL, OPERATOR, relative_error
from support.hrnet_like import build

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _large_tiles(monkeypatch):
    """Larger tiles than those of GPUs: the interpreter takes a time for every tile, whatever its size."""
    tiles = (
        configurations.GroupedTile(8, 16, 16, 16),
        configurations.GroupedTile(16, 32, 64, 64),
        configurations.GroupedTile(16, 32, 32, 16),
    )
    for name, row in configurations.GROUPED_LEVEL.items():
        monkeypatch.setitem(configurations.GROUPED_LEVEL, name, row._replace(tiles=tiles))


class Arena:
    """Images and weights one behind the other, NaN between them, zeros in the channels that pad an image."""

    def __init__(self, dtype):
        self.memory, self.end = torch.full((1 << 18,), float("nan"), dtype=dtype), 0

    def put(self, image=None, shape=None):
        n, c, h, w = shape or image.shape
        picture = Picture(self.end, padded(c), (h, w))
        view = self.view(picture, n)
        if image is not None:
            view.zero_()
            view[:, :c] = image
        self.end += view.numel() + 8
        return picture

    def view(self, picture, n):
        c, (h, w) = picture.channels, picture.size
        return self.memory[picture.offset : picture.offset + n * c * h * w].view(n, h, w, c).permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_level_of_everything(dtype):
    """Of odd sizes: 3x3 and 1x1, stride 1 and 2, several sources, a residual in place, sums in each mode."""
    n, arena, weights, biases = 2, Arena(dtype), Arena(dtype), torch.full((256,), float("nan"))
    exact, tasks, used = [], [], 0

    def source(c, h, w):
        x = torch.randn(n, c, h, w).to(dtype)
        return x, arena.put(x)

    def conv(sources, c_out, kernel, stride, relu, residual=None):
        nonlocal used
        terms, total = [], 0
        for x, picture in sources:
            weight = (torch.randn(c_out, x.shape[1], kernel, kernel) / (kernel * x.shape[1] ** 0.5)).to(dtype)
            packed = F.pad(weight.permute(2, 3, 1, 0).flatten(0, 1), (0, -c_out % 8, 0, -x.shape[1] % 8))
            terms.append(Term(picture, weights.end))
            weights.memory[weights.end : weights.end + packed.numel()] = packed.flatten()
            weights.end += packed.numel()
            total = total + F.conv2d(x.double(), weight.double(), stride=stride, padding=kernel // 2)
        bias = torch.randn(c_out)
        total += bias.double()[:, None, None]
        biases[used : used + padded(c_out)] = F.pad(bias, (0, -c_out % 8))
        out = residual[1] if residual else arena.put(shape=total.shape)
        tasks.append(Task(out, n, terms, relu, kernel, stride, used, out if residual else None))
        used += padded(c_out)
        total = total + residual[0].double() if residual else total
        exact.append(F.relu(total) if relu else total)

    a, b, c = source(18, 11, 18), source(36, 6, 9), source(5, 3, 5)
    conv([a], 18, 3, 1, True, residual=source(18, 11, 18))
    conv([a], 40, 3, 2, False)
    conv([b, source(7, 6, 9)], 20, 3, 1, True)
    conv([b], 70, 1, 1, False)
    low, middle = source(18, 3, 5), source(18, 6, 9)
    tasks.append(Task(arena.put(shape=(n, 18, 11, 18)), n, [Term(p) for _, p in (a, low, middle)], True))
    up = [F.interpolate(x.double(), (11, 18), mode="bilinear") for x, _ in (low, middle)]
    exact.append(F.relu(a[0].double() + sum(up)))
    conv([c], 18, 1, 2, False)
    tiles = configurations.GROUPED_LEVEL[configurations.products(dtype, False)].tiles
    rows, terms, programs = table(tasks, tiles, taps.HALF_PIXEL)
    grouped_level(
        arena.memory,
        arena.memory,
        weights.memory,
        biases,
        torch.tensor(rows, dtype=torch.int32),
        torch.tensor(terms, dtype=torch.int32),
        programs,
        constants(dtype, False, taps.HALF_PIXEL, False, interpreted=True),
    )
    for task, ref in zip(tasks, exact, strict=True):
        found = arena.view(task.out, n)
        assert relative_error(found[:, : ref.shape[1]], ref) < OPERATOR[dtype]
        assert (found[:, ref.shape[1] :] == 0).all()  # the next convolution multiplies them by 0


@pytest.mark.parametrize(("seed", "dtype"), [(3, torch.float32), (3, torch.float16), (5, torch.float32)], ids=str)
def test_whole_networks(seed, dtype, monkeypatch):
    """In an arena full of NaN: what lies there from before must not matter; once of the three a second time."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", seed == 5)  # then the head's kernel serves float32 too
    model, x = build(seed).eval(), torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        exact = flatten(copy.deepcopy(model).double()(x.double()))[0]
        graph = record(model, (x,), {}, constants=Constants(), calls=1)
        owner = Grouped(dtype, torch.device("cpu"), None, interpreted=True)
        plan = owner.prepare(graph, steps_of(graph))
        for _ in range(2 if seed == 5 else 1):
            owner.poison()
            made = dict(zip(graph.outputs(), plan([x])))
        found = [made[r] if isinstance(r, Value) else r for r in graph.results]
    for y, ref in zip(found, exact, strict=True):
        assert y.dtype == dtype
        assert relative_error(y, ref) < MODEL[dtype]
