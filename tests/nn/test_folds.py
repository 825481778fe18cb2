"""Folding BatchNorm, every way in which a fold must become stale, and the folded convolution."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hrnet_fast as hf
from hrnet_fast import ExchangeUnit, SegmentationHead, refold
from hrnet_fast.models import randomize
from hrnet_fast.nn import PlainExchangeUnit, PlainSegmentationHead
from hrnet_fast.nn.folds import FoldCache, fold, fold_modules, why_not_fold
from hrnet_fast.nn.module_fingerprint import Watch
from hrnet_fast.nn.prepared_conv import PreparedConv, why_not_onednn
from hrnet_fast.tolerances import OPERATOR, relative_error
from support.families import official
from support.families.common import BasicBlock

CHANNELS = [6, 8, 10]


def streams(dtype=torch.float32, batch=2, size=(12, 20)):
    generator = torch.Generator().manual_seed(0)
    result = []
    for channels in CHANNELS:
        result.append(torch.randn(batch, channels, *size, generator=generator).to(dtype))
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    return result


class Net(nn.Module):
    """An exchange unit and a head: everything that folds."""

    def __init__(self, fast: bool):
        super().__init__()
        self.fuse_layers = (ExchangeUnit if fast else PlainExchangeUnit)(CHANNELS)
        self.last_layer = (SegmentationHead if fast else PlainSegmentationHead)(CHANNELS, 5)

    def forward(self, x):
        if not isinstance(x, list):  # randomize hands in an image
            x = [F.interpolate(x[:, :1], (64 >> k, 64 >> k)).expand(-1, c, -1, -1) for k, c in enumerate(CHANNELS)]
        return self.last_layer(self.fuse_layers(x))


def evaluate(net, dtype=torch.float32):
    with torch.no_grad():
        return net(streams(dtype))


def check(net, dtype=torch.float32):
    """``net`` agrees with the plain form that has its present weights."""
    plain = Net(fast=False).to(dtype)
    plain.load_state_dict(net.state_dict())
    plain.train(net.training)
    # half precision: the plain form itself rounds after every step
    tolerance = OPERATOR[dtype] if dtype in (torch.float32, torch.float64) else 3e-2
    assert relative_error(evaluate(net, dtype), evaluate(plain, dtype)) < tolerance


@pytest.fixture
def net():
    """A randomized network in evaluation that has folded already."""
    net = randomize(Net(fast=True)).eval()
    check(net)
    assert net.fuse_layers._folds.get(net.fuse_layers) is not None
    assert net.last_layer._folds.get(net.last_layer) is not None
    return net


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "no-affine"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_fold_equals_convolution_and_batchnorm(dtype, bias, affine):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3, bias=bias), nn.BatchNorm2d(6, affine=affine)
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    conv, norm = conv.to(dtype).eval(), norm.to(dtype).eval()
    weight, shift = fold_modules(conv, norm)
    assert weight.dtype == shift.dtype == dtype
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    expected = copy.deepcopy(norm).double()(copy.deepcopy(conv).double()(x))
    assert relative_error(F.conv2d(x, weight.double(), shift.double()), expected) < OPERATOR[dtype]


def test_fold_keeps_the_dtype_of_the_convolution_beside_a_float32_norm():
    conv, norm = nn.Conv2d(4, 6, 1).bfloat16(), nn.BatchNorm2d(6).eval()
    assert {t.dtype for t in fold_modules(conv, norm)} == {torch.bfloat16}


def test_fold_takes_any_scale():
    """InPlaceABN scales by abs(weight) + eps, which its caller hands in."""
    weight, gamma, var = torch.ones(2, 1, 1, 1), torch.tensor([-2.0, 3.0]), torch.full((2,), 4.0)
    folded, _ = fold(weight, None, torch.zeros(2), var, gamma.abs() + 1e-5, None, 0.0)
    torch.testing.assert_close(folded.flatten(), torch.tensor([1.0, 1.5]), atol=1e-5, rtol=0)


def test_why_not_fold_names_the_reason():
    conv, norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2).eval()
    assert why_not_fold(conv, norm) is None
    assert "statistics" in why_not_fold(conv, nn.BatchNorm2d(2))
    assert "GroupNorm" in why_not_fold(conv, nn.GroupNorm(1, 2))
    assert "reflect" in why_not_fold(nn.Conv2d(2, 2, 1, padding_mode="reflect"), norm)
    assert "Linear" in why_not_fold(nn.Linear(2, 2), norm)


def optimizer_step(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    net(streams()).square().mean().backward()
    optimizer.step()


def load_state_dict(net):
    net.load_state_dict(randomize(Net(fast=True), seed=1).state_dict())


def assign_state_dict(net):
    net.load_state_dict(randomize(Net(fast=True), seed=1).state_dict(), assign=True)


def swapped_parameter(net):
    conv = net.fuse_layers[0][1][0]
    conv.weight = nn.Parameter(torch.randn_like(conv.weight))


def swapped_data(net):
    for parameter in net.parameters():
        parameter.data = torch.randn_like(parameter)


def swapped_module(net):
    net.fuse_layers[0][1][1] = nn.BatchNorm2d(CHANNELS[0]).eval()


def swapped_buffer(net):
    net.last_layer[1].running_var = torch.rand(sum(CHANNELS)) + 0.5


def changed_buffer(net):
    net.fuse_layers[2][0][1][1].running_mean.add_(1.0)


def changed_classifier(net):
    with torch.no_grad():
        net.last_layer[3].weight.mul_(-1.0)


def train_forward(net):
    net.train()
    evaluate(net)
    net.eval()


def train_forward_of_one_norm(net):
    """BatchNorm's kernel writes the running statistics without raising their version."""
    norm = net.fuse_layers[0][2][1]
    norm.train()
    norm(torch.randn(2, CHANNELS[0], 3, 3) + 5.0)
    norm.eval()


