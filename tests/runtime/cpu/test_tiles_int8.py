"""Networks whose convolutions multiply bytes, beside the same in float64, and bit by bit on instructions and arrays."""

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.models import randomize
from hrnet_fast.network.integers import Factor, Rounding, in_bytes, multiplied
from hrnet_fast.network.nodes import Constants
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.network.sums import Sum
from hrnet_fast.runtime.cpu import tiled_steps
from hrnet_fast.runtime.cpu.operations import Convolution, Exchange, Reorder, Restore, TorchCall
from hrnet_fast.runtime.cpu.packed_weights import PackedWeights
from hrnet_fast.runtime.cpu.tiled_encode import TiledProgram
from hrnet_fast.tolerances import relative_error
from support.tile_cases import Exchange as RandomExchange
from support.tile_cases import Sums

pytestmark = pytest.mark.skipif(hf.ops.library.extension_error is not None, reason="the compiled part is not there")
LEVELS = [] if hf.ops.library.extension_error else torch.ops.hrnet_fast.cpu_capabilities().split()


def random_factors(graph, steps, chance: random.Random) -> dict:
    """Roundings that fit numbers of about 1, with and without negative ones."""
    return {
        weight: Factor(Rounding(2.0 ** chance.uniform(-8, -5), chance.choice([0, 128])), torch.rand(weight.shape[1]))
        for weight in multiplied(graph, steps)
    }


def lowered_in_bytes(module: nn.Module, *inputs: Tensor, chance: random.Random):
    graph = record(module.eval(), inputs, constants=Constants())
    steps = steps_of(graph)
    return tiled_steps.lower(graph, steps, None, random_factors(graph, steps, chance))


def run_of(lowered):
    program = TiledProgram(lowered, PackedWeights(), torch.float32)

    def run(*given: Tensor) -> list[Tensor]:
        garbage = torch.full([program.arena_bytes // 2], float("nan"), dtype=torch.bfloat16).view(torch.uint8)
        with torch.no_grad():
            return program.run(list(given), garbage)

    return run, program


def in_float64(lowered, *given: Tensor) -> list[Tensor]:
    """What the operations say, each image rounded as they say, everything else exact."""
    env: dict[int, tuple[Tensor, Tensor | None]] = {}  # of each image: in bfloat16, in bytes
    tensors = {id(buffer): x for buffer, x in zip(lowered.inputs, given)}

    def put(op, y: Tensor) -> None:
        integers = None
        if op.rounding is not None:
            integers = (y / op.rounding.step + op.rounding.zero).round().clamp(0, 255)
        env[id(op.output)] = (y.to(torch.bfloat16).double(), integers)

    def products(images, kernels, bias, factors, stride) -> Tensor:
        padding = kernels[0].shape[2] // 2
        if factors is None:
            return bias.double().view(-1, 1, 1) + sum(
                F.conv2d(env[id(i)][0], k.to(torch.bfloat16).double(), None, stride, padding)
                for i, k in zip(images, kernels)
            )
        bias, scale, integers = in_bytes(kernels, bias, factors)
        total = 0.0
        for image, integer, factor in zip(images, integers, factors):
            x = F.pad(env[id(image)][1], [padding] * 4, value=factor.rounding.zero)
            total = total + F.conv2d(x, integer.double(), None, stride)
        return scale.double().view(-1, 1, 1) * total + bias.double().view(-1, 1, 1)

    def shift_of(weights) -> Tensor:
        shifts = [w.shift() for w in weights]
        return sum(s for s in shifts if s is not None)

    def up(x: Tensor, op, size) -> Tensor:
        if x.shape[2:] == size:
            return x
        how = {} if op.mode == "nearest" else {"align_corners": op.align_corners}
        return F.interpolate(x, size=size, mode=op.mode, **how)

    for op in [op for step in lowered.steps for op in step]:
        if isinstance(op, TorchCall):
            node = op.call.node
            args, kwargs = node.arguments(lambda x: tensors[id(lowered.values[x])] if hasattr(x, "node") else x)
            tensors[id(op.outputs[0])] = node.operator(*args, **kwargs)
        elif isinstance(op, Reorder):
            put(op, tensors[id(op.source)].double())
        elif isinstance(op, Restore):
            env[id(op.output)] = (env[id(op.source)][0], None)
        elif isinstance(op, Convolution):
            (weights,) = op.weights
            y = products(op.sources, [w.kernel() for w in weights], shift_of(weights), op.factors, op.stride)
            y = y if op.residual is None else y + env[id(op.residual)][0]
            put(op, y.relu() if op.relu_from == 0 else y)
        elif isinstance(op, Exchange):
            size = op.output.size
            y = sum((up(env[id(i)][0], op, size) for i, w in op.inputs if w is None), torch.zeros(1))
            multiplied = [(i, w) for i, w in op.inputs if w is not None]
            if multiplied:
                weights = [w for _, w in multiplied]
                y = y + products(
                    [i for i, _ in multiplied], [w.kernel() for w in weights], shift_of(weights), op.factors, 1
                )
            y = y.relu() if op.relu else y
            if op.projection is not None:
                kernel, shift = op.projection.kernel().to(torch.bfloat16).double(), op.projection.shift().double()
                y = F.conv2d(y.to(torch.bfloat16).double(), kernel, shift)
            put(op, y)
    return [env[id(image)][0] for image in lowered.outputs.values()]


def random_case(seed: int):
    chance = random.Random(seed)
    torch.manual_seed(seed)
    # softplus, so that the images that are multiplied are torch's
    net = Sums.drawn(chance, True, F.softplus) if seed % 2 else RandomExchange(chance, F.softplus)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape) * p[0].numel() ** -0.5)
    images = net.images(chance)
    return lowered_in_bytes(net, *images, chance=chance), images


