"""The exchange unit and the segmentation head: fast against plain, in evaluation, training, and recorded as graphs."""

import pytest
import torch

from hrnet_fast import ExchangeUnit, SegmentationHead
from hrnet_fast.nn import PlainExchangeUnit, PlainSegmentationHead
from hrnet_fast.tolerances import relative_error

MODES = [("bilinear", False), ("bilinear", True), ("nearest", False)]
MODE_IDS = ["bilinear", "align-corners", "nearest"]
CHANNELS = [5, 8, 12, 16]


def streams(count=4, size=(16, 24), batch=2, dtype=torch.float32, channels_last=False):
    generator = torch.Generator().manual_seed(1)
    result = []
    for channels in CHANNELS[:count]:
        x = torch.randn(batch, channels, *size, generator=generator).to(dtype)
        result.append(x.contiguous(memory_format=torch.channels_last) if channels_last else x)
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    return result


def scramble(module):
    """Random BatchNorm parameters and statistics."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in module.state_dict().items():
        if tensor.dim() == 1:
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise - 0.5)
    return module


def pair(plain_class, fast_class, *args, dtype=torch.float32, **kwargs):
    plain = scramble(plain_class(*args, **kwargs)).to(dtype)
    fast = fast_class(*args, **kwargs).to(dtype)
    fast.load_state_dict(plain.state_dict())
    return plain.eval(), fast.eval()


def units(count=4, **kwargs):
    return pair(PlainExchangeUnit, ExchangeUnit, CHANNELS[:count], **kwargs)


def heads(**kwargs):
    return pair(PlainSegmentationHead, SegmentationHead, CHANNELS, 7, **kwargs)


def flat(outputs):
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def assert_close(outputs, expected, tolerance=1e-5):
    outputs, expected = flat(outputs), flat(expected)
    assert len(outputs) == len(expected)
    for y, reference in zip(outputs, expected, strict=True):
        assert relative_error(y, reference) < tolerance


def test_unit_keys_are_the_official_ones():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fuse_layers = ExchangeUnit([4, 8, 16])

    keys = {k for k in Module().state_dict() if k.endswith("weight")}
    assert keys == {f"fuse_layers.{path}.weight" for path in (
        "0.1.0", "0.1.1", "0.2.0", "0.2.1", "1.0.0.0", "1.0.0.1", "1.2.0", "1.2.1",
        "2.0.0.0", "2.0.0.1", "2.0.1.0", "2.0.1.1", "2.1.0.0", "2.1.0.1")}  # fmt: skip


def test_head_keys_are_the_official_ones():
    keys = [k for k in SegmentationHead([4, 8], 3).state_dict() if not k.startswith("1.")]
    assert keys == ["0.weight", "0.bias", "3.weight", "3.bias"]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(("mode", "align_corners"), MODES, ids=MODE_IDS)
def test_unit_in_evaluation(mode, align_corners, count, channels_last):
    plain, fast = units(count, mode=mode, align_corners=align_corners)
    x = streams(count, channels_last=channels_last)
    with torch.no_grad():
        outputs = fast(x)
        assert_close(outputs, plain(x))
    for y, stream in zip(outputs, x, strict=True):
        assert y.stride() == stream.stride()


@pytest.mark.parametrize("size", [(27, 41), (1, 1), (2, 3), (5, 64)], ids=str)
@pytest.mark.parametrize("align_corners", [False, True], ids=["half-pixel", "align-corners"])
def test_unit_of_odd_sizes(size, align_corners):
    plain, fast = units(align_corners=align_corners)
    x = streams(size=size)
    with torch.no_grad():
        assert_close(fast(x), plain(x))


@pytest.mark.parametrize("count", [2, 4])
def test_unit_with_one_output(count):
    plain, fast = units(count, multi_scale_output=False)
    with torch.no_grad():
        outputs = fast(streams(count))
        assert len(outputs) == 1
        assert_close(outputs, plain(streams(count)))


def test_unit_leaves_its_inputs_alone():
    _, fast = units()
    x = streams(channels_last=True)
    given, copies = list(x), [t.clone() for t in x]
    with torch.no_grad():
        fast(x)
    assert all(a is b and torch.equal(a, c) for a, b, c in zip(x, given, copies, strict=True))


@pytest.mark.parametrize("combine", ["concat", "sum"])
@pytest.mark.parametrize("align_corners", [False, True], ids=["half-pixel", "align-corners"])
@pytest.mark.parametrize("size", [(16, 24), (27, 41), (1, 1)], ids=str)
def test_head_in_evaluation(size, align_corners, combine):
    plain, fast = heads(combine=combine, align_corners=align_corners)
    with torch.no_grad():
        assert_close(fast(streams(size=size)), plain(streams(size=size)))


def gradients(module, x):
    x = [t.clone().requires_grad_() for t in x]
    generator = torch.Generator().manual_seed(3)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in flat(module(x)))
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, [*x, *parameters])


CASES = [(units, {"mode": mode, "align_corners": corners}) for mode, corners in MODES]
CASES += [(heads, {"combine": combine}) for combine in ("concat", "sum")]
CASE_IDS = [f"unit-{name}" for name in MODE_IDS] + ["head-concat", "head-sum"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("make", "kwargs"), CASES, ids=CASE_IDS)
def test_gradients_equal_those_of_the_plain_form(make, kwargs, training):
    plain, fast = make(dtype=torch.float64, **kwargs)
    plain.train(training), fast.train(training)
    x = streams(dtype=torch.float64)
    for g, reference in zip(gradients(fast, x), gradients(plain, x), strict=True):
        if reference.norm() > 1e-9:  # the gradient of a bias in front of a BatchNorm is rounding noise
            assert relative_error(g, reference) < 1e-10
    for key, tensor in plain.state_dict().items():  # running statistics too
        torch.testing.assert_close(fast.state_dict()[key], tensor)


@pytest.mark.parametrize(("make", "kwargs"), CASES, ids=CASE_IDS)
def test_gradients_of_inputs_with_frozen_parameters(make, kwargs):
    """Here the folded form runs under autograd."""
    plain, fast = make(dtype=torch.float64, **kwargs)
    plain.requires_grad_(False), fast.requires_grad_(False)
    x = streams(dtype=torch.float64)
    for g, reference in zip(gradients(fast, x), gradients(plain, x), strict=True):
        assert relative_error(g, reference) < 1e-10


@pytest.mark.parametrize("make", [units, heads], ids=["unit", "head"])
def test_frozen_norms_in_training_mode(make):
    """norm_eval=True of the detection code: modules in training mode, BatchNorm in evaluation mode."""
    plain, fast = make()
    for module in (*plain.modules(), *fast.modules()):
        module.training = not isinstance(module, torch.nn.BatchNorm2d)
    assert_close(fast(streams()), plain(streams()))
    with torch.no_grad():
        assert_close(fast(streams()), plain(streams()))


@pytest.mark.parametrize("make", [units, heads], ids=["unit", "head"])
def test_autocast(make):
    plain, fast = make()
    with torch.no_grad():
        expected = flat(plain(streams()))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = flat(fast(streams()))
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    assert_close(outputs, expected, 3e-2)


@pytest.mark.parametrize("make", [units, heads], ids=["unit", "head"])
def test_zero_batch(make):
    _, fast = make()
    with torch.no_grad():
        assert all(y.shape[0] == 0 for y in flat(fast(streams(batch=0))))


@pytest.mark.parametrize(
    "record", [torch.jit.trace, lambda module, x: torch.jit.script(module)], ids=["trace", "script"]
)
@pytest.mark.parametrize("make", [units, heads], ids=["unit", "head"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript_records_standard_operators(make, record):
    plain, fast = make()
    with torch.no_grad():
        recorded = record(fast, (streams(),))
        assert "hrnet_fast::" not in str(recorded.inlined_graph)
        assert_close(recorded(streams()), plain(streams()))


def test_head_exports_with_a_dynamic_batch():
    plain, fast = heads()
    batch = torch.export.Dim("batch", max=64)
    with torch.no_grad():
        program = torch.export.export(fast, (streams(),), dynamic_shapes=([{0: batch}] * 4,))
        assert_close(program.module()(streams(batch=3)), plain(streams(batch=3)))


WRONG = [
    (lambda: ExchangeUnit([4]), "two or more streams"),
    (lambda: ExchangeUnit([4, 8], mode="cubic"), "mode: .*'cubic'"),
    (lambda: ExchangeUnit([4, 8], mode="nearest", align_corners=True), "align_corners"),
    (lambda: SegmentationHead([4, 8], 3, combine="product"), "combine: .*'product'"),
    (lambda: SegmentationHead([], 3), "channels"),
    (lambda: ExchangeUnit(CHANNELS)(streams(3)), "streams: expected 4 tensors, got 3"),
    (lambda: SegmentationHead(CHANNELS, 3)(streams(3)), "streams: expected 4 tensors, got 3"),
    (lambda: ExchangeUnit([5, 9])(streams(2)), r"streams\[1\]: expected \[N, 9, H, W\]"),
    (lambda: SegmentationHead([5, 9], 3)(streams(2)), r"streams\[1\]: expected \[N, 9, H, W\]"),
    (lambda: ExchangeUnit([5, 8])([x[..., :7, :7] for x in streams(2)]), r"streams\[1\]: expected half"),
    (lambda: ExchangeUnit([5, 8], mode="nearest")(streams(2, (7, 8))), r"\(7, 8\).*multiples of 2"),
]


@pytest.mark.parametrize(("action", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_named(action, message):
    with pytest.raises(ValueError, match=message):
        action()
