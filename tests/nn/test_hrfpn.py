"""HRFPN: fast against plain, in evaluation and training, hooks, and errors."""

import pytest
import torch
from torch import nn

from hrnet_fast.nn import HRFPN, PlainHRFPN
from hrnet_fast.tolerances import relative_error

CHANNELS = (5, 8, 12, 16)


def streams(size=(32, 48), dtype=torch.float32, batch=2):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, c, size[0] >> j, size[1] >> j, generator=generator).to(dtype) for j, c in enumerate(CHANNELS)
    ]


def pair(dtype=torch.float32, **kwargs):
    plain = PlainHRFPN(CHANNELS, 10, **kwargs).to(dtype).eval()
    fast = HRFPN(CHANNELS, 10, **kwargs).to(dtype).eval()
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def assert_close(levels, expected, tolerance=1e-5):
    assert len(levels) == len(expected)
    for y, reference in zip(levels, expected, strict=True):
        assert relative_error(y, reference) < tolerance


def test_keys_are_the_official_ones():
    names = ["reduction_conv.0", *(f"fpn_conv.{i}" for i in range(5))]
    assert list(HRFPN(CHANNELS).state_dict()) == [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("levels", [1, 5])
@pytest.mark.parametrize("size", [(32, 48), (24, 40), (16, 16)], ids=str)
def test_evaluation(size, levels, pooling):
    """(24, 40): sizes that pooling does not divide evenly."""
    plain, fast = pair(levels=levels, pooling=pooling)
    with torch.no_grad():
        result = fast(streams(size))
        assert_close(result, plain(streams(size)))
        assert_close(fast(streams(size)), result, 1e-7)
    assert [tuple(y.shape[2:]) for y in result] == [(size[0] >> i, size[1] >> i) for i in range(levels)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_equal_those_of_the_plain_form(training):
    results = []
    for module in pair(torch.float64):
        module.train(training)
        inputs = [x.requires_grad_() for x in streams(dtype=torch.float64)]
        loss = sum((y * (i + 1)).sin().sum() for i, y in enumerate(module(inputs)))
        results.append(torch.autograd.grad(loss, [*inputs, *module.parameters()]))
    assert_close(results[1], results[0], 1e-10)


def test_new_weights_are_seen():
    plain, fast = pair()
    with torch.no_grad():
        fast(streams())
        for module in (plain, fast):
            module.reduction_conv[0].weight.mul_(1.5)
            module.fpn_conv[2].bias.add_(1.0)
        assert_close(fast(streams()), plain(streams()))


def test_inner_hooks_run():
    plain, fast = pair()
    calls = []
    with torch.no_grad():
        fast(streams())
        fast.fpn_conv[1].register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
        assert_close(fast(streams()), plain(streams()))
    assert calls == [(2, 10, 16, 24)]


def test_a_replaced_convolution_is_called():
    _, fast = pair()
    fast.fpn_conv[0] = nn.Identity()
    with torch.no_grad():
        assert fast(streams())[0].shape == (2, 10, 32, 48)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "record", [torch.jit.trace, lambda module, x: torch.jit.script(module)], ids=["trace", "script"]
)
def test_torchscript_records_standard_operators(record):
    plain, fast = pair()
    with torch.no_grad():
        recorded = record(fast, (streams(),))
        assert "hrnet_fast::" not in str(recorded.inlined_graph)
        assert_close(recorded(streams()), plain(streams()))


WRONG = [
    (lambda: HRFPN([]), "channels"),
    (lambda: HRFPN([4], levels=0), "levels: expected at least 1, got 0"),
    (lambda: HRFPN([4], pooling="sum"), "pooling: .*'sum'"),
    (lambda: HRFPN(CHANNELS)(streams()[:3]), "streams: expected 4 tensors, got 3"),
    (lambda: HRFPN([5, 8, 12, 17])(streams()), r"streams\[3\]: expected \[N, 17, H, W\]"),
    (lambda: HRFPN(CHANNELS)(streams((33, 48))), r"streams\[1\]: expected 1/2 of streams\[0\]'s \(33, 48\)"),
    (lambda: HRFPN(CHANNELS)(streams((8, 48))), "5 levels need at least 16 pixels"),
]


@pytest.mark.parametrize(("action", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_named(action, message):
    with pytest.raises(ValueError, match=message):
        action()
