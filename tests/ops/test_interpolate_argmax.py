"""interpolate_argmax against F.interpolate and argmax: sizes, modes, dtypes, layouts, ties, NaN, errors, schema."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

import hrnet_fast as hf
from hrnet_fast.ops import backends, interpolate_argmax, library

CPU = pytest.mark.skipif(library.extension_error is not None, reason=str(library.extension_error))
CAPABILITIES = [] if library.extension_error else torch.ops.hrnet_fast.cpu_capabilities().split()
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
CORNERS = {"half_pixel": False, "align_corners": True}
# scores [N, classes, h, w] and the size of the result: enlarged, reduced, one way only, the same, single pixels
CASES = {
    "x4": ((1, 19, 16, 32), (64, 128)),
    "odd": ((2, 19, 13, 17), (51, 68)),
    "hardly larger": ((1, 5, 41, 67), (43, 68)),
    "wide": ((1, 3, 2, 77), (4, 300)),
    "many classes": ((1, 150, 9, 33), (31, 45)),
    "more than uint8": ((1, 300, 5, 6), (9, 11)),
    "two classes": ((3, 2, 7, 9), (28, 36)),
    "one class": ((1, 1, 7, 9), (28, 36)),
    "one pixel": ((1, 19, 1, 1), (5, 7)),
    "to one pixel": ((1, 19, 5, 7), (1, 1)),
    "reduced": ((1, 19, 40, 77), (13, 19)),
    "higher and narrower": ((1, 19, 9, 40), (30, 13)),
    "same size": ((2, 19, 15, 33), (15, 33)),
    "same width": ((1, 19, 15, 33), (60, 33)),
    "no image": ((0, 19, 4, 4), (8, 8)),
}


def scores(shape, dtype=torch.float32, layout="channels_last", whole=False, seed=0):
    """Random scores; ``whole``: small integers, of which many are equal and which interpolation makes equal again."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, shape, generator=generator) if whole else torch.randn(shape, generator=generator)
    return x.to(dtype).contiguous(memory_format=LAYOUTS[layout])


