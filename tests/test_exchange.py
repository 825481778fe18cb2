"""The operator against the float64 truth: every backend, instruction set, layout, mode and dtype."""

import pytest
import torch
import torch.nn.functional as F
from exchange_cases import CASES, MODES, make, truth

import hrnet_fast as hf
from hrnet_fast import library
from hrnet_fast.call import output_memory_format
from hrnet_fast.tolerances import OPERATOR as TOLERANCE
from hrnet_fast.tolerances import relative_error

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


def test_zero_batch(way):
    out = hf.exchange([torch.randn(0, 4, 8, 8), torch.randn(0, 6, 4, 4)], [None, torch.randn(4, 6)], backend=way)
    assert out.shape == (0, 4, 8, 8)


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
