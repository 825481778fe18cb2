"""The backward kernel: against torch's own derivatives, the same bits for any number of threads, and how it is used."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import hrnet_fast as hf
from hrnet_fast import ExchangeUnit
from hrnet_fast.ops.exchange import autograd
from hrnet_fast.tolerances import OPERATOR, relative_error

MODES = {"nearest": ("nearest", False), "bilinear": ("bilinear", False), "align_corners": ("bilinear", True)}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# [N, C, H, W] of the output, and the sizes of the inputs: odd ones, one pixel, one row, one channel, equal in one
# direction, more than a panel of channels, more inputs than streams
SHAPES = (
    ((2, 18, 32, 48), ((16, 24), (8, 12), (4, 6))),
    ((2, 18, 33, 45), ((17, 23), (9, 12), (1, 1), (33, 20))),
    ((1, 48, 40, 24), ((20, 12), (10, 6))),
    ((3, 1, 7, 5), ((3, 5), (7, 1))),
    ((1, 5, 1, 1), ((1, 1),)),
    ((1, 70, 9, 31), ((4, 13), (2, 2))),
    ((2, 7, 50, 3), ((49, 2), (25, 3), (7, 1), (50, 3), (2, 2), (1, 1), (3, 3), (5, 1))),
)


def make(shape, dtype, layout):
    generator = torch.Generator().manual_seed(7)
    g, y = (torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    return g, y.relu()


def backward(*args):
    return torch.ops.hrnet_fast.exchange_backward(*args)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("dtype", OPERATOR, ids=lambda d: str(d).removeprefix("torch."))
def test_against_torch(dtype, mode, layout, monkeypatch):
    capabilities = torch.ops.hrnet_fast.cpu_capabilities().split()
    for shape, sizes in SHAPES:
        g, y = make(shape, dtype, layout)
        flat = [n for size in sizes for n in size]
        # float32's coordinates in both: torch too computes them in the precision of the sums
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for output, same in ((y, True), (y, False), (None, False)):
            exact = None if output is None else output.to(wide)
            expected = autograd.exchange_backward(g.to(wide), exact, flat, *mode, same)
            for capability in capabilities:
                monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", capability)
                found = backward(g, output, flat, *mode, same)
                assert len(found) == len(expected) == len(sizes) + same
                for a, b in zip(found, expected, strict=True):
                    assert a.shape == b.shape
                    assert a.dtype == dtype
                    assert a.is_contiguous(memory_format=layout)
                    assert relative_error(a, b) < OPERATOR[dtype], (shape, capability)
                if same:  # nothing is rounded
                    assert torch.equal(found[-1], torch.where(y > 0, g, 0))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_same_bits_for_any_number_of_threads(layout):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            g, y = make((1, 18, 64, 40), torch.float32, layout)
            results += [backward(g, y, [32, 20, 16, 10, 8, 5], "bilinear", False, True) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_nan_and_infinity_pass_as_in_torch():
    """The ReLU is a select: gradients pass where the output is NaN, and an infinite one does not where it is 0."""
    y = torch.tensor([[[[float("nan"), 0.0], [1.0, 0.0]]]])
    g = torch.tensor([[[[2.0, float("inf")], [3.0, float("nan")]]]])
    low, same = backward(g, y, [1, 1], "nearest", False, True)
    assert same.tolist() == [[[[2.0, 0.0], [3.0, 0.0]]]]
    assert low.item() == 5.0


def test_wrong_arguments():
    g, y = make((1, 4, 8, 8), torch.float32, torch.contiguous_format)
    for arguments, message in (
        ((g, y, [9, 4], "nearest", False, False), "larger than"),
        ((g, y, [4], "nearest", False, False), "pairs of sizes"),
        ((g, y, [4, 4], "cubic", False, False), "mode"),
        ((g, y[:, :2], [4, 4], "nearest", False, False), "one shape"),
        ((g, y.double(), [4, 4], "nearest", False, False), "dtype"),
        ((g[..., :4], y, [4, 4], "nearest", False, False), "one shape"),
        ((g, None, [4, 4], "nearest", False, True), "without a ReLU"),
        ((g[0], y, [4, 4], "nearest", False, False), r"\[N, C, H, W\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            backward(*arguments)


UNUSUAL = {
    "expanded": lambda g: g[:1, :1, :1, :1].expand(g.shape),
    "transposed": lambda g: g.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda g: torch.stack([g, g], -1)[..., 0],
    "channels_last": lambda g: g.contiguous(memory_format=torch.channels_last),
    "channels_last of width 1": lambda g: (
        g[..., :1].expand(g.shape).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    ),
}


@pytest.mark.parametrize("width", [5, 1])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("way", UNUSUAL.values(), ids=UNUSUAL)
def test_gradients_of_any_strides(way, layout, width):
    """Where an image is one pixel wide its strides do not tell whether channels are innermost."""
    leaves = [torch.randn(2, 3, *size).contiguous(memory_format=layout).requires_grad_()
              for size in ((6, width), (3, 1))]  # fmt: skip
    for activation in ("relu", None):
        y = hf.exchange(leaves, activation=activation)
        g = way(torch.randn(2, 3, 6, width))
        expected = torch.autograd.grad(hf.exchange(leaves, activation=activation, backend="reference"), leaves, g)
        torch.testing.assert_close(torch.autograd.grad(y, leaves, g), expected, check_stride=False)


def test_a_single_column_with_any_stride():
    """The last stride of a gradient of width 1 may be anything, and then said that channels are not innermost."""
    x = torch.randn(1, 4, 6, 1).contiguous(memory_format=torch.channels_last).requires_grad_()
    low = torch.randn(1, 4, 3, 1).contiguous(memory_format=torch.channels_last).requires_grad_()
    for stride in (0, 1, 4, 7):
        g = torch.randn(24).as_strided((1, 4, 6, 1), (24, 1, 4, stride))
        for output in (None, torch.randn(24).as_strided(g.shape, g.stride()), torch.randn(1, 4, 6, 1)):
            found = backward(g, output, [3, 1], "bilinear", False, False)
            expected = autograd.exchange_backward(g, output, [3, 1], "bilinear", False, False)
            torch.testing.assert_close(found, expected)
        found = torch.autograd.grad(hf.exchange([x, low]), (x, low), g)
        expected = torch.autograd.grad(hf.exchange([x, low], backend="reference"), (x, low), g)
        torch.testing.assert_close(found, expected, check_stride=False)


def test_empty_batch():
    g, y = make((0, 4, 8, 8), torch.float32, torch.contiguous_format)
    assert [tuple(t.shape) for t in backward(g, y, [4, 4], "bilinear", False, True)] == [(0, 4, 4, 4), (0, 4, 8, 8)]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("same", [True, False])
def test_opcheck(same, layout):
    g, y = make((2, 3, 8, 6), torch.float64, layout)
    for output in (y, y.contiguous(), y[:, :, :, :1].expand(y.shape)):
        for grad in (g, g.transpose(2, 3).contiguous().transpose(2, 3), g[:, :1].expand(g.shape), g[:0]):
            arguments = grad.detach().requires_grad_(), output[: grad.shape[0]], [4, 3, 2, 2], "bilinear", False, same
            torch.library.opcheck(torch.ops.hrnet_fast.exchange_backward, arguments)


def streams(dtype=torch.float64, channels=3):
    generator = torch.Generator().manual_seed(9)
    sizes = ((8, 6), (8, 6), (4, 3), (2, 2))
    return [torch.randn(2, channels, *s, generator=generator, dtype=dtype).requires_grad_() for s in sizes]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("activation", ["relu", None])
def test_first_and_second_derivatives(mode, activation, layout, backend):
    def function(*x):
        return hf.exchange(x, mode=mode[0], align_corners=mode[1], activation=activation, backend=backend)

    x = [t.detach().contiguous(memory_format=layout).requires_grad_() for t in streams()]
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_what_is_saved_for_the_backward():
    """Nothing of full resolution but the output; no input without a weight; without a ReLU nothing at all."""
    for activation, kept in (("relu", [(2, 3, 8, 6)]), (None, [])):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: (saved.append(t), t)[1], lambda t: t):
            y = hf.exchange(streams(), activation=activation)
        assert [tuple(t.shape) for t in saved] == kept
        if kept:
            assert saved[0].data_ptr() == y.data_ptr()


def test_inputs_of_full_size_share_their_gradient():
    x = streams()
    first, second, *_ = torch.autograd.grad(hf.exchange(x).sum(), x)
    assert first.data_ptr() == second.data_ptr()
    assert torch.equal(first, second)


def test_only_some_inputs_want_gradients():
    x = streams()
    for wanted in ((0,), (2,), (1, 3)):
        leaves = [t.detach().requires_grad_(j in wanted) for j, t in enumerate(x)]
        hf.exchange(leaves).square().sum().backward()
        full = [t.detach().requires_grad_() for t in x]
        hf.exchange(full).square().sum().backward()
        for j, (leaf, other) in enumerate(zip(leaves, full, strict=True)):
            assert (leaf.grad is not None) == (j in wanted)
            if j in wanted:
                torch.testing.assert_close(leaf.grad, other.grad)


def reference_unit(x):
    y = x[0] + x[1]
    for t in x[2:]:
        y = y + F.interpolate(t, x[0].shape[2:], mode="bilinear", align_corners=False)
    return F.relu(y)


def test_checkpointing_and_functional_gradients():
    x = streams()
    expected = torch.autograd.grad(reference_unit(x).square().sum(), x)
    again = torch.autograd.grad(checkpoint(lambda *t: hf.exchange(t), *x, use_reentrant=False).square().sum(), x)
    functional = torch.func.grad(lambda t: hf.exchange(t).square().sum())([t.detach() for t in x])
    for a, b, c in zip(expected, again, functional, strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, a)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_forward_and_backward(dynamic):
    compiled = torch.compile(lambda *t: hf.exchange(t), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for crop in (8, 6):
        x = [t.detach()[..., :crop, :].requires_grad_() if t.shape[2] == 8 else t for t in streams()]
        expected = torch.autograd.grad(reference_unit(x).square().sum(), x)
        found = torch.autograd.grad(compiled(*x).square().sum(), x)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a)


def test_autocast():
    x = [t.detach().float().requires_grad_() for t in streams(channels=8)]
    with torch.autocast("cpu", torch.bfloat16):
        y = hf.exchange(x)
    assert y.dtype == torch.bfloat16
    expected = torch.autograd.grad(reference_unit(x).sum(), x)
    for a, b in zip(torch.autograd.grad(y.float().sum(), x), expected, strict=True):
        assert a.dtype == torch.float32
        assert relative_error(a, b) < 3e-2


def test_a_unit_trains_as_its_plain_form():
    """Two steps of SGD in float64: parameters and statistics agree."""
    from hrnet_fast.nn import PlainExchangeUnit

    torch.manual_seed(3)
    channels = [6, 12, 24]
    plain = PlainExchangeUnit(channels).double().train()
    fast = ExchangeUnit(channels).double().train()
    fast.load_state_dict(plain.state_dict())
    x = [torch.randn(2, c, 16 >> j, 12 >> j, dtype=torch.float64) for j, c in enumerate(channels)]
    for unit in (plain, fast):
        optimizer = torch.optim.SGD(unit.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            sum(y.square().mean() for y in unit([t.clone() for t in x])).backward()
            optimizer.step()
    for (name, a), b in zip(plain.state_dict().items(), fast.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-11, msg=name)
