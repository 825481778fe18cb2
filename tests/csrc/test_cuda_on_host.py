"""The CUDA kernels on the host: the same source, its index arithmetic, and its results against float64."""

import pytest
import torch
import torch.nn.functional as F

from hrnet_fast.ops.backends import cuda, gpu
from hrnet_fast.ops.exchange import autograd
from hrnet_fast.ops.exchange.api import _validate
from hrnet_fast.ops.exchange.call import output_memory_format
from hrnet_fast.tolerances import OPERATOR, OPERATOR_TF32, relative_error
from support.cuda_host import Host
from support.exchange_cases import CASES, MODES, make, truth

SIZES = [
    (1, 1),
    (1, 7),
    (2, 3),
    (3, 8),
    (4, 8),
    (8, 8),
    (7, 8),
    (5, 33),
    (16, 64),
    (17, 33),
    (23, 45),
    (64, 65),
    (31, 256),
]
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return Host(tmp_path_factory.mktemp("host"))


def compute(host, call):
    (y,) = host.exchange_sums(*cuda.launch_arguments([call]))
    return gpu.project(y, call, output_memory_format(call.inputs, call.height, call.width))


def check(host, case, mode, dtype, layout, tf32=False):
    mode, align_corners = MODES[mode]
    inputs, weights, keywords = make(case, dtype, layout)
    ref = truth(inputs, weights, **keywords, mode=mode, align_corners=align_corners)
    arguments = [keywords[name] for name in ("bias", "size")]
    call = _validate(
        inputs, weights, *arguments, mode, align_corners, keywords["activation"], keywords.get("projection")
    )
    out = compute(host, call._replace(allow_tf32=tf32))
    assert out.stride() == ref.stride()
    assert relative_error(out, ref) < (OPERATOR_TF32 if tf32 else OPERATOR[dtype])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_and_mode(host, case, mode):
    for layout in case.layouts:
        check(host, case, mode, torch.float32, layout)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_half_precision_through_matrix_instructions(host, case, dtype):
    check(host, case, "align_corners" if case.batch > 1 else "bilinear", dtype, "channels_last")