def expected(x, size, align_corners=False):
    """[N, H, W] by torch, in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.interpolate(wide, size, mode="bilinear", align_corners=align_corners).argmax(1)


def check(found, x, size, align_corners=False):
    """The very class of torch, but where the best two are closer than rounding can tell."""
    truth = F.interpolate(x.double(), size, mode="bilinear", align_corners=align_corners)
    wrong = found.long() != expected(x, size, align_corners)
    assert found.shape == (x.shape[0], *size)
    if wrong.any():
        loss = truth.amax(1) - truth.gather(1, found.long().unsqueeze(1)).squeeze(1)
        limit = 1e-14 if x.dtype == torch.float64 else 2e-6
        assert loss[wrong].max() <= limit * truth.abs().max()
        assert wrong.double().mean() < 0.02


@CPU
@pytest.mark.parametrize("corners", CORNERS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_against_torch(capability, case, corners, monkeypatch):
    monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", capability)
    shape, size = CASES[case]
    for layout in LAYOUTS:
        for dtype in DTYPES:
            x = scores(shape, dtype, layout)
            found = hf.interpolate_argmax(x, size, align_corners=CORNERS[corners], backend="cpu")
            assert found.dtype == torch.int64
            check(found, x, size, CORNERS[corners])


@CPU
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_first_of_equal_scores_wins(capability, monkeypatch):
    """Scores of whole numbers, enlarged by powers of two: nothing is rounded, and ties are everywhere."""
    monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", capability)
    for dtype in DTYPES:
        for layout in LAYOUTS:
            for factor in (1, 2, 4, 8):
                x = scores((2, 19, 11, 35), dtype, layout, whole=True)
                size = (11 * factor, 35 * factor)
                full = F.interpolate(x.double(), size, mode="bilinear", align_corners=False)
                assert ((full == full.amax(1, keepdim=True)).sum(1) > 1).double().mean() > 0.05
                assert torch.equal(hf.interpolate_argmax(x, size), expected(x, size))


@CPU
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_equal_channels_stay_equal(capability, monkeypatch):
    """Rounding is the same for all classes: a copy of a channel never wins over an earlier one."""
    monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", capability)
    for size in ((51, 68), (7, 9), (13, 17)):
        x = scores((1, 6, 13, 17)).repeat(1, 3, 1, 1)
        assert hf.interpolate_argmax(x, size).max() < 6


@CPU
@pytest.mark.parametrize("size", [(44, 140), (11, 35), (8, 20), (44, 35)], ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_nan_and_infinity_as_in_torch(capability, size, monkeypatch):
    """NaN is the largest and the first one wins; an Inf becomes NaN where torch multiplies it by 0."""
    monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", capability)
    for layout in LAYOUTS:
        for corners in CORNERS.values():
            x = scores((1, 19, 11, 35), layout=layout, whole=True)
            x[0, 7, 2, 3] = x[0, 12, 2, 3] = x[0, 3, 5, 20] = float("nan")
            x[0, 9, 8, 30] = x[0, 4, 8, 30] = x[0, 2, 10, 34] = float("inf")
            x[0, :, 0, 0] = x[0, 5, 4, 9] = float("-inf")
            found, truth = hf.interpolate_argmax(x, size, align_corners=corners), expected(x, size, corners)
            if size == (11, 35):  # the same size: nothing is interpolated
                truth = x.argmax(1)
            value = F.interpolate(x, size, mode="bilinear", align_corners=corners) if size != (11, 35) else x
            special = ~value.isfinite().all(1)
            assert special.any() and torch.equal(found[special], truth[special])
            assert (found != truth).double().mean() < 0.02


@pytest.mark.parametrize("dtype", interpolate_argmax.LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_dtypes_of_the_result(dtype, backend):
    x = scores((2, 256, 6, 7), whole=True)
    found = hf.interpolate_argmax(x, (24, 28), dtype=dtype, backend=backend)
    assert found.dtype == dtype and found.is_contiguous()
    assert torch.equal(found.long(), expected(x, (24, 28)))


@CPU
def test_any_strides():
    base = scores((2, 40, 24, 36), whole=True)
    views = [
        base[:, 3:22, ::2, 1::3],
        base.permute(0, 1, 3, 2)[:, :19],
        base[:, :1].expand(2, 19, 24, 36),
        base[:, ::2].contiguous(memory_format=torch.channels_last)[:, 1:],
    ]
    for x in views:
        size = (4 * x.shape[2], 4 * x.shape[3])
        assert torch.equal(hf.interpolate_argmax(x, size), expected(x, size))


@CPU
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads):
    x, before = scores((3, 19, 13, 17)), torch.get_num_threads()
    first = hf.interpolate_argmax(x, (52, 68))
    try:
        torch.set_num_threads(threads)
        assert torch.equal(hf.interpolate_argmax(x, (52, 68)), first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (([1.0], (4, 4)), {}, TypeError, "scores: expected a tensor, got list"),
        ((torch.ones(1, 3, 4, 4, dtype=torch.int32), (8, 8)), {}, TypeError, "scores: expected one of .*int32"),
        ((torch.ones(3, 4, 4), (8, 8)), {}, ValueError, r"scores: expected \[N, classes, h, w\].*\[3, 4, 4\]"),
        ((torch.ones(1, 0, 4, 4), (8, 8)), {}, ValueError, "none of them empty"),
        ((torch.ones(1, 3, 4, 0), (8, 8)), {}, ValueError, "none of them empty"),
        ((torch.ones(1, 3, 4, 4), 8), {}, ValueError, r"size: expected \(height, width\), got 8"),
        ((torch.ones(1, 3, 4, 4), (0, 8)), {}, ValueError, r"at least 1 pixel each way, got \(0, 8\)"),
        ((torch.ones(1, 3, 4, 4), (8, 8)), {"dtype": torch.int8}, TypeError, "dtype: expected one of .*int8"),
        ((torch.ones(1, 257, 4, 4), (8, 8)), {"dtype": torch.uint8}, ValueError, "can name 256 classes, .* 257"),
        ((torch.ones(1, 3, 4, 4), (8, 8)), {"backend": "magic"}, ValueError, "backend: expected 'auto' or one of"),
        ((torch.ones(1, 3, 4, 4), (8, 8)), {"backend": "triton"}, RuntimeError, "'triton' cannot serve this call: it "),
    ],
)
def test_wrong_arguments(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        hf.interpolate_argmax(*arguments, **keywords)


@CPU
@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((1, 3, 4), (8, 8, False, torch.int64)),
        ((1, 3, 4, 4), (0, 8, False, torch.int64)),
        ((1, 3, 4, 4), (8, 8, False, torch.int16)),
        ((1, 300, 4, 4), (8, 8, False, torch.uint8)),
    ],
)
def test_the_operator_checks_what_the_kernel_relies_on(shape, settings):
    with pytest.raises(RuntimeError, match="interpolate_argmax"):
        torch.ops.hrnet_fast.interpolate_argmax(torch.ones(shape), *settings)


def test_the_environment_names_a_backend(monkeypatch):
    ran = []
    monkeypatch.setattr(backends.reference, "interpolate_argmax", lambda *a: ran.append(1))
    monkeypatch.setenv("HRNET_FAST_BACKEND", "reference")
    hf.interpolate_argmax(torch.ones(1, 3, 4, 4), (8, 8))
    assert ran


def test_one_schema():
    """The compiled extension and the fallback without it define the very same operator."""
    op = torch.ops.hrnet_fast.interpolate_argmax.default
    assert str(op._schema) == f"hrnet_fast::interpolate_argmax{interpolate_argmax.SCHEMA}"


@pytest.mark.parametrize("dtype", interpolate_argmax.LABEL_DTYPES, ids=str)
def test_opcheck(dtype):
    x = scores((2, 5, 6, 7), whole=True)
    torch.library.opcheck(torch.ops.hrnet_fast.interpolate_argmax.default, (x, 12, 21, False, dtype))
    torch.library.opcheck(torch.ops.hrnet_fast.interpolate_argmax.default, (x.requires_grad_(), 12, 21, True, dtype))


def test_has_no_derivative():
    x = scores((1, 5, 6, 7)).requires_grad_()
    assert not hf.interpolate_argmax(x, (12, 14)).requires_grad


def test_compiles_whole_with_dynamic_sizes():
    compiled = torch.compile(
        lambda x, h, w: hf.interpolate_argmax(x * 2, (h, w), dtype=torch.uint8) + 1, fullgraph=True, backend="aot_eager"
    )
    for h, w in ((12, 14), (24, 28), (30, 20)):
        x = scores((1, 5, 6, 7), whole=True)
        assert torch.equal(compiled(x, h, w), hf.interpolate_argmax(x * 2, (h, w), dtype=torch.uint8) + 1)


def test_fake_and_meta_tensors():
    with FakeTensorMode():
        out = hf.interpolate_argmax(torch.empty(2, 5, 6, 7), (12, 14), dtype=torch.int32)
    assert (out.shape, out.dtype) == ((2, 12, 14), torch.int32)
    assert hf.interpolate_argmax(torch.empty(1, 5, 6, 7, device="meta"), (12, 14)).device.type == "meta"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_records_standard_operators():
    x = scores((1, 5, 6, 7), whole=True)
    traced = torch.jit.trace(lambda x: hf.interpolate_argmax(x, (12, 14)), x)
    assert "hrnet_fast::" not in str(traced.graph)
    assert torch.equal(traced(x), hf.interpolate_argmax(x, (12, 14)))


@pytest.mark.gpu
@pytest.mark.parametrize("corners", CORNERS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_gpu(case, corners, dtype):
    shape, size = CASES[case]
    for layout in LAYOUTS:
        x = scores(shape, dtype, layout)
        check(hf.interpolate_argmax(x.cuda(), size, align_corners=CORNERS[corners]).cpu(), x, size, CORNERS[corners])
