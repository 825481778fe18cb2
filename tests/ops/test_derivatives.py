"""Derivatives and transforms beyond plain backward: forward mode, vmap, torch.func, and vmap of gradients."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

import hrnet_fast as hf
from hrnet_fast import ExchangeUnit, SegmentationHead
from hrnet_fast.models import randomize
from hrnet_fast.tolerances import relative_error

SHAPES = (1, 2, 4, 4), (1, 3, 2, 2), (2, 3), (2,)  # a full-size input, a lower one, its weight, the bias
PROJECTION = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def drawn(seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*batch, *shape, dtype=torch.float64, generator=generator) for shape in SHAPES)


def function(activation, projection, backend="auto"):
    def call(x, low, weight, bias):
        return hf.exchange(
            [x, low], [None, weight], bias, activation=activation, projection=projection, backend=backend
        )

    return call


@pytest.fixture(params=["relu", "linear", "relu-projected"])
def pair(request):
    """The operator, and its reference, of which torch knows everything."""
    activation, _, projected = request.param.partition("-")
    settings = "relu" if activation == "relu" else None, PROJECTION if projected else None
    return function(*settings), function(*settings, "reference")


def scalar(f):
    return lambda *tensors: f(*tensors).square().sum()


def by_dual_numbers(f):
    with forward_ad.dual_level():
        y = f(*map(forward_ad.make_dual, drawn(), drawn(1)))
        return forward_ad.unpack_dual(y).tangent


def tangents_of_gradients(f):
    """Forward over reverse, where the forward ran outside of the level."""
    leaves = [t.requires_grad_() for t in drawn()]
    y = f(*leaves)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(y), torch.linspace(0, 1, y.numel()).view_as(y).to(y.dtype))
        return [forward_ad.unpack_dual(g).tangent for g in torch.autograd.grad(y, leaves, upstream)]


ALL = 0, 1, 2, 3
TRANSFORMS = {
    "jvp": lambda f: jvp(f, drawn(), drawn(1))[1],
    "dual numbers": by_dual_numbers,
    "jacfwd": lambda f: jacfwd(f, ALL)(*drawn()),
    "jacrev": lambda f: jacrev(f, ALL)(*drawn()),
    "hessian": lambda f: hessian(scalar(f), ALL)(*drawn()),
    "jacrev of jacrev": lambda f: jacrev(jacrev(scalar(f), ALL), ALL)(*drawn()),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(scalar(f), ALL), ALL)(*drawn()),
    "grad of grad": lambda f: grad(lambda *t: scalar(grad(scalar(f)))(*t))(*drawn()),
    "vmap": lambda f: vmap(f)(*drawn(batch=(3,))),
    "vmap of grad": lambda f: vmap(grad(scalar(f), ALL))(*drawn(batch=(3,))),
    "gradients batched by autograd": lambda f: torch.autograd.functional.jacobian(f, drawn(), vectorize=True),
    "second ones": lambda f: torch.autograd.functional.hessian(scalar(f), drawn(), vectorize=True),
    "forward over reverse": tangents_of_gradients,
    "compiled jvp": lambda f: torch.compile(lambda *t: jvp(f, t, drawn(1))[1], backend="aot_eager")(*drawn()),
    "compiled vmap": lambda f: torch.compile(lambda *t: vmap(f)(*t), backend="aot_eager")(*drawn(batch=(3,))),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.*vectorize.*experimental")
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms(pair, transform):
    torch._dynamo.reset()
    found, expected = (tree_leaves(transform(f)) for f in pair)
    assert all(t.abs().sum() > 0 for t in expected[:1])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_vmap_in_and_out_dims(pair):
    f, _ = pair
    x, low, weight, bias = drawn(batch=(3,))
    found = vmap(f, in_dims=(0, 1, None, None), out_dims=2)(x, low.movedim(0, 1), weight[0], bias[0])
    expected = torch.stack([f(a, b, weight[0], bias[0]) for a, b in zip(x, low, strict=True)], 2)
    torch.testing.assert_close(found, expected)


def test_gradcheck_in_every_direction(pair):
    f, _ = pair
    leaves = [t.requires_grad_() for t in drawn()]
    assert torch.autograd.gradcheck(f, leaves, check_forward_ad=True, check_batched_grad=True,
                                    check_batched_forward_grad=True)  # fmt: skip
    assert torch.autograd.gradgradcheck(f, leaves, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "contiguous"])
def test_half_precision_and_layout_in_forward_mode(layout):
    x = torch.randn(2, 4, 6, 5).bfloat16().contiguous(memory_format=layout)
    y, tangent = jvp(lambda t: hf.exchange([t, t[:, :, :3, :2]]), (x,), (x,))
    assert y.dtype == tangent.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(tangent, y)  # of a function that is linear along its argument


def test_named_kernels_refuse():
    for call in (
        lambda: jvp(lambda t: hf.exchange([t], backend="cpu"), drawn()[:1], drawn()[:1]),
        lambda: vmap(lambda t: hf.exchange([t], backend="cpu"))(drawn(batch=(2,))[0]),
    ):
        with pytest.raises(RuntimeError, match="backend 'cpu' cannot serve this call: .*backend='auto'"):
            call()


CHANNELS = 4, 8, 16


def streams():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, c, 8 >> j, 8 >> j, generator=generator) for j, c in enumerate(CHANNELS)]


@pytest.mark.parametrize("wanted", [True, False], ids=["trainable", "frozen"])
@pytest.mark.parametrize("make", [lambda: ExchangeUnit(CHANNELS), lambda: SegmentationHead(CHANNELS, 5)],
                         ids=["unit", "head"])  # fmt: skip
def test_modules_in_forward_mode_and_vmap(make, wanted):
    """Evaluated, their convolutions are folded, and run by operators that drop tangents."""
    torch.manual_seed(0)
    module = make().eval().requires_grad_(wanted)
    x = streams()
    module(x)  # folds are there

    def run(*given):
        return tree_leaves(module(list(given)))

    def plain(*given):
        return tree_leaves(module._plain(list(given)))

    tangents = tuple(torch.randn_like(t) for t in x)
    for transform in (
        lambda f: jvp(f, tuple(x), tangents)[1],
        lambda f: vmap(f)(*[t[:, None] for t in x]),
        lambda f: jacfwd(lambda s: f(x[0], x[1], s)[0].mean((1, 2, 3)))(x[2]),
    ):
        for a, b in zip(tree_leaves(transform(run)), tree_leaves(transform(plain)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            assert a.abs().max() > 0


def test_gradients_of_every_sample():
    torch.manual_seed(0)
    unit = ExchangeUnit(CHANNELS).eval()
    parameters = {name: p.detach() for name, p in unit.named_parameters()}

    def loss(parameters, *sample):
        return sum(y.square().mean() for y in functional_call(unit, parameters, ([s[None] for s in sample],)))

    found = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, *streams())
    for i in range(2):
        alone = torch.autograd.grad(loss(dict(unit.named_parameters()), *[s[i] for s in streams()]), unit.parameters())
        for a, b in zip(found.values(), alone, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("task", ["segmentation", "pose", "classification"])
def test_whole_models_have_tangents(task):
    plain, fast = (randomize(hf.create_model("hrnet_w18_small", task=task, fast=fast)).eval() for fast in (False, True))
    fast.requires_grad_(False)
    x, direction = torch.randn(2, 1, 3, 64, 64).unbind()
    fast(x)  # folds are there
    found, expected = (jvp(lambda t, m=m: tree_leaves(m(t))[0], (x,), (direction,))[1] for m in (fast, plain))
    assert expected.norm() > 0
    assert relative_error(found, expected) < 1e-4


def test_optimized_models_refuse():
    model = ExchangeUnit(CHANNELS).eval().requires_grad_(False)
    fast = hf.optimize(model, streams())
    with pytest.raises(RuntimeError, match="call the model that it was made of"):
        jvp(lambda x: fast([x, *streams()[1:]])[0], (streams()[0],), (streams()[0],))


def test_class_maps_are_batched():
    scores = torch.randn(3, 1, 5, 4, 4)
    found = vmap(lambda s: hf.interpolate_argmax(s, (8, 8)))(scores)
    assert torch.equal(found, torch.stack([hf.interpolate_argmax(s, (8, 8)) for s in scores]))
