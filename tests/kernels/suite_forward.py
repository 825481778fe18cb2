"""The forward kernels in Triton's interpreter against the float64 reference, over the shared case list."""

import pytest
import torch
import torch.nn.functional as F

from hrnet_fast.kernels import configurations
from hrnet_fast.ops.backends import triton
from hrnet_fast.ops.exchange.api import _validate
from hrnet_fast.tolerances import OPERATOR, relative_error
from support.exchange_cases import CASES, MODES, make, truth
from support.exhaustive import chosen

HALF = (torch.float16, torch.bfloat16)
BY_NAME = {case.name: case for case in CASES}
PRODUCTS = ("projected-odd", "projected-no-relu", "two-bases", "single-product", "projected-36")


def interpreted(inputs, weights=None, bias=None, *, size=None, mode="bilinear", align_corners=False,
                activation="relu", projection=None, tf32=False):  # fmt: skip
    call = _validate(inputs, weights, bias, size, mode, align_corners, activation, projection)
    return triton.compute(call._replace(allow_tf32=tf32), interpreted=True)


def _large_tiles(monkeypatch):
    """Larger ones than those of GPUs: the interpreter takes a time for every tile, whatever its size."""
    for key in configurations.UP_SUM_RELU:
        tile = (16, 32, 64, 2) if key[0] else (8, 64, 16, 2)
        monkeypatch.setitem(configurations.UP_SUM_RELU, key, configurations.Tile(*tile, 4, None))


def check(case, mode, dtype, layout, tf32=False):
    mode, align_corners = MODES[mode]
    inputs, weights, keywords = make(case, dtype, layout)
    keywords.update(mode=mode, align_corners=align_corners)
    ref = truth(inputs, weights, **keywords)
    out = interpreted(inputs, weights, **keywords, tf32=tf32)
    assert out.stride() == ref.stride()
    assert relative_error(out, ref) < OPERATOR[dtype]


@pytest.mark.parametrize("mode", chosen(MODES, lambda _, name: name == "bilinear"))
@pytest.mark.parametrize("case", [c for c in CASES if not c.name.startswith("head")], ids=lambda case: case.name)
def test_every_case_and_mode(case, mode, monkeypatch):
    _large_tiles(monkeypatch)
    for layout in case.layouts:
        check(case, mode, torch.float32, layout)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["odd", "top-down", "one-way-only"])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_half_precision(name, dtype, layout, monkeypatch):
    if name == "odd":  # the others with the tiles of GPUs
        _large_tiles(monkeypatch)
    check(BY_NAME[name], "bilinear", dtype, layout)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_inside(name):
    """The kernel with products inside serves float32 only as TF32, which the interpreter does not round."""
    check(
        BY_NAME[name],
        "align_corners" if name == "projected-odd" else "bilinear",
        torch.float32,
        "channels_last",
        tf32=True,
    )


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_products_inside_in_half_precision(dtype):
    for name in ("projected-odd", "two-bases"):
        check(BY_NAME[name], "nearest", dtype, "channels_last")


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_several_outputs_in_one_launch(layout, monkeypatch):
    """An exchange unit: outputs of different sizes and channels, with and without bias, an empty one among them."""
    _large_tiles(monkeypatch)
    streams = [
        torch.randn(2, c, h, w).contiguous(memory_format=layout) for c, h, w in ((18, 21, 30), (36, 11, 15), (20, 6, 8))
    ]
    calls = []
    for i, x in enumerate(streams):
        weights = [None, *[torch.randn(x.shape[1], z.shape[1]) / 6 for z in streams[i + 1 :]]]
        bias = torch.randn(x.shape[1]) if i != 1 else None
        calls.append(_validate(streams[i:], weights, bias, tuple(x.shape[2:]), "bilinear", False, "relu", None))
    assert triton.why_not_together(calls) is None
    for call, out in zip(calls, triton.compute_together(calls), strict=True):
        ref = truth(call.inputs, call.weights, call.bias)
        assert out.stride() == ref.stride()
        assert relative_error(out, ref) < OPERATOR[torch.float32]
    assert triton.why_not_together([calls[0], calls[1]._replace(relu=False)]) == "the calls differ in their settings"


def test_source_pixels_are_torchs():
    """The interpolation weights themselves, for sizes where rounding decides."""
    for mode, corners in MODES.values():
        for small, large in [(3, 7), (13, 100), (100, 333), (27, 107), (7, 98), (41, 45)]:
            x = torch.arange(float(small)).reshape(1, 1, 1, small).contiguous()
            out = interpreted([x], size=(1, large), mode=mode, align_corners=corners, activation=None)
            ref = F.interpolate(x, (1, large), mode=mode, align_corners=corners if mode == "bilinear" else None)
            torch.testing.assert_close(out, ref, rtol=1e-6, atol=1e-6 * small)


def test_nan_and_inf():
    """NaN passes the ReLU; an Inf reaches only pixels that PyTorch lets it reach, with and without products inside."""
    base, low = (torch.randn(1, 20, n, n).contiguous(memory_format=torch.channels_last) for n in (16, 8))
    base[0, 3, 2, 5] = float("nan")
    low[0, 7, 4, 4], low[0, 9, 1, 6] = float("inf"), -float("inf")
    eager = F.relu(base + F.interpolate(low, (16, 16), mode="bilinear", align_corners=False))
    out = interpreted([base, low])
    assert out[0, 3, 2, 5].isnan()
    for test in (torch.isnan, torch.isposinf):
        assert not (test(out) & ~(test(eager) | eager.isnan())).any()
    finite = eager.isfinite()
    torch.testing.assert_close(out[finite], eager[finite], rtol=1e-5, atol=1e-5)


def test_empty_batch():
    assert interpreted([torch.randn(0, 4, 8, 8), torch.randn(0, 6, 4, 4)], [None, torch.randn(4, 6)]).shape[0] == 0
