"""Networks on matrix tiles: on the instructions where the CPU has them, on arrays everywhere else; the same bits."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.models import randomize
from hrnet_fast.network.nodes import Constants
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.runtime.cpu import tiled_steps
from hrnet_fast.runtime.cpu.packed_weights import PackedWeights
from hrnet_fast.runtime.cpu.tiled_encode import TiledProgram
from hrnet_fast.runtime.normalization import Normalization
from hrnet_fast.tolerances import MODEL, relative_error
from support.tile_cases import Exchange, Sums

pytestmark = pytest.mark.skipif(hf.ops.library.extension_error is not None, reason="the compiled part is not there")
HAS_AMX = hf.ops.library.extension_error is None and torch.ops.hrnet_fast.has_tiles()
BF16 = torch.bfloat16


def tiled(module: nn.Module, *inputs: torch.Tensor, normalization: Normalization | None = None):
    """A function that runs a network on tiles, and the program."""
    graph = record(module.eval(), inputs, constants=Constants())
    program = TiledProgram(tiled_steps.lower(graph, steps_of(graph), normalization), PackedWeights(), BF16)

    def run(*given: torch.Tensor) -> list[torch.Tensor]:
        garbage = torch.full(
            [program.arena_bytes // 2], float("nan"), dtype=BF16
        )  # nothing may rely on what lies there
        with torch.no_grad():
            return program.run(list(given), garbage.view(torch.uint8))

    return run, program


def rounded(module: nn.Module) -> nn.Module:
    """Weights in bfloat16 already: what is left is the rounding of images."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_((torch.randn(p.shape) * p[0].numel() ** -0.5).to(BF16))
    return module


@pytest.mark.parametrize("seed", range(120))
def test_random_sums_and_exchanges(seed):
    chance = random.Random(seed)
    torch.manual_seed(seed)
    net = rounded(Sums.drawn(chance) if seed % 2 else Exchange(chance))
    images = [x.to(BF16).float() for x in net.images(chance)]
    run, _ = tiled(net, *images)
    (y,) = run(*images)
    with torch.no_grad():
        expected = net.double()(*(x.double() for x in images))
    assert (y - expected).abs().max() <= expected.abs().max() / (256 if seed % 2 else 100), f"seed {seed}"


SMALL = {"task": "segmentation", "num_classes": 5}


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 1), (96, 260)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_whole_networks(size, batch):
    net = randomize(hf.create_model("hrnet_w18_small", **SMALL).eval())
    x = torch.randn(batch, 3, *size)
    run, _ = tiled(net, x)
    with torch.no_grad():
        assert relative_error(run(x)[0], net(x)) < MODEL[BF16]


class Halves(nn.Module):
    """Operators of torch's between its convolutions: what one graph writes is read and written over in the next."""

    def __init__(self, width: int):
        super().__init__()
        widths = [width, width - 1, width + 2, width - 2]
        self.first = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in widths)
        self.second = nn.ModuleList(nn.Conv2d(w, v, 3, padding=1) for w, v in zip(widths, [*widths[1:], width]))

    def forward(self, x):
        x = self.first[0](x).relu()
        for first, second in zip(self.first, self.second):
            x = second((F.softplus(first(x)) + x).relu()).relu()
        return x


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("width", [5, 18, 40])
def test_graphs_with_operators_of_torch_between_them(batch, width):
    net, x = rounded(Halves(width)), torch.randn(batch, width, 24, 17)
    (y,) = tiled(net, x)[0](x)
    with torch.no_grad():
        assert relative_error(y, net(x)) < MODEL[BF16]


class Chain(nn.Module):
    """Large enough to be cut into many pieces: both strides, residuals, and an exchange."""

    def __init__(self):
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 40, 3, 2, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(8))
        self.low = nn.ModuleList(nn.Conv2d(40, 40, 3, padding=1) for _ in range(2))
        self.point = nn.Conv2d(40, 64, 1)

    def forward(self, image):
        x = self.first(image).relu()
        for first, second in zip(self.blocks[::2], self.blocks[1::2]):
            x = (second(first(x).relu()) + x).relu()
        low = self.down(x).relu()
        low = (self.low[1](self.low[0](low).relu()) + low).relu()
        return (x + F.interpolate(self.point(low), x.shape[2:], mode="bilinear")).relu()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("size", [(256, 256), (301, 95), (60, 700), (5000, 3)], ids=str)