def half_and_back(net):
    net.half().float()


def data_write_and_refold(net):
    for parameter in net.parameters():
        parameter.data.mul_(1.5)
    assert refold(net) is net


CHANGES = [optimizer_step, load_state_dict, assign_state_dict, swapped_parameter, swapped_data, swapped_module,
           swapped_buffer, changed_buffer, changed_classifier, train_forward, train_forward_of_one_norm, half_and_back,
           data_write_and_refold]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_fold_is_never_stale(net, change):
    before = evaluate(net)
    change(net)
    check(net)
    if change is not half_and_back:
        assert relative_error(evaluate(net), before) > 1e-3  # the change is one that a stale fold would have missed


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_fold_follows_the_dtype(net, dtype):
    check(net.to(dtype), dtype)
    assert evaluate(net, dtype).dtype == dtype


def test_a_fold_follows_swap_tensors(net):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        check(net.double(), torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_a_changed_eps_folds_again(net):
    before = evaluate(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1.0
    after = evaluate(net)
    assert relative_error(after, before) > 1e-2
    assert relative_error(after, evaluate(refold(net))) == 0


def test_an_unchanged_network_folds_once(net):
    first = net.fuse_layers._folds.get(net.fuse_layers)
    evaluate(net)
    assert net.fuse_layers._folds.get(net.fuse_layers) is first


def test_train_drops_the_fold(net):
    net.train()
    assert net.fuse_layers._folds._state is None and net.last_layer._folds._state is None


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"]
)
def test_a_copy_folds_for_itself(net, clone):
    twin = clone(net)
    assert twin.fuse_layers._folds._state is None
    load_state_dict(twin)
    check(twin)
    check(net)


def test_state_dicts_know_nothing_of_folds(net):
    assert list(net.state_dict()) == list(Net(fast=False).state_dict())


def test_parameters_made_under_inference_mode():
    with torch.inference_mode():
        net = randomize(Net(fast=True)).eval()
        check(net)
        swapped_parameter(net)
        check(net)
    check(net)


def test_a_fold_made_under_inference_mode_serves_gradients_later(net):
    refold(net)
    with torch.inference_mode():
        net(streams())
    inputs = [x.requires_grad_() for x in streams()]
    net.requires_grad_(False)(inputs).sum().backward()
    assert all(x.grad is not None for x in inputs)


def test_hooks_on_inner_modules_run(net):
    seen = []
    net.fuse_layers[1][0][0][0].register_forward_hook(lambda module, args, output: seen.append("exchange"))
    net.last_layer[1].register_forward_pre_hook(lambda module, args: seen.append("head"))
    check(net)
    assert sorted(seen) == ["exchange", "head"]


def test_functional_call_folds_what_it_is_given(net):
    states = [randomize(Net(fast=True), seed).eval().state_dict() for seed in (1, 2)]
    net.requires_grad_(False)
    for state in states:
        expected = torch.func.functional_call(net, state, (streams(),))
        net.load_state_dict(state)
        assert relative_error(evaluate(net), expected) == 0


def test_a_cache_belongs_to_one_owner():
    owner, cache = nn.Conv2d(1, 1, 1), FoldCache()
    cache.put(owner, "value")
    assert cache.get(owner) == "value"
    assert cache.get(copy.copy(owner)) is None


def test_fake_and_meta_tensors_are_not_cached():
    owner, cache = nn.Conv2d(1, 1, 1, device="meta"), FoldCache()
    cache.put(owner, "value")
    assert cache.get(owner) is None


def test_onednn_is_used_on_this_machine_or_says_why_not():
    reason = why_not_onednn()
    assert reason is None or reason.startswith(("this PyTorch", "torch.ops.mkldnn"))


CONV_SIZES = [(1, 5, 16, 16), (2, 5, 27, 41), (1, 5, 1, 1), (3, 5, 2, 9), (0, 5, 8, 8)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("relu_from", [None, 0, 7], ids=["no-relu", "relu", "part-relu"])
@pytest.mark.parametrize("dtype", list(OPERATOR), ids=str)
def test_folded_conv_equals_conv2d(dtype, relu_from, layout):
    torch.manual_seed(0)
    weight, bias = (torch.randn(24, 5, 3, 3) * 0.2).to(dtype), torch.randn(24).to(dtype)
    conv = PreparedConv(weight, bias, (2, 2), (1, 1), relu_from=relu_from)
    for size in CONV_SIZES:
        x = torch.randn(size).to(dtype)
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        elif layout == "sliced":
            x = torch.cat([x, x, x], 1).contiguous(memory_format=torch.channels_last)[:, 3:8]
        expected = F.conv2d(x.double(), weight.double(), bias.double(), 2, 1)
        if relu_from is not None:
            expected = torch.cat([expected[:, :relu_from], expected[:, relu_from:].relu()], 1)
        with torch.no_grad():
            y = conv(x)
        assert y.dtype == dtype and relative_error(y, expected) < OPERATOR[dtype], size
    assert len(conv._prepared) <= 4


def test_folded_conv_gives_gradients():
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    x = torch.randn(1, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    conv = PreparedConv(weight, None, (2, 2), (1, 1), relu_from=2)
    assert torch.autograd.gradcheck(conv, x)


def test_folded_conv_under_autocast():
    conv, x = PreparedConv(torch.randn(6, 5, 3, 3), torch.randn(6), padding=(1, 1)), torch.randn(1, 5, 6, 6)
    with torch.no_grad():
        expected = conv(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
    assert y.dtype == torch.bfloat16 and relative_error(y, expected) < 1e-2


def test_folded_conv_says_why_it_is_plain():
    conv = PreparedConv(torch.randn(6, 5, 3, 3), None)
    assert "gradient" in conv.why_plain(torch.randn(1, 5, 6, 6, requires_grad=True))
    assert "float64" in conv.why_plain(torch.randn(1, 5, 6, 6, dtype=torch.float64))
    with torch.backends.mkldnn.flags(enabled=False):
        assert "enabled" in conv.why_plain(torch.randn(1, 5, 6, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errors_cancel_in_every_channel(dtype):
    """Each weight is one of its two neighbours, and the errors of a channel add up to less than one step."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(24, 40, 3, 3, generator=generator).to(dtype)
    weight[3], weight[4, :7] = 0, 0
    var = torch.rand(24, generator=generator) + 0.5
    zeros = torch.zeros(24)
    folded, _ = fold(weight, None, zeros, var, None, None, 1e-5)
    exact = weight.double() * (var.double() + 1e-5).rsqrt().reshape(-1, 1, 1, 1)
    error, nearest = (folded.double() - exact).flatten(1), (exact.to(dtype).double() - exact).flatten(1)
    step = torch.finfo(dtype).eps * exact.abs().flatten(1)
    assert (error.abs() <= step * 1.001).all()
    assert (error.sum(1).abs() <= step.amax(1)).all()
    assert error.sum(1).abs().mean() < 0.1 * nearest.sum(1).abs().mean()
    assert error.norm() < 1.05 * nearest.norm()
    assert not folded[3].any()
    assert not folded[4, :7].any()


@pytest.mark.parametrize("kind", ["unit", "patched unit", "patched block"])
def test_a_call_compares_the_structure_once(kind, monkeypatch):
    """One watch answers whether a module is what it was tried as, and whether its folds are of now."""
    model = nn.Sequential(official.SizedModule([4, 6]), BasicBlock(4, 4)).eval()
    hf.patch(model)
    module = ExchangeUnit((4, 6)).eval() if kind == "unit" else model[kind == "patched block"]
    streams = [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)]
    given = streams[0] if kind == "patched block" else streams
    calls = []
    compared = Watch.unchanged
    monkeypatch.setattr(Watch, "unchanged", lambda self: calls.append(self) or compared(self))
    with torch.no_grad():
        for _ in range(3):
            calls.clear()
            module(given if isinstance(given, torch.Tensor) else list(given))
    branches = 0 if kind != "patched unit" else len([m for m in module.branches.modules() if isinstance(m, BasicBlock)])
    assert len(calls) == 1 + branches