@pytest.mark.parametrize("name", ["stage4", "stage4-48", "odd", "two-bases", "eight"])
def test_tf32(host, name):
    check(host, BY_NAME[name], "bilinear", torch.float32, "channels_last", tf32=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_an_exchange_unit_in_one_launch(host, layout, dtype):
    """Four outputs that load 2, 4, 8 and 8 channels at once, each with inputs of its own size as well."""
    streams = [torch.randn(2, 18 << k, 21 >> k, 40 >> k).to(dtype).contiguous(memory_format=layout) for k in range(4)]
    calls = []
    for i, x in enumerate(streams):
        weights = [None] * (i + 1) + [torch.randn(x.shape[1], z.shape[1]).to(dtype) / 6 for z in streams[i + 1 :]]
        bias = torch.randn(x.shape[1]).to(dtype) if i != 2 else None
        inputs = [torch.randn_like(x) for _ in range(i)] + streams[i:]
        calls.append(_validate(inputs, weights, bias, tuple(x.shape[2:]), "bilinear", False, "relu", None))
    assert cuda.why_not_together(calls) is None
    for call, out in zip(calls, host.exchange_sums(*cuda.launch_arguments(calls)), strict=True):
        assert relative_error(out, truth(call.inputs, call.weights, call.bias)) < OPERATOR[dtype]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinities_and_nan_stay_where_torch_leaves_them(host, value):
    x = [torch.randn(1, 8, 24, 40), torch.randn(1, 16, 12, 20)]
    x[0][0, 3, 20, 35], x[1][0, 2, 4, 5] = value, value
    x = [t.half().contiguous(memory_format=torch.channels_last) for t in x]
    weight = torch.randn(8, 16).half()
    out = compute(host, _validate(x, [None, weight], None, None, "bilinear", False, "relu", None))
    z = F.conv2d(x[1].float(), weight.float()[:, :, None, None])
    expected = F.relu(x[0].float() + F.interpolate(z, scale_factor=2, mode="bilinear"))
    assert torch.equal(out.isfinite(), expected.half().isfinite())
    assert torch.equal(out.isnan(), expected.isnan())


@pytest.mark.parametrize("mode", MODES)
def test_sources_are_those_of_torch(host, mode):
    name, align_corners = MODES[mode]
    keywords = {"align_corners": align_corners} if name == "bilinear" else {}
    for low, full in SIZES:
        i0, i1, w0, w1 = host.sources(0 if name == "nearest" else 1 + align_corners, low, full)
        assert 0 <= i0.min() <= i0.max() < low
        assert torch.equal(i1.clamp(max=low - 1), i1)
        ramp = torch.arange(low, dtype=torch.float32)[None, None]
        line = F.interpolate(ramp[:, :, None], (1, full), mode=name, **keywords)[0, 0, 0]
        torch.testing.assert_close(w0 * i0 + w1 * i1, line, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("mode", range(3))
def test_patches_lie_in_the_image_and_in_shared_memory(host, mode):
    for low, full in zip(SIZES, SIZES[3:] + SIZES[:3]):
        size = tuple(max(a, b) for a, b in zip(low, full)), low
        assert host.largest_patch(mode, size[1], size[0])[1], size
    for factor, pixels in ((2, 60), (4, 24), (8, 12)):  # of 8x16 output pixels; KERNELS: halo of 1.9, 3 and 6 times
        assert host.largest_patch(1, (128 // factor, 256 // factor), (128, 256)) == (pixels, True)


@pytest.mark.parametrize("channels_last", [True, False])
def test_every_element_is_computed_once(host, channels_last):
    for shape in ((1, 18, 9, 17), (2, 270, 8, 16), (3, 1, 1, 1), (1, 67, 23, 70)):
        assert host.coverage(*shape, channels_last).eq(1).all(), shape


def test_offsets_beyond_32_bits(host):
    n, c, y, x, channels, h, w = 3, 700, 4000, 8000, 720, 4096, 8192
    image = n * channels * h * w
    assert host.library.channels_last_element(n, c, y, x, channels, h, w) == image + (y * w + x) * channels + c
    assert host.library.planar_element(n, c, y, x, channels, h, w) == image + (c * h + y) * w + x


@pytest.mark.parametrize("mode", range(3))
def test_windows_of_the_backward_hold_every_output(host, mode):
    for low in range(1, 40):
        for full in (low, low + 1, 2 * low, 2 * low + 1, 4 * low, 8 * low, 8 * low - 5, 33 * low):
            if full >= low:
                assert host.library.windows_hold(mode, low, full), (low, full)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_backward(host, mode, layout, dtype):
    name, align_corners = MODES[mode]
    for shape, sizes in (((2, 18, 33, 45), [17, 23, 9, 12, 33, 20, 1, 1]), ((1, 16, 32, 40), [16, 20, 8, 10, 4, 5]),
                         ((1, 3, 7, 9), [6, 8])):  # fmt: skip
        g, y = (torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(2))
        y = y.relu()
        for output in (y, None):
            expected = autograd.exchange_backward(g.double(), None if output is None else y.double(), sizes, name,
                                                    align_corners, output is not None)  # fmt: skip
            arguments = cuda.backward_arguments(g, output, sizes, name, align_corners, output is not None)
            for found, ref in zip(host.exchange_backward_sums(*arguments), expected, strict=True):
                assert found.stride() == ref.stride()
                assert relative_error(found, ref) < OPERATOR[dtype]


def test_backward_keeps_infinities_in_their_window(host):
    g = torch.randn(1, 4, 16, 16).contiguous(memory_format=torch.channels_last)
    g[0, 1, 9, 3] = float("inf")
    (ref,) = autograd.exchange_backward(g, None, [4, 4], "bilinear", False, False)
    (found,) = host.exchange_backward_sums(*cuda.backward_arguments(g, None, [4, 4], "bilinear", False, False))
    assert torch.equal(found.isfinite(), ref.isfinite())
