"""The error contract: every wrong argument raises, and the message names it, what it got and what was expected."""

import pytest
import torch

import hrnet_fast as hf
from hrnet_fast.ops import backends, library

X = torch.ones(2, 4, 8, 8)
LOW = torch.ones(2, 6, 4, 4)
W = torch.ones(4, 6)


def bad(id, error, message, *args, **keywords):
    return pytest.param(error, message, args, keywords, id=id)


@pytest.mark.parametrize(
    ("error", "message", "args", "keywords"),
    [
        # inputs
        bad("a tensor for a list", TypeError, "inputs: expected a list of tensors, got Tensor", X),
        bad("no inputs", ValueError, "inputs: expected 1 to 8 tensors, got 0", []),
        bad("too many inputs", ValueError, "inputs: expected 1 to 8 tensors, got 9", [X] * 9),
        bad("not a tensor", TypeError, "inputs[0]: expected a tensor, got str", ["x"]),
        bad("second is not a tensor", TypeError, "inputs[1]: expected a tensor, got NoneType", [X, None]),
        bad("three dimensions", ValueError, "inputs[1]: expected [N, C, H, W], got the shape [4, 8, 8]", [X, X[0]]),
        bad("batches differ", ValueError, "inputs[1]: expected batch 2 as in inputs[0], got 1", [X, X[:1]]),
        bad("no pixels", ValueError, "inputs: every height and width must be at least 1, got [[2, 4, 0, 8]]",
            [X[:, :, :0]]),
        bad("integers", TypeError,
            "inputs[0]: expected one of torch.float32, torch.bfloat16, torch.float16, torch.float64, got torch.int64",
            [X.long()]),
        bad("integers behind floats", TypeError, "inputs[1]: expected one of torch.float32,", [X, X.int()]),
        bad("complex", TypeError, "got torch.complex64", [X.to(torch.complex64)]),
        bad("dtypes differ", TypeError, "inputs[1]: expected dtype torch.float32 as inputs[0] has, got torch.float16",
            [X, X.half()]),
        bad("devices differ", ValueError, "inputs[1]: expected device cpu as inputs[0] has, got meta",
            [X, X.to("meta")]),
        bad("channels without a weight", ValueError,
            "inputs[1]: without a weight its channels must be the output's 4, got 6", [X, LOW]),
        # weights
        bad("too few weights", ValueError, "weights: expected one entry beside each of the 2 inputs, got 1",
            [X, LOW], [W]),
        bad("weight is not a tensor", TypeError, "weights[1]: expected a tensor, got float", [X, LOW], [None, 1.0]),
        bad("weight of other inputs", ValueError, "weights[1]: expected [4, 6] or [4, 6, 1, 1], got [4, 5]",
            [X, LOW], [None, torch.ones(4, 5)]),
        bad("weight of other outputs", ValueError, "weights[1]: expected [4, 6] or [4, 6, 1, 1], got [3, 6]",
            [X, LOW], [None, torch.ones(3, 6)]),
        bad("first weight", ValueError, "weights[0]: expected [C_out, 6] or [C_out, 6, 1, 1], got [4, 7]",
            [LOW], [torch.ones(4, 7)]),
        bad("3x3 weight", ValueError, "weights[1]: expected [4, 6] or [4, 6, 1, 1], got [4, 6, 3, 3]",
            [X, LOW], [None, torch.ones(4, 6, 3, 3)]),
        bad("weight of another dtype", TypeError,
            "weights[1]: expected dtype torch.float32 as inputs[0] has, got torch.bfloat16",
            [X, LOW], [None, W.bfloat16()]),
        bad("weight of another device", ValueError, "weights[1]: expected device cpu as inputs[0] has, got meta",
            [X, LOW], [None, W.to("meta")]),
        # bias and projection
        bad("bias of another length", ValueError, "bias: expected [4], got [5]", [X], bias=torch.ones(5)),
        bad("bias of two dimensions", ValueError, "bias: expected [4], got [4, 1]", [X], bias=torch.ones(4, 1)),
        bad("bias is not a tensor", TypeError, "bias: expected a tensor, got float", [X], bias=1.0),
        bad("bias of another dtype", TypeError, "bias: expected dtype torch.float32", [X], bias=torch.ones(4).double()),
        bad("projection of other inputs", ValueError,
            "projection: expected [C_out, 4] or [C_out, 4, 1, 1], got [19, 5]", [X], projection=torch.ones(19, 5)),
        bad("projection bias", ValueError, "projection bias: expected [19], got [18]", [X],
            projection=(torch.ones(19, 4), torch.ones(18))),
        # size, mode, activation, backend
        bad("smaller size", ValueError, "size: (7, 8) is smaller than an input of (8, 8)", [X], size=(7, 8)),
        bad("size is one number", ValueError, "size: expected (height, width), got 8", [X], size=8),
        bad("size of three numbers", ValueError, "size: expected (height, width), got (8, 8, 8)", [X], size=(8, 8, 8)),
        bad("no largest input", ValueError,
            "size: required, because no input is the largest both ways: the inputs are [(8, 4), (4, 8)]",
            [X[..., :4], X[:, :, :4]]),
        bad("mode", ValueError, "mode: expected one of 'bilinear', 'nearest', got 'bicubic'", [X], mode="bicubic"),
        bad("align_corners with nearest", ValueError,
            "align_corners: only bilinear interpolation has it, got align_corners=True with mode='nearest'",
            [X], mode="nearest", align_corners=True),
        bad("activation", ValueError, "activation: expected 'relu' or None, got 'gelu'", [X], activation="gelu"),
        bad("unknown backend", ValueError, "backend: expected 'auto' or one of 'cuda', 'triton', 'cpu', 'reference', got 'tpu'",
            [X], backend="tpu"),
    ],
)  # fmt: skip
def test_wrong_argument(error, message, args, keywords):
    with pytest.raises(error) as raised:
        hf.exchange(*args, **keywords)
    assert message in str(raised.value)


