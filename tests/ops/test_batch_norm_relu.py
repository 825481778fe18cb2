"""The kernel for BatchNorm and ReLU in training: against torch's own in float64, and as autograd sees it."""

import pytest
import torch
import torch.nn.functional as F

from hrnet_fast.ops import library
from hrnet_fast.ops.batch_norm_relu import batch_norm
from hrnet_fast.tolerances import OPERATOR, relative_error

pytestmark = pytest.mark.skipif(library.extension_error is not None, reason=str(library.extension_error))
EPS = 1e-3
# [N, H, W] and the widths of the segments: one channel, less and more than a vector, more than a block of vectors,
# fewer pixels than tasks
SHAPES = (
    ((2, 16, 12), (18,)),
    ((1, 33, 7), (36, 18, 18)),
    ((2, 5, 9), (1, 2, 5)),
    ((1, 2, 3), (70, 130)),
    ((3, 40, 40), (48, 3)),
    ((1, 1, 2), (16, 64, 33)),
)


def make(shape, widths, dtype):
    generator = torch.Generator().manual_seed(5)

    def random(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    (n, h, w), c = shape, sum(widths)
    x = (random(n, c, h, w) * (1 + random(c, 1, 1).abs()) + 3 * random(c, 1, 1)).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    wide = torch.promote_types(dtype, torch.float32)
    vectors = random(c).to(wide), random(c).to(wide), random(c).to(wide), random(c).abs().add(0.5).to(wide)
    grads = [random(n, k, h, w).to(dtype).contiguous(memory_format=torch.channels_last) for k in widths]
    return x, vectors, grads, [s % 2 == 0 for s in range(len(widths))]


def expected(x, weight, bias, widths, relu, given):
    mean, var = given or (None, None)
    y = F.batch_norm(x, mean, var, weight, bias, given is None, 0.0, EPS)
    return [F.relu(part) if follows else part for part, follows in zip(y.split(widths, 1), relu, strict=True)]


@pytest.mark.parametrize("given", [False, True], ids=["batch", "given"])
@pytest.mark.parametrize("dtype", OPERATOR, ids=lambda d: str(d).removeprefix("torch."))
def test_against_torch(dtype, given, monkeypatch):
    for capability in torch.ops.hrnet_fast.cpu_capabilities().split():
        monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", capability)
        for shape, widths in SHAPES:
            x, (weight, bias, mean, var), grads, relu = make(shape, widths, dtype)
            leaves = [t.requires_grad_() for t in (x, weight, bias)]
            fixed = (mean, var) if given else None
            parts, moments = batch_norm(x, weight, bias, widths, relu, EPS, fixed)
            exact = [t.detach().double().requires_grad_() for t in leaves]
            truth = expected(*exact, widths, relu, tuple(t.double() for t in fixed) if fixed else None)
            for part, true in zip(parts, truth, strict=True):
                assert part.dtype == dtype
                assert part.is_contiguous(memory_format=torch.channels_last)
                assert relative_error(part, true) < OPERATOR[dtype], (shape, widths, capability)
            if not given:
                true_var, true_mean = torch.var_mean(exact[0], (0, 2, 3), correction=0)
                assert relative_error(moments[0], true_mean) < OPERATOR[weight.dtype]
                assert relative_error(moments[1], true_var) < OPERATOR[weight.dtype]
            # where the kernel's value was rounded to the other side of 0 the ReLU's gradient is another one: same masks
            masked = [torch.where(part <= 0, 0, g) if r else g for g, part, r in zip(grads, parts, relu, strict=True)]
            linear = expected(
                *exact, widths, [False] * len(widths), tuple(t.double() for t in fixed) if fixed else None
            )
            true = torch.autograd.grad(linear, exact, [g.double() for g in masked])
            for a, b in zip(torch.autograd.grad(parts, leaves, grads), true, strict=True):
                # two pixels of a channel nearly cancel in the gradient of x
                loose = 100 if shape == (1, 1, 2) else 1
                assert relative_error(a, b) < loose * OPERATOR[a.dtype], (shape, widths, capability)


def test_a_large_mean_costs_no_digits():
    """A plain sum of squares in float32 loses six of its seven here."""
    x = (torch.randn(2, 20, 30, 30) * 0.1 + 100).contiguous(memory_format=torch.channels_last)
    _, (mean, var) = batch_norm(x, torch.ones(20), torch.zeros(20), [20], [False], EPS)
    true_var, true_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert relative_error(var, true_var) < 1e-5
    assert relative_error(mean, true_mean) < 1e-7


def test_same_bits_for_any_number_of_threads():
    x, (weight, bias, *_), grads, relu = make((2, 41, 37), (18, 40), torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
            parts, moments = batch_norm(*leaves, (18, 40), relu, EPS)
            results.append([*parts, *moments, *torch.autograd.grad(parts, leaves, grads)])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("given", [False, True], ids=["batch", "given"])
def test_first_and_second_derivatives(given):
    x, (weight, bias, mean, var), _, _ = make((2, 3, 2), (2, 3), torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]

    def function(*tensors):
        return tuple(batch_norm(*tensors, (2, 3), (True, False), EPS, (mean, var) if given else None)[0])

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_functional_gradients_and_vmap():
    x, (weight, bias, *_), _, _ = make((2, 4, 3), (2, 3), torch.float64)

    def function(*tensors):
        return sum(part.square().sum() for part in batch_norm(*tensors, (2, 3), (True, False), EPS)[0])

    found = torch.func.grad(function, (0, 1, 2))(x, weight, bias)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    for a, b in zip(found, torch.autograd.grad(function(*leaves), leaves), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(lambda t: batch_norm(t, weight, bias, (2, 3), (True, False), EPS)[0][0])(x[None])


def test_nan_and_infinity_stay_in_their_channel():
    x = torch.randn(1, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    x[0, 1, 2, 2], x[0, 2, 0, 0] = torch.nan, torch.inf
    part = batch_norm(x, torch.ones(4), torch.zeros(4), [4], [True], EPS)[0][0]
    true = F.relu(F.batch_norm(x, None, None, torch.ones(4), torch.zeros(4), True, 0.0, EPS))
    assert torch.equal(part.isnan(), true.isnan())
    torch.testing.assert_close(part[:, [0, 3]], true[:, [0, 3]])


@pytest.mark.parametrize("given", [False, True], ids=["batch", "given"])
def test_opcheck(given):
    x, (weight, bias, mean, var), grads, _ = make((2, 4, 3), (2, 3), torch.float32)
    fixed = (mean, var) if given else (None, None)
    checks = "test_schema", "test_faketensor", "test_aot_dispatch_dynamic"
    torch.library.opcheck(torch.ops.hrnet_fast.batch_norm, (x, weight, bias, *fixed, [2, 3], 1, EPS), test_utils=checks)
    torch.library.opcheck(
        torch.ops.hrnet_fast.batch_norm_backward, (grads, x, weight, bias, mean, var, 1, EPS, not given),
        test_utils=checks,
    )  # fmt: skip


def test_wrong_arguments():
    x, (weight, bias, mean, _), grads, _ = make((2, 4, 3), (2, 3), torch.float32)
    op, back = torch.ops.hrnet_fast.batch_norm, torch.ops.hrnet_fast.batch_norm_backward
    for arguments, message in (
        ((x[0], weight, bias, None, None, [5], 0, EPS), r"\[N, C, H, W\]"),
        ((x[:0], weight, bias, None, None, [5], 0, EPS), "not empty"),
        ((x.contiguous(), weight, bias, None, None, [5], 0, EPS), "channels_last"),
        ((x, weight[:4], bias, None, None, [5], 0, EPS), "weight of 5 channels"),
        ((x, weight, bias.double(), None, None, [5], 0, EPS), "bias of 5 channels"),
        ((x, weight, bias, mean, None, [5], 0, EPS), "mean and variance"),
        ((x, weight, bias, None, None, [2, 2], 0, EPS), "4 channels for 5"),
        ((x, weight, bias, None, None, [5, 0], 0, EPS), "one channel or more"),
        ((x, weight, bias, None, None, [1] * 9, 0, EPS), "at most 8"),
        ((x.int(), weight, bias, None, None, [5], 0, EPS), "float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)
    with pytest.raises(RuntimeError, match="does not fit x"):
        back([grads[0], grads[1][:, :, :2]], x, weight, bias, mean, mean, 0, EPS, True)
