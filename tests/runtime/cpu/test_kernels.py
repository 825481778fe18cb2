"""The kernels of planned networks one by one, each algorithm and mixture of dtypes, and the plan of memory."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hrnet_fast as hf
from hrnet_fast.models import randomize
from hrnet_fast.network.nodes import Constants, Value
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.runtime.cpu import planned, steps
from hrnet_fast.runtime.cpu.encode import Program
from hrnet_fast.runtime.cpu.operations import DIRECT, PAIRS, WINOGRAD2, WINOGRAD4, Buffer, Convolution, Image, Lowered
from hrnet_fast.runtime.cpu.packed_weights import PackedWeights
from hrnet_fast.tolerances import relative_error
from support.model_cases import SMALL

pytestmark = pytest.mark.planned
needs_pairs = pytest.mark.pairs
SHAPES = [  # n, c_in, c_out, h, w, kernel, stride
    (2, 7, 13, 9, 23, 3, 1),
    (1, 18, 18, 32, 48, 3, 1),
    (2, 5, 6, 1, 1, 3, 1),
    (1, 64, 64, 30, 30, 3, 1),
    (1, 70, 100, 6, 7, 3, 1),
    (2, 20, 9, 17, 40, 3, 2),
    (1, 3, 64, 33, 65, 3, 2),
    (1, 40, 50, 5, 3, 1, 1),
]
CASES = [
    pytest.param(shape, algorithm, marks=needs_pairs if algorithm >= PAIRS else ())
    for shape, algorithm in product(SHAPES, range(2 * PAIRS))
    if algorithm % PAIRS == DIRECT or shape[-2:] == (3, 1)  # Winograd's algorithm is for 3x3 and stride 1
]
# what is left to rounding: the transforms of tiles have square roots in them; elsewhere the numbers below are exact
TOLERANCE = {DIRECT: 0, WINOGRAD2: 1e-6, WINOGRAD4: 2e-6, DIRECT + PAIRS: 0, WINOGRAD2 + PAIRS: 1e-2,
             WINOGRAD4 + PAIRS: 2e-2}  # fmt: skip


class Given:
    """Weights in place of those of a recorded network."""

    def __init__(self, weight, bias):
        self._weight, self._bias = weight, bias
        self.shape = (*weight.shape[:2], weight.shape[2])

    def kernel(self):
        return self._weight

    def shift(self):
        return self._bias


def convolve(algorithm, sources, weight, bias, stride, residual, relu_from, wide_output):
    """One convolution of bfloat16 or float32 images, as a program of its own; the result comes back in bfloat16."""
    c_out, kernel = weight.shape[0], weight.shape[2]
    n, _, h, w = sources[0].shape
    buffers = [Buffer(tuple(x.shape), True, x.dtype == torch.float32) for x in sources]
    out = Buffer((n, c_out, -(-h // stride), -(-w // stride)), True, wide_output)
    added = None if residual is None else Buffer(tuple(residual.shape), True, wide_output)
    weights, first = [], 0
    for k, x in enumerate(sources):  # the bias once
        weights.append(Given(weight[:, first : first + x.shape[1]], bias if k == 0 else None))
        first += x.shape[1]
    images = [Image(b, 0, b.shape[1]) for b in buffers]
    op = Convolution(
        Image(out, 0, c_out),
        images,
        [weights],
        kernel,
        stride,
        None if added is None else Image(added, 0, c_out),
        relu_from,
        algorithm,
    )
    given = [*buffers, *([] if added is None else [added])]
    plan = Lowered(given, [[op]], {Value(out.shape, torch.bfloat16): op.output})
    program = Program(plan, PackedWeights(), torch.bfloat16)
    result = torch.empty(out.shape, dtype=out.dtype(torch.bfloat16))
    for piece in program._pieces:
        torch.ops.hrnet_fast.run_program(
            piece.steps,
            torch.empty(0, dtype=torch.uint8),
            [
                *program._blobs,
                *sources,
                *([] if residual is None else [residual]),
                result,
            ],
        )
    return result


def whole(shape, least, most, seed, dtype=torch.float32):
    return torch.randint(least, most + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("wide", "wide_output"), list(product([False, True], repeat=2)))
@pytest.mark.parametrize(("shape", "algorithm"), CASES, ids=str)
def test_every_algorithm(algorithm, shape, wide, wide_output):
    n, c_in, c_out, h, w, kernel, stride = shape
    # small whole numbers: all sums are exact in float32, and those of transformed inputs and weights in bfloat16 too
    x = whole((n, c_in, h, w), -3, 3, 1, torch.float32 if wide else torch.bfloat16)
    weight, bias = 4 * whole((c_out, c_in, kernel, kernel), -1, 1, 2), whole((c_out,), -9, 9, 3)
    dtype = torch.float32 if wide_output else torch.bfloat16
    size = (n, c_out, -(-h // stride), -(-w // stride))
    for residual, relu_from in ((None, c_out), (whole(size, -40, 40, 4, dtype), 0), (None, c_out // 2)):
        y = convolve(algorithm, [x], weight, bias, stride, residual, relu_from, wide_output)
        reference = F.conv2d(x.double(), weight.double(), bias.double(), stride, kernel // 2)
        reference = reference if residual is None else reference + residual.double()
        reference[:, relu_from:] = F.relu(reference[:, relu_from:])
        assert y.dtype == dtype
        tolerance = TOLERANCE[algorithm]
        if tolerance == 0:
            assert torch.equal(y, reference.to(dtype))
        else:
            assert relative_error(y, reference) < tolerance + (0 if wide_output else 2.5e-3)


@pytest.mark.parametrize("algorithm", [DIRECT, pytest.param(DIRECT + PAIRS, marks=needs_pairs)])
def test_sources_of_two_dtypes(algorithm):
    a, b = whole((1, 6, 9, 11), -3, 3, 1), whole((1, 5, 9, 11), -3, 3, 2, torch.bfloat16)
    weight, bias = whole((8, 11, 3, 3), -4, 4, 3), whole((8,), -9, 9, 4)
    y = convolve(algorithm, [a, b], weight, bias, 2, None, 8, True)
    reference = F.conv2d(torch.cat([a, b.float()], 1).double(), weight.double(), bias.double(), 2, 1)
    assert torch.equal(y, reference.float())


@needs_pairs
def test_bfloat16_products_are_of_numbers_rounded_to_nearest():
    """1 + 2^-8 lies between 1 and 1 + 2^-7: it becomes 1, the even one; 1 + 3 * 2^-8 becomes 1 + 2^-6."""
    x = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8]).view(1, 2, 1, 1)
    y = convolve(DIRECT + PAIRS, [x], torch.ones(1, 2, 1, 1), torch.zeros(1), 1, None, 1, True)
    assert y.item() == 1 + (1 + 2**-6)


def lowered(module, shape, pairs=False):
    graph = record(module.eval(), (torch.empty(shape),), constants=Constants())
    return steps.lower(graph, steps_of(graph), True, pairs)


class Blocks(nn.Module):
    """Residual blocks; with ``again``, the first image is read once more behind the block that adds it."""

    def __init__(self, again):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6))
        self.again = again

    def forward(self, image):
        x = first = F.relu(self.convs[0](image))
        for a, b in ((1, 2), (3, 4)):
            x = F.relu(self.convs[b](F.relu(self.convs[a](x))) + x)
        return F.relu(self.convs[5](first if self.again else x) + x)


@pytest.mark.parametrize("again", [False, True])
def test_sums_are_written_over_what_they_add(again):
    torch.manual_seed(0)
    module, x = Blocks(again), torch.randn(1, 8, 16, 16)
    plan = lowered(module, (1, 8, 16, 16))
    sums = [op for step in plan.steps for op in step if op.residual is not None]
    assert [op.residual.buffer is op.output.buffer for op in sums] == [not again, True, False]  # the last is the result
    program = Program(plan, PackedWeights(), torch.float32)
    for _ in range(2):  # what the first call wrote over must not matter to the second
        (y,) = program.run([x], torch.empty(program.arena_bytes, dtype=torch.uint8))
        with torch.no_grad():
            assert relative_error(y, module.double()(x.double())) < 1e-5
        module.float()


@pytest.fixture
def no_tiles(monkeypatch):
    """Pairs of channels, where the CPU would have something faster."""
    monkeypatch.setattr(planned, "form", lambda dtype: "pairs")


def in_bfloat16(model, x):
    """By the kernels, whatever would be faster."""
    fast = hf.optimize(model, x, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
    assert fast.engine == "planned"
    return fast


@needs_pairs
def test_what_is_added_to_stays_in_float32(no_tiles, monkeypatch):
    model = randomize(hf.create_model(SMALL, task="segmentation")).eval()
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    fast = in_bfloat16(model, x)
    with torch.no_grad():
        reference = copy.deepcopy(model).double()(x.double())
        error = relative_error(fast(x), reference)
        monkeypatch.setattr(steps, "widen", lambda operations: None)
        narrow = relative_error(in_bfloat16(model, x)(x), reference)
    assert error < 0.8 * narrow, (error, narrow)


@needs_pairs
def test_results_of_float32_sums_are_copied_from_the_arena(no_tiles):
    """In the network's dtype: no second image of the result's size in float32, nothing that a later call writes to."""
    model = randomize(hf.create_model(SMALL, task="features")).eval()
    a, b = torch.randn(2, 1, 3, 64, 96, generator=torch.Generator().manual_seed(6))
    fast = in_bfloat16(model, a)
    first = fast(a)
    kept = [y.clone() for y in first]
    fast(b)
    assert all(torch.equal(y, k) for y, k in zip(first, kept, strict=True))
    with torch.no_grad():
        reference = hf.unpatch(model).double()(a.double())
    assert max(relative_error(y, r) for y, r in zip(first, reference, strict=True)) < 3e-2
    (prepared,) = fast._shapes.values()
    outputs = prepared.run._program._plan.outputs
    assert all(o.buffer.wide and not o.buffer.external for o in outputs.values())


@pytest.mark.parametrize("pairs", [0, pytest.param(PAIRS, marks=needs_pairs)])
@pytest.mark.parametrize("shape", [s[:5] for s in SHAPES if s[-2:] == (3, 1)], ids=str)
def test_tiles_of_2x2_read_the_weights_of_4x4_to_the_same_bits(shape, pairs):
    n, c_in, c_out, h, w = shape
    dtype = torch.bfloat16 if pairs else torch.float32
    graph = record(nn.Conv2d(c_in, c_out, 3, padding=1).eval(), (torch.empty(n, c_in, h, w),), constants=Constants())
    weights, found = PackedWeights(slab=0), steps_of(graph)
    x = torch.randn(n, c_in, h, w, generator=torch.Generator().manual_seed(1)).to(dtype)

    def program(algorithm):
        plan = steps.lower(graph, found, True, pairs > 0)
        ((op,),) = plan.steps
        op.algorithm = algorithm + pairs
        return Program(plan, weights, dtype)

    def result(of):
        return of.run([x], torch.empty(of.arena_bytes, dtype=torch.uint8))[0]

    small = program(WINOGRAD2)
    expected, room = result(small), weights.total_bytes()
    assert not weights.outgrown()
    large = program(WINOGRAD4)
    assert torch.equal(result(small), expected)  # its own are still there
    (outgrown,) = weights.outgrown()
    assert small.reads(outgrown) and not large.reads(outgrown)
    small.encode()
    assert not small.reads(outgrown) and not weights.outgrown()
    del outgrown
    assert torch.equal(result(small), expected) and torch.equal(result(program(WINOGRAD2)), expected)
    assert weights.total_bytes() - 4 * c_out == (room - 4 * c_out) * 36 // 16


def test_the_algorithm_follows_the_shape():
    assert steps.algorithm((1, 48, 128, 128), 48) == WINOGRAD4
    assert steps.algorithm((1, 384, 7, 7), 384) == WINOGRAD2  # of 4x4 tiles half would lie outside
    assert steps.algorithm((1, 64, 128, 128), 3) == DIRECT  # transforms would cost more than they save
    assert steps.algorithm((1, 48, 128, 128), 48, PAIRS) == WINOGRAD4 + PAIRS
