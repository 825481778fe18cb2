"""torch.ops.hrnet_fast under transforms: right, or an error; an operator called by its name has no other guard."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import jacfwd, jvp, vmap

from hrnet_fast.ops import library
from ops.test_derivatives import drawn, function, scalar

SETTINGS = 4, 4, "bilinear", False, True, False


def raw(op):
    return lambda x, low, weight, bias: op([x, low], [weight], 2, bias, None, None, *SETTINGS)


def raw_backward(grad, output):
    return torch.ops.hrnet_fast.exchange_backward(grad, output, [2, 2, 1, 1], "bilinear", False, True)


def refusing(operator, *given):
    """Calls in forward mode of an operator that torch would let drop the tangents of its arguments."""

    def dual(grad):
        with forward_ad.dual_level(), torch.set_grad_enabled(grad):
            return operator(*(forward_ad.make_dual(t, t) for t in given))

    return [
        lambda: jvp(operator, given, given),
        lambda: jacfwd(operator)(*given),
        lambda: dual(True),
        lambda: dual(False),
    ]


@pytest.mark.parametrize("name", library.exchanges)
def test_raw_operators_refuse_tangents(name):
    """torch.library would drop them, and the derivative would be zero."""
    x, operator = drawn(), raw(getattr(torch.ops.hrnet_fast, name))
    for call in refusing(operator, *x):
        with pytest.raises(NotImplementedError, match=r"has no forward-mode derivative; hrnet_fast\.exchange has one"):
            call()
    if name in library.OPERATORS:
        with forward_ad.dual_level():  # nothing carries a tangent
            assert operator(*x).shape == x[0].shape


@pytest.mark.parametrize("name", library.BACKWARD_OPERATORS)
def test_raw_backward_operators_refuse_tangents(name):
    def operator(grad, output):
        return getattr(torch.ops.hrnet_fast, name)(grad, output, [2, 2, 1, 1], "bilinear", False, True)

    for call in refusing(operator, *drawn()[:1] * 2):
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
            call()


@pytest.mark.parametrize("name", library.OPERATORS)
def test_raw_operators_have_gradients(name):
    operator = raw(getattr(torch.ops.hrnet_fast, name))
    leaves = [t.requires_grad_() for t in drawn()]
    found, expected = (torch.autograd.grad(scalar(f)(*leaves), leaves) for f in (operator, function("relu", None)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradgradcheck(operator, leaves)


def without_derivatives():
    """Of every operator that has none: a call with all of its tensors of floating dtype."""
    ops = torch.ops.hrnet_fast
    x = torch.randn(1, 4, 2, 3).contiguous(memory_format=torch.channels_last)
    ones, words = torch.ones(4), torch.zeros(0, dtype=torch.int64)
    return {
        "batch_norm": (lambda *t: ops.batch_norm(*t, None, None, [4], 1, 1e-5), (x, ones, ones)),
        "batch_norm_backward": (lambda g, *t: ops.batch_norm_backward([g], *t, 1, 1e-5, True), (x, x, *[ones] * 4)),
        "run_program": (lambda *t: ops.run_program(words, torch.empty(0, dtype=torch.uint8), t), (x, ones)),
        "time_program": (lambda *t: ops.time_program(words, torch.empty(0, dtype=torch.uint8), t, words.clone()), (x,)),
        "pack_convolution": (lambda w, to: ops.pack_convolution(w, 0, to), (torch.randn(6, 1, 1, 1), torch.zeros(6))),
        "pack_tiles": (lambda w: ops.pack_tiles(w, torch.zeros(0, dtype=torch.uint8)), (torch.randn(6, 1, 1, 1),)),
    }


@pytest.mark.parametrize("name", without_derivatives())
def test_operators_without_derivatives_refuse(name):
    """In reverse mode as well: torch warns, in the backward, or says nothing."""
    operator, given = without_derivatives()[name]
    for call in (*refusing(operator, *given), lambda: operator(*(t.clone().requires_grad_() for t in given))):
        with pytest.raises(NotImplementedError, match=f"torch.ops.hrnet_fast.{name} has no derivative"):
            call()


def test_every_operator_says_what_it_does_with_tangents():
    """A new one is in one of the tests above, or computes nothing that has a derivative; those for GPUs need one."""
    known = {
        *library.exchanges,
        *library.BACKWARD_OPERATORS,
        *without_derivatives(),
        "interpolate_argmax",
        "exchange_sums",
        "exchange_backward_sums",
    }
    names = [n.partition("::")[2] for n in torch._C._dispatch_get_all_op_names() if n.startswith("hrnet_fast::")]
    schemas = {name: getattr(torch.ops.hrnet_fast, name).default._schema for name in names}
    assert {name for name, s in schemas.items() if any("Tensor" in str(a.type) for a in s.arguments)} == known
    for name in known - {"interpolate_argmax"}:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"hrnet_fast::{name}", "Autograd"), name


@pytest.mark.parametrize("name", ["exchange", "exchange_fwd"])
def test_raw_operators_are_batched(name):
    operator = raw(getattr(torch.ops.hrnet_fast, name))
    several = drawn(batch=(3,))
    for dims in ((0, 0, 0, 0), (0, None, None, None), (None, None, 0, None)):
        given = [t if d == 0 else t[0] for t, d in zip(several, dims, strict=True)]
        expected = [operator(*(t[i] if d == 0 else t for t, d in zip(given, dims, strict=True))) for i in range(3)]
        torch.testing.assert_close(vmap(operator, dims)(*given), torch.stack(expected))
    found = vmap(raw_backward)(several[0], several[0].relu())
    for i in range(3):
        expected = raw_backward(several[0][i], several[0][i].relu())
        torch.testing.assert_close([t[i] for t in found], expected)