def test_named_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(library, "extension_error", "the compiled extension is not there (a test)")
    with pytest.raises(
        RuntimeError, match=r"backend 'cpu' cannot serve this call: the compiled extension is not there"
    ):
        hf.exchange([X], backend="cpu")
    assert hf.exchange([X]).equal(X)  # "auto" goes on to the next


def test_named_backend_for_another_device():
    with pytest.raises(RuntimeError, match=r"backend 'cpu' cannot serve this call: .*on meta"):
        hf.exchange([X.to("meta")], backend="cpu")


def test_backend_variable_stands_in_for_auto(monkeypatch):
    ran = []
    run = backends.reference.run
    monkeypatch.setattr(backends.reference, "run", lambda call: ran.append(call) or run(call))
    hf.exchange([X])
    assert not ran
    monkeypatch.setenv("HRNET_FAST_BACKEND", "reference")
    hf.exchange([X])
    assert len(ran) == 1
    hf.exchange([X], backend="cpu")  # a name in the call counts more
    assert len(ran) == 1


def test_unknown_backend_variable(monkeypatch):
    monkeypatch.setenv("HRNET_FAST_BACKEND", "tpu")
    with pytest.raises(
        ValueError,
        match="HRNET_FAST_BACKEND: expected 'auto' or one of 'cuda', 'triton', 'cpu', 'reference', got 'tpu'",
    ):
        hf.exchange([X])


def test_unknown_cpu_capability(monkeypatch):
    monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", "sse9")
    with pytest.raises(RuntimeError, match=r"HRNET_FAST_CPU_CAPABILITY: expected one of .*portable, got sse9"):
        hf.exchange([X], backend="cpu")


def test_model_names_are_suggested():
    with pytest.raises(ValueError, match="hrnet_w18"):
        hf.create_model("hrnet_w19")


def call_operator(**changed):
    arguments = {"inputs": [X, LOW], "weights": [W], "weighted": 0b10, "bias": None, "projection": None,
                 "projection_bias": None, "height": 8, "width": 8, "mode": "bilinear", "align_corners": False,
                 "relu": True, "allow_tf32": False, **changed}  # fmt: skip
    return torch.ops.hrnet_fast.exchange_fwd(*arguments.values())


@pytest.mark.skipif(library.extension_error is not None, reason=str(library.extension_error))
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": []}, "expected 1 to 8 inputs, got 0"),
        ({"inputs": [X.long(), LOW.long()]}, "expected float32, float64, bfloat16 or float16"),
        ({"inputs": [X, LOW.double()]}, "inputs[1]"),
        ({"inputs": [X, LOW[:1]]}, "inputs[1]"),
        ({"inputs": [X, LOW[:, :5]]}, "1x1 weight for 5 input channels"),
        ({"weights": []}, "fewer weights"),
        ({"weights": [W, W]}, "more weights"),
        ({"weights": [W[:3]]}, "inputs[0] has no weight and other channels"),
        ({"bias": torch.ones(3)}, "bias of 4 elements"),
        ({"bias": torch.ones(4).half()}, "dtype"),
        ({"projection": torch.ones(2, 3)}, "1x1 weight for 4 input channels"),
        ({"height": 7}, "larger than 7 x 8"),
        ({"mode": "bicubic"}, "expected mode 'bilinear' or 'nearest', got 'bicubic'"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_the_compiled_operator_trusts_nobody(changed, message):
    """Callers that go around hrnet_fast.exchange get an error, never memory that is not theirs."""
    with pytest.raises(RuntimeError) as raised:
        call_operator(**changed)
    assert message in str(raised.value)
