"""The operator against the float64 truth: every backend, instruction set, layout, mode and dtype."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import hrnet_fast as hf
from hrnet_fast.ops import library
from hrnet_fast.ops.exchange.call import output_memory_format
from hrnet_fast.tolerances import OPERATOR as TOLERANCE
from hrnet_fast.tolerances import relative_error
from support.exchange_cases import CASES, MODES, make, truth

LEVELS = [] if library.extension_error else torch.ops.hrnet_fast.cpu_capabilities().split()
WAYS = [*[f"cpu:{level}" for level in LEVELS], "reference"]
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """A backend, and for the CPU's the instruction set."""
    backend, _, level = request.param.partition(":")
    if level:
        monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", level)
    return backend


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=name_of)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_float64(way, case, mode, dtype):
    mode, align_corners = MODES[mode]
    for layout in case.layouts:
        inputs, weights, keywords = make(case, dtype, layout)
        keywords.update(mode=mode, align_corners=align_corners)
        ref = truth(inputs, weights, **keywords)
        out = hf.exchange(inputs, weights, **keywords, backend=way)
        assert out.dtype == dtype
        assert out.shape == ref.shape
        assert out.stride() == ref.stride(), layout
        assert relative_error(out, ref) < TOLERANCE[dtype], layout


def test_every_size_up_to_twelve(way):
    """Borders and the tails of vectors: all pairs of small sizes, both layouts."""
    for small in (1, 2, 3, 5, 8, 11):
        for large in range(small, 36, 3):
            for mode, align_corners in MODES.values():
                x, base = torch.randn(1, 3, 2, small), torch.randn(1, 4, 5, large)
                w = torch.randn(4, 3)
                for memory_format in (torch.channels_last, torch.contiguous_format):
                    inputs = [base.contiguous(memory_format=memory_format), x.contiguous(memory_format=memory_format)]
                    out = hf.exchange(inputs, [None, w], mode=mode, align_corners=align_corners, backend=way)
                    ref = truth(inputs, [None, w], mode=mode, align_corners=align_corners)
                    assert relative_error(out, ref) < TOLERANCE[torch.float32], (small, large, mode, memory_format)