@pytest.mark.parametrize("seed", range(120))
def test_every_operation_is_what_it_says(seed):
    lowered, images = random_case(seed)
    operations = [op for step in lowered.steps for op in step]
    if seed == 1:
        assert any(getattr(op, "factors", None) for op in operations)
    (y,) = run_of(lowered)[0](*images)
    (expected,) = in_float64(lowered, *images)
    assert y.dtype == torch.float32
    # a sum on the border between two bytes may fall on either side
    assert (y - expected).abs().max() <= expected.abs().max() / 40, f"seed {seed}"
    assert relative_error(y, expected) < 4e-3, f"seed {seed}"


@pytest.mark.parametrize("seed", range(60))
def test_all_instruction_sets_agree_bit_by_bit(seed, monkeypatch):
    """Portable: plain loops on arrays; it is always there."""
    lowered, images = random_case(1000 + seed)
    run, _ = run_of(lowered)
    results = {}
    for level in LEVELS:
        monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", level)
        (results[level],) = run(*images)
    assert all(torch.equal(y, results["portable"]) for y in results.values()), f"seed {seed}"


def test_bytes_are_rounded_to_the_nearest_and_stay_in_their_range():
    """Through a convolution that only copies."""
    net = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    values = torch.tensor(
        [-3e38, -300.0, -1.0, -0.5, -0.0, 0.5, 1.5, 2.5, 126.5, 127.0, 254.5, 255.0, 255.5, 1e10, 3e38]
    )

    class Copy(nn.Module):
        def forward(self, x):
            return net(F.hardtanh(x, -3e38, 3e38))

    for zero in (0, 128):
        x = values.view(1, 1, 1, -1)
        graph = record(Copy().eval(), (x,), constants=Constants())
        steps = steps_of(graph)
        factors = {s.convs[0].weight: Factor(Rounding(1.0, zero), torch.zeros(1)) for s in steps if isinstance(s, Sum)}
        (y,) = run_of(tiled_steps.lower(graph, steps, None, factors))[0](x)
        expected = (values + zero).round().clamp(0, 255) - zero
        # zero itself is what is left of two large numbers
        torch.testing.assert_close(y.flatten(), expected.to(torch.bfloat16).float(), rtol=0, atol=1e-6)


def test_the_network_s_own_images_and_the_last_weights_stay_wide():
    net = randomize(hf.create_model("hrnet_w18_small", task="segmentation", num_classes=5).eval())
    lowered = lowered_in_bytes(net, torch.randn(1, 3, 64, 64), chance=random.Random(0))
    operations = [op for step in lowered.steps for op in step]
    convolutions = [op for op in operations if isinstance(op, Convolution)]
    assert [op.factors is None for op in convolutions].count(True) == 1
    assert convolutions[0].factors is None and convolutions[0].sources[0].channels == 3
    (head,) = [op for op in operations if isinstance(op, Exchange) and op.projection is not None]
    assert head.factors is not None


def test_weights_in_bytes_are_as_near_as_they_can_be():
    torch.manual_seed(0)
    kernels = [torch.randn(7, c, 3, 3) for c in (5, 9)]
    factors = tuple(Factor(Rounding(step, zero), torch.rand(c)) for step, zero, c in ((0.01, 0, 5), (0.03, 128, 9)))
    _, scale, integers = in_bytes(kernels, torch.randn(7), factors)
    for kernel, integer, factor in zip(kernels, integers, factors):
        back = integer.double() * scale.view(-1, 1, 1, 1) / factor.rounding.step
        assert (back - kernel).abs().amax((1, 2, 3)).le(0.5001 * scale / factor.rounding.step).all()
    assert torch.stack([i.abs().amax((1, 2, 3)) for i in integers]).amax(0).eq(127).all()
    assert in_bytes([torch.zeros(2, 3, 1, 1)], torch.ones(2), (factors[0]._replace(mean=torch.ones(3)),))[0].eq(1).all()


def test_the_mean_of_a_channel_survives_the_rounding_of_weights():
    torch.manual_seed(1)
    x = torch.rand(1, 40, 30, 30) * torch.rand(40, 1, 1)
    kernel = torch.randn(12, 40, 1, 1)
    factor = Factor(Rounding(1 / 255, 0), x.mean((0, 2, 3)))
    bias, scale, (integer,) = in_bytes([kernel], torch.zeros(12), (factor,))
    integers = (x.double() / factor.rounding.step).round()
    y = F.conv2d(integers, integer.double()) * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
    lost = (y - F.conv2d(x.double(), kernel.double())).mean((0, 2, 3)).abs()
    without = (y - bias.view(-1, 1, 1) - F.conv2d(x.double(), kernel.double())).mean((0, 2, 3)).abs()
    assert lost.max() < 0.1 * without.max()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_no_bit(threads):
    net = randomize(hf.create_model("hrnet_w18_small", task="segmentation", num_classes=5).eval())
    x = torch.randn(2, 3, 96, 80)
    run, _ = run_of(lowered_in_bytes(net, x, chance=random.Random(3)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        (expected,) = run(x)
        assert expected.isfinite().all() and expected.std() > 0
        torch.set_num_threads(threads)
        for _ in range(10):
            assert torch.equal(run(x)[0], expected)
    finally:
        torch.set_num_threads(before)