def test_nothing_is_read_before_it_is_there(size, threads):
    """Whatever lies in the memory before: another number, and one that zeros do not take away."""
    net, x = rounded(Chain() if min(size) > 9 else Sums([1], 200, 3, 1, False, True)), torch.randn(1, 3, *size)
    x = x if min(size) > 9 else x[:, :1]
    _, program = tiled(net, x)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        results = []
        for value in (0.0, 3.0, float("nan")):
            memory = torch.full([program.arena_bytes // 2], value, dtype=BF16)
            with torch.no_grad():
                results.append(program.run([x], memory.view(torch.uint8))[0])
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        assert relative_error(results[0], net(x)) < MODEL[BF16]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_number_of_threads_changes_no_bit(threads):
    net, x = randomize(hf.create_model("hrnet_w18_small", **SMALL).eval()), torch.randn(2, 3, 96, 80)
    run, _ = tiled(net, x)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        (expected,) = run(x)
        torch.set_num_threads(threads)
        for _ in range(10):
            assert torch.equal(run(x)[0], expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not HAS_AMX, reason="the CPU has no AMX")
@pytest.mark.parametrize("seed", range(12))
def test_instructions_and_arrays_agree_bit_by_bit(seed, monkeypatch):
    chance = random.Random(seed)
    channels = [chance.randrange(1, 100) for _ in range(chance.randrange(1, 4))]
    net = Sums(channels, chance.randrange(1, 100), chance.choice([1, 3]), chance.choice([1, 2]), False, True)
    images = [torch.randn(1, c, 19, 35) * 10 ** chance.uniform(-30, 10) for c in channels]
    run, _ = tiled(net, *images)
    (expected,) = run(*images)
    monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", "portable")
    assert not torch.ops.hrnet_fast.has_tiles()
    assert torch.equal(run(*images)[0], expected)


def test_the_image_is_normalized_on_its_way():
    net = randomize(hf.create_model("hrnet_w18_small", **SMALL).eval())
    moments = Normalization((120.0, 110.0, 100.0), (60.0, 55.0, 50.0))
    x = torch.randn(1, 3, 64, 96) * 60 + 110
    run, program = tiled(net, x, normalization=moments)
    assert program._plan.normalization is None
    with torch.no_grad():
        assert relative_error(run(x)[0], net(moments(x))) < MODEL[BF16]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_infinity_and_nan_come_through(value):
    net = rounded(Sums([20], 20, 3, 1, True, False))
    x = torch.randn(1, 20, 9, 21)
    residual = torch.randn(1, 20, 9, 21)
    residual[0, 3, 4, 5] = value
    (y,) = tiled(net, x, residual)[0](x, residual)
    with torch.no_grad():
        expected = net(x, residual)
    assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(y.isinf(), expected.isinf())
    x[0, 3, 4, 5] = value
    (y,) = tiled(net, x, residual)[0](x, residual)
    assert not y[0, :, 3:6, 4:7].isfinite().any()
    assert y[0, :, :, 8:].isfinite().all() and y[0, :, :3].isfinite().all() and y[0, :, 6:].isfinite().all()


def test_what_is_added_to_keeps_sixteen_more_bits(monkeypatch):
    net = randomize(hf.create_model("hrnet_w18_small", **SMALL)).eval()
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = net(x)
    error = relative_error(tiled(net, x)[0](x)[0], expected)
    monkeypatch.setattr(tiled_steps, "_widen", lambda operations: None)
    narrow = relative_error(tiled(net, x)[0](x)[0], expected)
    assert error < 0.8 * narrow, (error, narrow)


def test_other_kernels_are_refused():
    graph = record(nn.Conv2d(4, 4, 5, padding=2).eval(), (torch.randn(1, 4, 9, 9),), constants=Constants())
    with pytest.raises(tiled_steps.Refused, match="5x5"):
        tiled_steps.lower(graph, steps_of(graph))


@pytest.mark.skipif(not HAS_AMX, reason="the CPU has no AMX")
def test_optimize_takes_tiles_and_copes_with_what_they_cannot():
    net, x = randomize(hf.create_model("hrnet_w18_small", **SMALL).eval()), torch.randn(1, 3, 64, 64)
    fast = hf.optimize(net, x, dtype=BF16)
    assert fast.engine == "planned" and fast.reason is None
    other = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    fast = hf.optimize(other, x, dtype=BF16)
    with torch.no_grad():
        assert relative_error(fast(x), other(x)) < MODEL[BF16]