@pytest.mark.parametrize("mode", MODES)
def test_source_pixels_are_torchs(way, mode):
    """One-hot rows: the interpolation weights themselves, bit for bit in float32, for sizes where rounding decides."""
    mode, align_corners = MODES[mode]
    for small, large in [(3, 7), (13, 100), (37, 111), (100, 333), (27, 107), (160, 517), (7, 98), (41, 45)]:
        x = torch.arange(float(small)).reshape(1, 1, 1, small).contiguous()
        out = hf.exchange([x], size=(1, large), mode=mode, align_corners=align_corners, activation=None, backend=way)
        corners = align_corners if mode == "bilinear" else None
        ref = F.interpolate(x, (1, large), mode=mode, align_corners=corners)
        torch.testing.assert_close(out, ref, rtol=1e-6, atol=1e-6 * small)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_strided_inputs(way, layout):
    """Sliced, transposed, expanded and flipped-layout inputs and weights give what their contiguous copies give."""
    inputs, weights, keywords = make(BY_NAME["stage4"], torch.float32, layout)
    ref = truth(inputs, weights, **keywords)
    big = torch.zeros(1, 40, 40, 60).contiguous(memory_format=torch.channels_last)
    big[:, 3:21, 5:37, 7:55] = inputs[0]
    sliced = [big[:, 3:21, 5:37, 7:55], inputs[1].transpose(2, 3).contiguous().transpose(2, 3),
              inputs[2].contiguous(), inputs[3].contiguous(memory_format=torch.channels_last)]  # fmt: skip
    weights = [None, weights[1].flatten(1).t().contiguous().t(), weights[2].repeat(1, 2, 1, 1)[:, :72], weights[3]]
    out = hf.exchange(sliced, weights, **keywords, backend=way)
    assert relative_error(out, ref) < TOLERANCE[torch.float32]
    assert out.is_contiguous(memory_format=output_memory_format(sliced, 32, 48))

    row = torch.randn(1, 4, 1, 1, dtype=torch.float32)
    expanded = row.expand(2, 4, 6, 10)
    other = torch.randn(2, 4, 3, 5)
    assert relative_error(hf.exchange([expanded, other], backend=way), truth([expanded, other])) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("name", ["stage4-48", "head-projected", "odd", "stage4-batch3"])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_same_bits_for_any_number_of_threads(way, name, layout, dtype):
    inputs, weights, keywords = make(BY_NAME[name], dtype, layout)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7, 16):
            torch.set_num_threads(count)
            results.append(hf.exchange(inputs, weights, **keywords, backend=way))
    finally:
        torch.set_num_threads(threads)
    if way == "reference":  # torch's own convolution makes no such promise
        return
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_nan_and_inf(way, layout):
    """NaN passes the ReLU; an Inf reaches only pixels that PyTorch lets it reach."""
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    base = torch.randn(1, 20, 16, 16).contiguous(memory_format=memory_format)
    low = torch.randn(1, 20, 8, 8).contiguous(memory_format=memory_format)
    base[0, 3, 2, 5] = float("nan")
    low[0, 7, 4, 4] = float("inf")
    low[0, 9, 1, 6] = -float("inf")
    out = hf.exchange([base, low], backend=way)
    eager = F.relu(base + F.interpolate(low, (16, 16), mode="bilinear", align_corners=False))
    assert out[0, 3, 2, 5].isnan()
    for test in (torch.isnan, torch.isposinf):
        assert not (test(out) & ~(test(eager) | eager.isnan())).any()
    finite = eager.isfinite()
    torch.testing.assert_close(out[finite], eager[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_nan_reaches_what_has_a_weight_for_it(way, mode):
    """As the README says: PyTorch's 0 * NaN is NaN, the kernels may leave out pixels whose weight is 0."""
    mode, align_corners = MODES[mode]
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        h, w, more_h, more_w = (int(n) for n in torch.randint(1, 9, (4,), generator=generator))
        size = (h + more_h - 1, w + more_w - 1)
        low, where = torch.randn(1, 2, h, w, generator=generator), torch.zeros(1, 2, h, w)
        where.view(-1)[torch.randint(0, where.numel(), (1,), generator=generator)] = 1
        corners = align_corners if mode == "bilinear" else None
        reached = F.interpolate(where.double(), size, mode=mode, align_corners=corners) > 1e-6
        with_zero = F.interpolate(low.masked_fill(where > 0, 0), size, mode=mode, align_corners=corners)
        inputs = [torch.zeros(1, 2, *size), low.masked_fill(where > 0, float("nan"))]
        out = hf.exchange(inputs, mode=mode, align_corners=align_corners, activation=None, backend=way)
        in_torch = F.interpolate(inputs[1], size, mode=mode, align_corners=corners).isnan()
        assert not (reached & ~out.isnan()).any() and not (out.isnan() & ~in_torch).any(), (size, h, w)
        torch.testing.assert_close(out[~out.isnan()], with_zero[~out.isnan()])


def plain(inputs, weights, bias, projection, relu):
    """In products that torch also makes of nothing."""

    def times(weight, x):
        return torch.einsum("oc,nchw->nohw", weight, x)

    y = bias[:, None, None]
    for x, weight in zip(inputs, weights, strict=True):
        z = x if weight is None else times(weight, x)
        y = y + (F.interpolate(z, (8, 6), mode="bilinear") if z.numel() else z.new_zeros((*z.shape[:2], 8, 6)))
    y = y.relu() if relu else y
    return y if projection is None else times(projection[0], y) + projection[1][:, None, None]


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_every_dimension_of_zero(way, layout, relu):
    """An empty sum is the bias; results and gradients are those of torch, and no memory is read that is not theirs."""
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    for batch, channels, low, out, rows, identity in itertools.product(
        (0, 2), (0, 3), (0, 3), (0, 4), (None, 0, 5), (True, False)
    ):
        inputs = [torch.randn(batch, c, *size).contiguous(memory_format=memory_format)
                  for c, size in ((channels, (8, 6)), (low, (4, 3)), (out, (4, 3)))]  # fmt: skip
        weights = [torch.randn(out, channels), torch.randn(out, low), None]
        inputs, weights = (inputs, weights) if identity else (inputs[:2], weights[:2])
        projection = None if rows is None else (torch.randn(rows, out), torch.randn(rows))
        bias = torch.randn(out)
        leaves = [t.requires_grad_() for t in (*inputs, *weights, bias, *(projection or ())) if t is not None]
        expected = plain(inputs, weights, bias, projection, relu)
        upstream = torch.randn_like(expected)
        # torch has no path to what it never read, where ours has a gradient of zeros
        gradients = torch.autograd.grad(expected, leaves, upstream, allow_unused=True, materialize_grads=True)
        settings = {"projection": projection, "activation": "relu" if relu else None, "backend": way, "size": (8, 6)}
        with torch.no_grad():
            alone = hf.exchange(inputs, weights, bias, **settings)
        found = hf.exchange(inputs, weights, bias, **settings)
        assert found.stride() == alone.stride()
        for y in (alone, found):
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5, check_stride=False)
        for a, b in zip(torch.autograd.grad(found, leaves, upstream), gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, check_stride=False)


def test_no_summands_at_all(way):
    bias = torch.tensor([-1.0, 2.0, 3.0, 0.0])
    nothing = [torch.zeros(1, 0, 8, 8)], [torch.zeros(4, 0)]
    out = hf.exchange(*nothing, bias, backend=way)
    assert torch.equal(out, bias.relu()[:, None, None].expand(1, 4, 8, 8))
    assert not hf.exchange(*nothing, backend=way).any()
    out = hf.exchange(*nothing, bias, projection=torch.ones(2, 4), backend=way)
    assert torch.equal(out, torch.full((1, 2, 8, 8), 5.0))
    empty = [torch.zeros(1, 0, 8, 8)], [torch.zeros(0, 0)]
    out = hf.exchange(*empty, projection=(torch.zeros(2, 0), bias[:2]), backend=way)
    assert torch.equal(out, bias[:2, None, None].expand(1, 2, 8, 8))


@pytest.mark.parametrize("size", [(0, 8), (8, 0)])
def test_no_pixels_are_an_error_as_in_interpolate(way, size):
    with pytest.raises(ValueError, match="every height and width must be at least 1"):
        hf.exchange([torch.zeros(1, 4, *size)], backend=way)


def test_result_never_aliases(way):
    x = torch.randn(1, 3, 4, 5)
    out = hf.exchange([x], activation=None, backend=way)
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()


def test_rounds_once(way):
    """Half precision: the sum is rounded at the store only, where eager rounds after every addition."""
    inputs = [torch.full((1, 16, 4, 4), 256.0, dtype=torch.bfloat16)] + [
        torch.full((1, 16, 4, 4), 0.75, dtype=torch.bfloat16) for _ in range(4)]  # fmt: skip
    out = hf.exchange(inputs, backend=way)
    assert torch.equal(out, torch.full_like(out, 259.0).to(torch.bfloat16))
