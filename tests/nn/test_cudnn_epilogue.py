"""Convolutions on a GPU: when bias, ReLU and sum are in cuDNN's epilogue, how many launches a unit takes; on fakes."""

import collections

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

import hrnet_fast as hf
from hrnet_fast.nn import cudnn_epilogue, exchange_unit, prepared_conv
from hrnet_fast.nn.exchange_unit import PlainExchangeUnit
from hrnet_fast.nn.folded_exchange import current_plan
from hrnet_fast.nn.prepared_conv import PreparedConv
from hrnet_fast.ops.backends import cuda, gpu, preferences
from hrnet_fast.tolerances import relative_error
from support.fake_gpu import made_up_gpu


@pytest.fixture
def operators(monkeypatch):
    """The two operators of cuDNN, done by conv2d; the calls that they got."""
    calls = []

    def relu(x, weight, bias, stride, padding, dilation, groups):
        calls.append("relu")
        return F.relu(F.conv2d(x, weight, bias, stride, padding, dilation, groups))

    def add_relu(x, other, weight, bias, stride, padding, dilation, groups):
        calls.append("add_relu")
        return F.relu(F.conv2d(x, weight, bias, stride, padding, dilation, groups) + other)

    monkeypatch.setattr(cudnn_epilogue, "convolve_relu", relu)
    monkeypatch.setattr(cudnn_epilogue, "convolve_add_relu", add_relu)
    monkeypatch.setattr(cudnn_epilogue, "_why_not_here", lambda index, dtype: None)
    monkeypatch.setattr(gpu, "index_of", lambda device: 0)
    monkeypatch.setattr(gpu, "capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.delenv(cudnn_epilogue.VARIABLE, raising=False)
    return calls


def image(channels=6, dtype=torch.float16):
    return torch.randn(1, channels, 8, 10).to(dtype).contiguous(memory_format=torch.channels_last)


def test_when_the_epilogue_serves(operators, monkeypatch):
    x, weight = image(), torch.randn(4, 6, 3, 3).half()
    why_not = cudnn_epilogue.why_not
    assert why_not(x, weight, 1) is None
    assert "float64" in why_not(x.double(), weight.double(), 1)
    assert "a weight of torch.float16" in why_not(x.float(), weight, 1)
    assert "2 groups" in why_not(x, weight, 2)
    assert "channels_last" in why_not(x.contiguous(), weight, 1)
    assert "channels_last" in why_not(x[:0], weight, 1)
    assert "5 channels" in why_not(image(5), weight, 1)
    assert "gradient" in why_not(x.clone().requires_grad_(), weight, 1)
    with monkeypatch.context() as autocast:
        autocast.setattr(torch, "is_autocast_enabled", lambda device: True)
        assert "autocast" in why_not(x, weight, 1)
    with torch.backends.cudnn.flags(enabled=False):
        assert "enabled" in why_not(x, weight, 1)
    monkeypatch.setenv(cudnn_epilogue.VARIABLE, "0")
    assert why_not(x, weight, 1) == "HRNET_FAST_CUDNN_EPILOGUE=0"
    monkeypatch.setenv(cudnn_epilogue.VARIABLE, "1")
    assert why_not(x, weight, 1) is None
    row = preferences.Row((7, 5), "convolution", (preferences.CONV2D,), "a GPU on which it is slower")
    monkeypatch.setattr(preferences, "CONVOLUTION", (row,))
    assert why_not(x, weight, 1) is None
    monkeypatch.delenv(cudnn_epilogue.VARIABLE)
    assert "conv2d is preferred on this GPU" in why_not(x, weight, 1)
    monkeypatch.undo()
    assert all(row.measured is None for row in preferences.CONVOLUTION)  # until somebody has


def test_not_tried_while_a_graph_is_captured(operators, monkeypatch):
    x, weight = image(), torch.randn(4, 6, 3, 3).half()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert "before this capture" in cudnn_epilogue.why_not(x, weight, 1)
    monkeypatch.setattr(cudnn_epilogue, "_tried", {(0, torch.float16)})
    assert cudnn_epilogue.why_not(x, weight, 1) is None


def broken_relu(kind):
    def relu(x, weight, bias, *geometry):
        y = F.conv2d(x, weight, bias, *geometry)
        return y.nan_to_num().relu() if kind == "NaN" else y

    return relu


@pytest.mark.parametrize("dtype", cudnn_epilogue.DTYPES, ids=str)
def test_the_trial_finds_what_is_wrong(operators, monkeypatch, dtype):
    cpu = torch.device("cpu")
    assert cudnn_epilogue._compare(cpu, dtype) is None
    monkeypatch.setattr(cudnn_epilogue, "convolve_relu", broken_relu("NaN"))
    assert "does not keep NaN" in cudnn_epilogue._compare(cpu, dtype)
    monkeypatch.setattr(cudnn_epilogue, "convolve_relu", broken_relu("no ReLU"))
    assert "something else than conv2d" in cudnn_epilogue._compare(cpu, dtype)


def test_a_trial_that_raises_is_a_reason():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, on which it works")
    reason = cudnn_epilogue._why_not_here.__wrapped__(0, torch.float16)
    assert reason.startswith("cuDNN's epilogue cannot be used here (")


class Launches(TorchDispatchMode):
    """Counts what launches a kernel on a GPU: convolutions, and once more for a bias that conv2d adds, sums, copies."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        views = function.is_view or name in ("empty", "new_empty", "device")
        if not views and not (name in ("_to_copy", "contiguous") and result is args[0]):
            self.counts[name] += 2 if name == "convolution" and args[2] is not None else 1
        return result


def launches(monkeypatch, unit, epilogue, dtype=torch.float16):
    """The launches of an evaluation of a stage-4 unit on a made-up GPU."""
    mode = made_up_gpu(allow_non_fake_inputs=True)
    extra = collections.Counter()

    def relu(x, weight, bias, stride, padding, dilation, groups):
        extra["cudnn_convolution_relu"] += 1
        height, width = (-(-n // 2) for n in x.shape[2:])
        return torch.empty(
            1, weight.shape[0], height, width, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )

    def launch(operator, arguments, device):
        extra["exchange"] += 1
        inputs, sizes = arguments[0], arguments[6]
        return [inputs[0].new_empty(1, 1, *sizes[2 * i : 2 * i + 2]) for i in range(len(sizes) // 2)]

    monkeypatch.setattr(cudnn_epilogue, "convolve_relu", relu)
    monkeypatch.setattr(cuda, "_launch", launch)
    monkeypatch.setattr(cuda, "extension_error", None)
    monkeypatch.setattr(cuda, "kernels_error", lambda index: None)
    monkeypatch.setattr(prepared_conv, "Tensor", FakeTensor)  # the plain tensors of this test
    monkeypatch.setenv(cudnn_epilogue.VARIABLE, "1" if epilogue else "0")
    with mode, torch.no_grad():
        unit = unit.to("cuda:0", dtype, memory_format=torch.channels_last).eval()
        streams = [
            torch.empty(1, 18 << k, 64 >> k, 96 >> k, dtype=dtype, device="cuda:0").contiguous(
                memory_format=torch.channels_last
            )
            for k in range(4)
        ]
        if isinstance(unit, hf.ExchangeUnit):  # fake tensors look new at every call
            plan = current_plan(unit, unit._folds)
            monkeypatch.setattr(exchange_unit, "current_plan", lambda rows, folds: plan)
            # a mode of somebody's own would have the plain operators run
            monkeypatch.setattr(exchange_unit, "standard_operators_wanted", lambda given: False)
        unit(streams)  # weights get their layout
        extra.clear()
        with Launches() as counted:
            unit(streams)
    return counted.counts + extra


@pytest.mark.parametrize(("epilogue", "expected"), [(True, 11), (False, 19)])
def test_launches_of_an_exchange_unit(operators, monkeypatch, epilogue, expected):
    """Ten strided convolutions, four of them with bias and ReLU, and one launch for all sums; no copies."""
    found = launches(monkeypatch, hf.ExchangeUnit([18 << k for k in range(4)]), epilogue)
    assert found["exchange"] == 1
    assert found["cudnn_convolution_relu"] == (4 if epilogue else 0)
    assert found["convolution"] == (6 if epilogue else 6 + 2 * 4)
    assert sum(found.values()) == expected, found


def test_launches_of_the_plain_unit(operators, monkeypatch):
    """What it is compared with: convolutions, BatchNorms, interpolations, sums and ReLUs."""
    found = launches(monkeypatch, PlainExchangeUnit([18 << k for k in range(4)]), False)
    assert found["convolution"] == found["native_batch_norm"] == 16
    assert sum(found.values()) == 58, found


def test_a_convolution_that_cudnn_refuses_goes_back_to_conv2d(operators, monkeypatch):
    def refuse(*arguments):
        operators.append("refused")
        raise RuntimeError("GET was unable to find an engine to execute this computation\nmore")

    conv = PreparedConv(torch.randn(6, 6, 3, 3), torch.randn(6), padding=(1, 1), relu_from=0)
    monkeypatch.setattr(conv, "why_plain", lambda x: "a test")
    monkeypatch.setattr(PreparedConv, "why_not_epilogue", lambda self, x: self._failure)
    x = image(dtype=torch.float32)
    expected = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1))
    assert torch.equal(conv(x), expected)
    assert torch.equal(conv.add_relu(x, x), F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1) + x))
    assert operators == ["relu", "add_relu"]
    monkeypatch.setattr(cudnn_epilogue, "convolve_relu", refuse)
    for _ in range(2):
        assert torch.equal(conv(x), expected)
    assert operators.count("refused") == 1
    assert conv.why_not_epilogue(x) == "cuDNN cannot (GET was unable to find an engine to execute this computation)"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", cudnn_epilogue.DTYPES, ids=str)
def test_on_a_gpu(dtype, monkeypatch):
    monkeypatch.setenv(cudnn_epilogue.VARIABLE, "1")
    for channels, kernel, stride in ((18, 3, 1), (48, 3, 2), (64, 1, 1)):
        weight, bias = (
            torch.randn(channels, channels, kernel, kernel) / (channels * kernel**2) ** 0.5,
            torch.randn(channels),
        )
        conv = PreparedConv(
            weight.to("cuda", dtype), bias.to("cuda", dtype), (stride,) * 2, (kernel // 2,) * 2, relu_from=0
        )
        x = torch.randn(2, channels, 33, 47).to("cuda", dtype).contiguous(memory_format=torch.channels_last)
        y = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), stride, kernel // 2)
        other = torch.randn_like(y).to(dtype)
        tolerance = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]  # TF32 may be allowed
        with torch.no_grad():
            assert relative_error(conv(x), F.relu(y)) < tolerance
            assert relative_error(conv.add_relu(x, other), F.relu(y + other.double())) < tolerance
            reason = conv.why_not_epilogue(x)
        if reason is not None:
            pytest.skip(f"only conv2d was tested: {reason}")
