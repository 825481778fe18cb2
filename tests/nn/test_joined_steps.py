"""Exchange units in training with similar convolutions side by side: the same training as plain, whatever changes."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from hrnet_fast import ExchangeUnit
from hrnet_fast.nn import PlainExchangeUnit
from hrnet_fast.nn.side_by_side import Joined, Step
from hrnet_fast.ops import library
from hrnet_fast.tolerances import relative_error

pytestmark = pytest.mark.skipif(library.extension_error is not None, reason=str(library.extension_error))
CHANNELS = [6, 12, 24, 48]


def units(dtype=torch.float64) -> tuple[PlainExchangeUnit, ExchangeUnit]:
    """Plain and fast, channels_last, with the same random parameters and statistics."""
    torch.manual_seed(3)
    plain, fast = PlainExchangeUnit(CHANNELS), ExchangeUnit(CHANNELS)
    for norm in norms(plain):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    fast.load_state_dict(plain.state_dict())
    return tuple(unit.to(dtype, memory_format=torch.channels_last).train() for unit in (plain, fast))


def norms(unit) -> list[nn.BatchNorm2d]:
    return [m for m in unit.modules() if isinstance(m, nn.BatchNorm2d)]


def streams(dtype=torch.float64, grad=True, batch=2, size=16):
    generator = torch.Generator().manual_seed(9)
    made = [
        torch.randn(batch, c, size >> j, size >> j, generator=generator, dtype=torch.float64).to(dtype)
        for j, c in enumerate(CHANNELS)
    ]
    return [x.contiguous(memory_format=torch.channels_last).requires_grad_(grad) for x in made]


def steps(unit, x, count=2):
    """Outputs of the last of some calls, gradients through it, and buffers."""
    for _ in range(count):
        y = unit(list(x))
    wanted = [t for t in (*x, *unit.parameters()) if t.requires_grad]
    generator = torch.Generator().manual_seed(4)
    upstream = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in y]
    return [*y, *torch.autograd.grad(y, wanted, upstream), *unit.buffers()]


def assert_same(plain, fast, x=None):
    x = streams() if x is None else x
    for a, b in zip(steps(plain, x), steps(fast, x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-10)


@pytest.fixture
def calls(monkeypatch):
    """How many convolutions each joined call stands for."""
    made, real = [], Joined.__call__

    def counted(self, x):
        made.append(len(self._widths))
        return real(self, x)

    monkeypatch.setattr(Joined, "__call__", counted)
    return made


def everything_frozen(unit):
    for norm in norms(unit):
        norm.eval()


def some_frozen(unit):
    for norm in norms(unit)[::3]:
        norm.eval()


def frozen_parameters(unit):
    everything_frozen(unit)
    for norm in norms(unit):
        norm.requires_grad_(False)


def some_convolutions_fixed(unit):
    for module in list(unit.modules())[::4]:
        if isinstance(module, nn.Conv2d):
            module.requires_grad_(False)


def averages(unit):
    for norm in norms(unit):
        norm.momentum = None


def another_momentum(unit):
    norms(unit)[2].momentum = 0.3


def no_statistics(unit):
    for norm in norms(unit)[:4]:
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        norm.num_batches_tracked = None


def another_eps(unit):
    norms(unit)[0].eps = 0.1


def a_bias(unit):
    conv = unit[0][2][0]
    conv.bias = nn.Parameter(torch.linspace(-1, 1, conv.out_channels, dtype=torch.float64))


def another_convolution(unit):
    torch.manual_seed(8)
    unit[1][3][0] = nn.Conv2d(CHANNELS[3], CHANNELS[1], 1, bias=False).double()


def normalized_weight(unit):
    parametrizations.weight_norm(unit[2][0][0][0])


def old_weight_norm(unit):
    torch.nn.utils.weight_norm(unit[2][0][0][0])


def no_affine(unit):
    unit[1][0][0][1] = nn.BatchNorm2d(CHANNELS[1], affine=False).double()


def another_norm(unit):
    unit[0][1][1] = nn.InstanceNorm2d(CHANNELS[0]).double()


CHANGES = (everything_frozen, some_frozen, frozen_parameters, some_convolutions_fixed, averages, another_momentum,
           no_statistics, another_eps, a_bias, another_convolution, normalized_weight, old_weight_norm, no_affine,
           another_norm)  # fmt: skip


def test_the_same_training_and_fewer_convolutions(calls):
    _, fast = units()
    steps(fast, streams())
    # forward twice; strided: 3 + 2 + 1 first steps and 4 later ones; 1x1: 1 + 2 + 3
    assert sorted(calls) == sorted([3, 2, 1, 1, 1, 1, 1, 1, 2, 3] * 2)
    assert_same(*units())
    assert_same(*units(), streams(grad=False))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_changed_modules(change, when):
    """Before the first step, and after one, when the structure has been looked at already."""
    plain, fast = units()
    if when == "after":
        assert_same(plain, fast)
    change(plain), change(fast)
    assert_same(plain, fast)


def inner_modules(unit):
    conv, norm, relu = unit[3][0][0]
    return {
        "path": unit[2][1],
        "step": unit[3][0][0],
        "convolution": conv,
        "norm": norm,
        "relu": relu,
        "up": unit[0][2],
        "up-norm": unit[0][2][1],
    }


@pytest.mark.parametrize("name", inner_modules(ExchangeUnit(CHANNELS)))
def test_hooks_run(name):
    _, fast = units()
    steps(fast, streams())
    seen, module = [], inner_modules(fast)[name]
    handle = module.register_forward_hook(lambda m, x, y: seen.append(y.shape))
    module.register_full_backward_hook(lambda m, g_in, g_out: seen.append(g_out[0].shape))
    steps(fast, streams(), count=1)
    assert len(seen) == 2 and seen[0] == seen[1]
    handle.remove()
    steps(fast, streams(), count=1)
    assert len(seen) == 3


def test_copies_train_by_themselves():
    plain, fast = units()
    assert_same(plain, fast)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for twin in (copy.deepcopy(fast), torch.load(file, weights_only=False)):
        before = [t.clone() for t in fast.state_dict().values()]
        assert_same(copy.deepcopy(plain), twin)
        assert all(map(torch.equal, before, fast.state_dict().values()))


def test_shared_convolutions_and_norms():
    """One path in two places: its gradient is the sum, its statistics are updated twice."""
    plain, fast = units()
    for unit in (plain, fast):
        unit[2][0][0] = unit[3][0][0]
    assert_same(plain, fast)


def test_gradients_add_up_over_calls():
    plain, fast = units()
    for unit in (plain, fast):
        for _ in range(2):
            sum(y.square().sum() for y in unit(streams(grad=False))).backward()
    for (name, p), q in zip(plain.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("form", ["contiguous", "half"])
def test_other_layouts_and_dtypes(form, calls):
    plain, fast = units()
    if form == "contiguous":
        assert_same(plain, fast, [x.detach().contiguous().requires_grad_() for x in streams()])
        assert not calls
        return
    assert_same(plain, fast)
    plain, fast, x = plain.float(), fast.bfloat16(), streams(torch.bfloat16, size=32)
    eager = copy.deepcopy(plain).bfloat16()
    exact, found, theirs = (
        steps(unit, [t.detach().to(next(unit.parameters()).dtype).requires_grad_() for t in x], 1)
        for unit in (plain, fast, eager)
    )
    assert [t.dtype for t in found] == [t.dtype for t in theirs]
    assert mean_error(found, exact) < 1.1 * mean_error(theirs, exact)


def mean_error(found, exact) -> float:
    """Over outputs, gradients and buffers; that of one tensor is a matter of chance in half precision."""
    errors = [relative_error(a.double(), b.double()) for a, b in zip(found, exact, strict=True)]
    return sum(errors) / len(errors)


def test_autocast(calls):
    plain, fast = units(torch.float32)
    exact = steps(copy.deepcopy(plain).double(), streams(size=32), 1)
    errors = []
    for unit in (plain, fast):
        x = streams(torch.float32, size=32)
        with torch.autocast("cpu", torch.bfloat16):
            found = steps(unit, x, 1)
        assert all(t.dtype == torch.float32 for t in found[4:-1] if t.is_floating_point())
        errors.append(mean_error(found, exact))
    assert calls
    assert found[0].dtype == torch.bfloat16
    assert errors[1] < 1.1 * errors[0]


def test_checkpointing():
    plain, fast = units()
    x = streams()
    kept = [
        torch.autograd.grad(
            sum(y.sin().sum() for y in checkpoint(lambda *t, u=u: u(list(t)), *x, use_reentrant=False)),
            [*x, *u.parameters()],
        )
        for u in (plain, fast)
    ]
    for a, b in zip(*kept, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-10)


def test_second_derivatives_and_functional_gradients():
    plain, fast = units()
    found = []
    for unit in (plain, fast):
        x = streams()
        first = torch.autograd.grad(sum(y.square().sum() for y in unit(list(x))), x, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        found.append(torch.autograd.grad(penalty, [*x, *unit.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-6)

    x = streams(grad=False)

    def loss(parameters, unit):
        return sum(y.square().sum() for y in torch.func.functional_call(unit, parameters, (x,)))

    everything_frozen(plain), everything_frozen(fast)  # torch.func does not let statistics be written in place
    found = [torch.func.grad(loss)(dict(unit.named_parameters()), unit) for unit in (plain, fast)]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-9)


def test_compiled_without_graph_breaks(calls):
    torch._dynamo.reset()
    torch.manual_seed(3)
    plain, fast = (
        kind(CHANNELS[:2]).double().to(memory_format=torch.channels_last) for kind in (PlainExchangeUnit, ExchangeUnit)
    )
    fast.load_state_dict(plain.state_dict())
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    for a, b in zip(steps(plain, streams()[:2]), steps(compiled, streams()[:2]), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-10)
    assert not calls  # the compiler joins what it wants to join


def test_one_value_per_channel_is_the_error_of_batchnorm():
    """With one pixel at the lowest resolution."""
    for unit in units():
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            unit(streams(batch=1, size=8))


def test_synchronized_norms_run_as_they_are():
    conv = nn.Conv2d(3, 4, 1, bias=False)
    assert Step(conv, nn.BatchNorm2d(4), False).joins()
    assert not Step(conv, nn.SyncBatchNorm(4), False).joins()
