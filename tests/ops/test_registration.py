"""The operator as torch sees it: schemas, fakes, autograd, autocast, FLOP counts, torch.compile and torch.export."""

import itertools

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import hrnet_fast as hf
from hrnet_fast.ops import library
from hrnet_fast.ops.backends import reference as plain
from hrnet_fast.ops.exchange.call import ExchangeCall
from hrnet_fast.tolerances import OPERATOR as TOLERANCE
from hrnet_fast.tolerances import relative_error
from support.exchange_cases import CASES, MODES, make, truth
from support.exhaustive import chosen

BY_NAME = {case.name: case for case in CASES}
OPS = {name: getattr(torch.ops.hrnet_fast, name).default for name in library.OPERATORS}


def call_of(name, dtype=torch.float32, layout="channels_last", mode="bilinear"):
    """A case as the operator's arguments."""
    inputs, weights, keywords = make(BY_NAME[name], dtype, layout)
    size = keywords["size"] or (max(x.shape[2] for x in inputs), max(x.shape[3] for x in inputs))
    mode, align_corners = MODES[mode]
    return ExchangeCall(
        inputs,
        weights,
        keywords["bias"],
        *keywords.get("projection", (None, None)),
        *size,
        mode,
        align_corners,
        keywords["activation"] == "relu",
        False,
    )


def require_grad(call):
    for t in (*call.inputs, *call.weights, call.bias, call.projection, call.projection_bias):
        if t is not None:
            t.requires_grad_()
    return call


def opcheck(op, call):
    # gradients are sums over hundreds of pixels, in an order that is another one in compiled code
    torch.library.opcheck(op, call.arguments(), rtol=1e-5, atol=1e-4)


def test_one_schema():
    """The compiled extension and the fallback without it define the very same operators."""
    for name, op in OPS.items():
        assert str(op._schema) == f"hrnet_fast::{name}{library.SCHEMA}"
    for name in library.BACKWARD_OPERATORS:
        op = getattr(torch.ops.hrnet_fast, name).default
        assert str(op._schema) == f"hrnet_fast::{name}{library.BACKWARD_SCHEMA}"


# each case in one layout, the other one is exhaustive
CHECKED = itertools.product(
    ["stage4", "top-down", "one-to-many", "projected-odd", "projected-no-relu"], ["channels_last", "contiguous"]
)


@pytest.mark.parametrize(("name", "layout"), chosen(CHECKED, lambda k, _: k % 4 in (0, 3), several=True))
def test_opcheck(name, layout):
    for op in OPS.values():
        opcheck(op, call_of(name, layout=layout))
    opcheck(OPS["exchange"], require_grad(call_of(name, layout=layout)))


@pytest.mark.parametrize("mode", ["align_corners", "nearest"])
def test_opcheck_modes(mode):
    opcheck(OPS["exchange"], require_grad(call_of("odd", mode=mode)))


@pytest.mark.parametrize(("channels", "out", "rows"), [(0, 4, None), (0, 4, 3), (3, 0, 2), (3, 4, 0), (0, 0, 2)])
def test_opcheck_without_channels(channels, out, rows):
    inputs = [torch.randn(2, channels, 8, 6), torch.randn(2, channels, 4, 3)]
    weights = [torch.randn(out, channels) for _ in inputs]
    projection = None if rows is None else torch.randn(rows, out)
    call = ExchangeCall(inputs, weights, torch.randn(out), projection, None, 8, 6, "bilinear", False, True, False)
    opcheck(OPS["exchange_fwd"], call)
    opcheck(OPS["exchange"], require_grad(call))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fake_is_like_real(case):
    for layout in ("channels_last", "contiguous", "mixed"):
        call = call_of(case.name, torch.bfloat16, layout)
        if layout == "mixed":
            odd = [x.contiguous(memory_format=torch.channels_last) if j % 2 else x for j, x in enumerate(call.inputs)]
            call = call._replace(inputs=odd)
        real = OPS["exchange_fwd"](*call.arguments())
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            *tensors, weighted = call.arguments()[:3]
            inputs, weights = ([mode.from_tensor(t) for t in group] for group in tensors)
            fake = OPS["exchange_fwd"](inputs, weights, weighted, *call.arguments()[3:])
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype), layout


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_gradients_float64(mode, relu):
    """First and second derivatives of every argument, against finite differences."""
    mode, align_corners = MODES[mode]
    shapes = {"x": (2, 2, 4, 5), "low": (2, 3, 2, 3), "w": (2, 3), "b": (2,), "p": (3, 2), "pb": (3,)}
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes.values()]

    def function(x, low, w, b, p, pb):
        return hf.exchange(
            [x, low],
            [None, w],
            b,
            projection=(p, pb),
            mode=mode,
            align_corners=align_corners,
            activation="relu" if relu else None,
        )

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["stage4", "head-projected", "weightless", "two-bases"])
def test_gradients_are_autograds(name, dtype, layout):
    """Against torch's own derivatives of the float64 truth, with a random upstream gradient."""
    inputs, weights, keywords = make(BY_NAME[name], dtype, layout)
    leaves = [t for t in (*inputs, *weights, keywords["bias"], *keywords.get("projection", ())) if t is not None]
    for t in leaves:
        t.requires_grad_()
    upstream = torch.randn_like(truth(inputs, weights, **keywords)).to(dtype)
    expected = torch.autograd.grad(truth(inputs, weights, **keywords), leaves, upstream.double())
    found = torch.autograd.grad(hf.exchange(inputs, weights, **keywords), leaves, upstream)
    for t, gradient, reference in zip(leaves, found, expected, strict=True):
        assert gradient.dtype == t.dtype
        assert gradient.shape == t.shape
        # where a half-precision output was rounded to or from 0, the ReLU's gradient differs: that is a few pixels
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert relative_error(gradient, reference.double()) < tolerance


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_autocast(backend, autocast):
    inputs, weights, keywords = make(BY_NAME["head-projected"], torch.float32)
    inputs[1], weights[2] = inputs[1].bfloat16(), weights[2].half()  # what autocast regions hand to each other
    expected = truth(inputs, weights, **keywords)
    with torch.autocast("cpu", autocast):
        out = hf.exchange(inputs, weights, **keywords, backend=backend)
    assert out.dtype == autocast
    assert relative_error(out, expected) < 2 * TOLERANCE[torch.bfloat16]  # inputs and weights were rounded as well
    with torch.autocast("cpu", enabled=False), pytest.raises(TypeError, match=r"inputs\[1\]: expected dtype"):
        hf.exchange(inputs, weights, **keywords, backend=backend)


