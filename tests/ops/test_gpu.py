"""The operator on a GPU, every backend: the case list, graphs, streams, autocast, the backward. Skipped without one."""

import copy

import pytest
import torch
import torch.nn.functional as F

import hrnet_fast as hf
from hrnet_fast.ops import backends
from hrnet_fast.ops.backends import cuda, gpu, triton
from hrnet_fast.ops.exchange import autograd
from hrnet_fast.ops.exchange.call import BackendFailed
from hrnet_fast.tolerances import OPERATOR, OPERATOR_TF32, relative_error
from support.exchange_cases import CASES, MODES, make, truth

pytestmark = pytest.mark.gpu
GPU_BACKENDS = [name for name in backends.TABLE if name != "cpu"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BY_NAME = {case.name: case for case in CASES}


def to_cpu(value):
    return value.cpu() if isinstance(value, torch.Tensor) else value


def pairwise():
    """Every case with every mode and every dtype, but not with all pairs of both: Triton compiles each anew."""
    for number, case in enumerate(CASES):
        for shift, mode in enumerate(MODES):
            dtype = DTYPES[(number + shift) % len(DTYPES)]
            yield pytest.param(case, mode, dtype, id=f"{case.name}-{mode}-{str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize(("case", "mode", "dtype"), pairwise())
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_matches_float64(backend, case, mode, dtype):
    mode, align_corners = MODES[mode]
    for layout in case.layouts:
        inputs, weights, keywords = make(case, dtype, layout, device="cuda")
        keywords.update(mode=mode, align_corners=align_corners)
        ref = truth(inputs, weights, **keywords)
        torch.full_like(ref, float("nan"), dtype=dtype)  # what the allocator hands out next is poisoned
        out = hf.exchange(inputs, weights, **keywords, backend=backend)
        assert out.stride() == ref.stride(), layout
        assert relative_error(out, ref) < OPERATOR[dtype], layout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["odd", "projected-36"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_for_sanitize(backend, name, dtype):
    """What compute-sanitizer watches: tiles that end inside of warps and vectors, forward and backward."""
    inputs, weights, keywords = make(BY_NAME[name], dtype, device="cuda")
    assert relative_error(hf.exchange(inputs, weights, **keywords, backend=backend),
                          truth(inputs, weights, **keywords)) < OPERATOR[dtype]  # fmt: skip
    g = torch.randn(1, 18, 13, 21, device="cuda").to(dtype).contiguous(memory_format=torch.channels_last)
    for low, size in zip(backends.TABLE[backend].backward(g, g, [7, 11, 4, 6], "bilinear", False, False), (77, 24)):
        assert low.isfinite().all() and low[0, 0].numel() == size


@pytest.mark.parametrize("name", ["stage4-48", "head-projected"])
def test_tf32_where_it_is_allowed(name):
    inputs, weights, keywords = make(BY_NAME[name], torch.float32, device="cuda")
    ref = truth(inputs, weights, **keywords)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert relative_error(hf.exchange(inputs, weights, **keywords), ref) < OPERATOR_TF32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("backend", ["auto", *GPU_BACKENDS])
def test_under_a_cuda_graph_on_another_stream(backend):
    inputs, weights, keywords = make(BY_NAME["stage4-48"], torch.float16, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            hf.exchange(inputs, weights, **keywords, backend=backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = hf.exchange(inputs, weights, **keywords, backend=backend)
    for x in inputs:
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert relative_error(out, truth(inputs, weights, **keywords)) < OPERATOR[torch.float16]


@pytest.mark.parametrize("backend", ["auto", *GPU_BACKENDS])
def test_compiles_without_graph_breaks(backend):
    inputs, weights, keywords = make(BY_NAME["stage4"], torch.float32, device="cuda")
    compiled = torch.compile(lambda *x: hf.exchange(x, weights, **keywords, backend=backend), fullgraph=True)
    assert relative_error(compiled(*inputs), truth(inputs, weights, **keywords)) < OPERATOR[torch.float32]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU only")
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_tensors_on_another_gpu(backend):
    inputs, weights, keywords = make(BY_NAME["stage4"], torch.float32, device="cuda:1")
    out = hf.exchange(inputs, weights, **keywords, backend=backend)
    assert out.device == inputs[0].device
    assert relative_error(out, truth(inputs, weights, **keywords)) < OPERATOR[torch.float32]


def test_autocast():
    inputs, weights, keywords = make(BY_NAME["stage4"], torch.float32, device="cuda")
    with torch.autocast("cuda", torch.float16):
        out = hf.exchange(inputs, weights, **keywords)
    assert out.dtype == torch.float16
    assert relative_error(out, truth(inputs, weights, **keywords)) < 3 * OPERATOR[torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_backward(dtype, mode, layout):
    generator = torch.Generator().manual_seed(7)
    for shape, sizes in (((2, 18, 33, 45), [17, 23, 9, 12, 33, 20]), ((1, 48, 64, 64), [32, 32, 16, 16, 8, 8])):
        g, y = (torch.randn(shape, generator=generator).to("cuda", dtype).contiguous(memory_format=layout)
                for _ in range(2))  # fmt: skip
        y = y.relu()
        expected = autograd.exchange_backward(g.float(), y.float(), sizes, *mode, True)
        runs = [torch.ops.hrnet_fast.exchange_backward(g, y, sizes, *mode, True) for _ in range(2)]
        for first, second, ref in zip(*runs, expected, strict=True):
            assert torch.equal(first, second)
            assert relative_error(first, ref) < OPERATOR[dtype]


def test_training_on_a_gpu():
    x = [torch.randn(2, 18, 32 >> k, 48 >> k, device="cuda", requires_grad=True) for k in range(3)]
    y = F.relu(sum(F.interpolate(t, (32, 48), mode="bilinear", align_corners=False) for t in x))
    expected = torch.autograd.grad(y.square().sum(), x)
    for a, b in zip(torch.autograd.grad(hf.exchange(x).square().sum(), x), expected, strict=True):
        assert relative_error(a, b.double()) < OPERATOR[torch.float32]


@pytest.mark.parametrize("backend", ["auto", "cuda", "triton"])
def test_an_exchange_unit_in_one_launch(backend, monkeypatch):
    launches = []
    for module in (cuda, triton):

        def together(calls, original=module.run_together):
            launches.append(len(calls))
            return original(calls)

        monkeypatch.setattr(module, "run_together", together)
    if backend != "auto":
        monkeypatch.setenv("HRNET_FAST_BACKEND", backend)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of the strided convolutions, which are torch's
    unit = hf.ExchangeUnit((18, 36, 72, 144)).cuda().eval()
    streams = [torch.randn(1, 18 << k, 64 >> k, 96 >> k, device="cuda").contiguous(memory_format=torch.channels_last)
               for k in range(4)]  # fmt: skip
    with torch.inference_mode():
        exact = [y.double() for y in copy.deepcopy(unit).double()._plain([x.double() for x in streams])]
        found = unit(streams)
    assert launches == [4]
    for a, b in zip(found, exact, strict=True):
        assert relative_error(a, b) < OPERATOR[torch.float32]


def test_a_failing_triton_makes_room_for_the_next(monkeypatch):
    monkeypatch.setattr(triton, "failures", gpu.Failures())
    monkeypatch.setattr("hrnet_fast.kernels.up_sum_relu.up_sum_relu", _broken)
    inputs, weights, keywords = make(BY_NAME["stage4"], torch.float32, device="cuda")
    with pytest.raises(BackendFailed, match="PTX"):
        hf.exchange(inputs, weights, **keywords, backend="triton")
    assert "PTX" in triton.why_not(None)
    out = hf.exchange(inputs, weights, **keywords)
    assert relative_error(out, truth(inputs, weights, **keywords)) < OPERATOR[torch.float32]


def test_the_kernels_can_be_loaded():
    """A module that was compiled for another GPU, or needs a newer driver, must say so before its first launch."""
    assert cuda.kernels_error(0) is None
    assert cuda.why_not(None) is None


def _broken(*arguments, **keywords):
    raise RuntimeError("Triton Error [CUDA]: PTX of a version that this driver does not know")