@pytest.mark.parametrize("grad", [False, True])
def test_autocast_leaves_float64_as_it_is(grad):
    """As torch's own operators do."""
    call = call_of("stage4", torch.float64)
    call = require_grad(call) if grad else call
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        found = hf.exchange(
            call.inputs, call.weights, call.bias, size=call[5:7], activation="relu" if call.relu else None
        )
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, plain.run(call))


def test_autocast_has_gradients():
    inputs, weights, keywords = make(BY_NAME["stage4"], torch.float32)
    leaves = [t.requires_grad_() for t in (*inputs, *weights[1:])]
    with torch.autocast("cpu", torch.bfloat16):
        out = hf.exchange(inputs, weights, **keywords)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, upstream)
    expected = torch.autograd.grad(truth(inputs, weights, **keywords), leaves, upstream.double())
    for t, gradient, reference in zip(leaves, found, expected, strict=True):
        assert gradient.dtype == t.dtype
        assert relative_error(gradient, reference.double()) < 5e-2


@pytest.mark.parametrize("name", ["stage4-batch3", "head-projected", "weightless"])
def test_flops(name):
    case = BY_NAME[name]
    inputs, weights, keywords = make(case, torch.float32)
    macs = sum(w.numel() * x.shape[2] * x.shape[3] for x, w in zip(inputs, weights, strict=True) if w is not None)
    macs += case.projection * case.out * inputs[0].shape[2] * inputs[0].shape[3]
    for grad in (False, True):
        inputs[0].requires_grad_(grad)
        with FlopCounterMode(display=False) as counter:
            hf.exchange(inputs, weights, **keywords)
        assert counter.get_total_flops() == 2 * macs * case.batch


@pytest.mark.parametrize("mode", MODES)
def test_compile(mode):
    """No graph break, with and without gradients, and again for another size."""
    torch._dynamo.reset()
    settings = dict(zip(("mode", "align_corners"), MODES[mode], strict=True))

    def function(*tensors):
        x, low, w, b, p = tensors
        return hf.exchange([x * 2, low], [None, w], b, projection=p, **settings) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager" if mode != "bilinear" else "inductor")
    for size, grad in itertools.product((8, 12), (False, True)):
        tensors = [
            torch.randn(1, 4, size, 16),
            torch.randn(1, 6, 4, 8),
            torch.randn(4, 6),
            torch.randn(4),
            torch.randn(3, 4),
        ]
        leaves = [t.requires_grad_(grad) for t in tensors]
        with torch.set_grad_enabled(grad):
            out, expected = compiled(*tensors), function(*tensors)
        torch.testing.assert_close(out, expected)
        if grad:
            upstream = torch.randn_like(out)
            torch.testing.assert_close(
                torch.autograd.grad(out, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)
            )
    with torch.inference_mode():
        torch.testing.assert_close(compiled(*tensors), function(*tensors))


class Fusion(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.randn(4))

    def forward(self, x, low):
        return hf.exchange([x, low], [None, self.weight], self.bias)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_export_with_a_dynamic_batch(grad, tmp_path):
    model = Fusion()
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(
            model, (torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)), dynamic_shapes=({0: batch}, {0: batch})
        )
    assert any("hrnet_fast" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, tmp_path / "fusion.pt2")
    loaded = torch.export.load(tmp_path / "fusion.pt2").module()
    for count in (1, 2, 5):
        x, low = torch.randn(count, 4, 8, 8), torch.randn(count, 6, 4, 4)
        torch.testing.assert_close(loaded(x, low), model(x, low))


def test_meta_tensors():
    out = hf.exchange([torch.empty(2, 4, 8, 8, device="meta"), torch.empty(2, 4, 4, 4, device="meta")])
    assert (out.device.type, out.shape) == ("meta", (2, 4, 8, 8))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_records_standard_operators():
    """torch.jit.trace falls back to the reference, so that its programs run without hrnet_fast."""
    model, tensors = Fusion().eval(), (torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4))
    traced = torch.jit.trace(model, tensors)
    assert "hrnet_fast::" not in str(traced.graph)
    torch.testing.assert_close(traced(*tensors), model(*tensors))
