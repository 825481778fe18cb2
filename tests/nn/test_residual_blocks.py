"""Residual blocks, convolution chains and the stem: folded against plain, in evaluation and where folding must stop."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hrnet_fast as hf
from hrnet_fast.models.initialize import randomize
from hrnet_fast.nn import residual_blocks
from hrnet_fast.nn.prepared_conv import PreparedConv
from hrnet_fast.tolerances import relative_error

KINDS = {
    "basic": (residual_blocks.BasicBlock, residual_blocks.FoldedBasicBlock, (6, 0.1), {}),
    "bottleneck": (residual_blocks.Bottleneck, residual_blocks.FoldedBottleneck, (6, 3, 0.1), {}),
    "bottleneck-identity": (residual_blocks.Bottleneck, residual_blocks.FoldedBottleneck, (12, 3, 0.1), {}),
    "chain": (
        residual_blocks.ConvNormReLU,
        residual_blocks.FoldedConvNormReLU,
        (6, 5, 0.1),
        {"kernel_size": 3, "stride": 2, "padding": 1},
    ),
}


@pytest.fixture(params=KINDS)
def pair(request):
    plain_class, fast_class, args, kwargs = KINDS[request.param]
    plain, fast = plain_class(*args, **kwargs), fast_class(*args, **kwargs)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in plain.state_dict().items():
        if tensor.dim() == 1:
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise - 0.5)
    fast.load_state_dict(plain.state_dict())
    return plain.eval(), fast.eval()


def image(module, channels_last=True, dtype=torch.float32):
    channels = next(m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, channels, 9, 13, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 2e-2)], ids=str
)
def test_evaluation(pair, channels_last, dtype, tolerance):
    plain, fast = (m.to(dtype) for m in pair)
    x = image(plain, channels_last, dtype)
    before = x.clone()
    with torch.inference_mode():
        assert relative_error(fast(x), copy.deepcopy(plain).double()(x.double())) < tolerance
    assert torch.equal(x, before)  # the shortcut is not overwritten


def test_nothing_but_convolutions_runs(pair):
    plain, fast = pair
    x = image(plain)
    with torch.inference_mode():
        fast(x)
        with torch.profiler.profile() as profile:
            fast(x)
    names = {event.key for event in profile.key_averages()}
    assert not any("batch_norm" in name for name in names)


def test_gradients_and_training_are_the_plain_ones(pair):
    plain, fast = pair
    x = image(plain)
    with torch.no_grad():
        fast(x)  # so that there is a fold that must not be used
    for training in (False, True):
        outputs = []
        for module in (plain.train(training), fast.train(training)):
            module.zero_grad()
            module(x).sum().backward()
            outputs.append([module(x)] + [p.grad for p in module.parameters()])
        for a, b in zip(*outputs, strict=True):
            assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), fast.buffers(), strict=True))


def test_stale_folds_are_noticed(pair):
    plain, fast = pair
    x = image(plain)
    norm = next(name for name, m in fast.named_modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        for change in (
            lambda m: m.get_submodule(norm).weight.mul_(2),
            lambda m: m.get_submodule(norm).running_var.add_(1),
            lambda m: m.load_state_dict({k: v + 1 if v.is_floating_point() else v for k, v in m.state_dict().items()}),
            lambda m: setattr(
                m.get_submodule(norm), "bias", nn.Parameter(torch.full_like(m.get_submodule(norm).bias, 3.0))
            ),
        ):
            old = fast(x)
            change(plain)
            change(fast)
            assert relative_error(fast(x), plain(x)) < 1e-6
            assert relative_error(fast(x), old) > 1e-4


def test_hooks_inside_are_called(pair):
    plain, fast = pair
    x, seen = image(plain), []
    with torch.no_grad():
        fast(x)
        handle = next(m for m in fast.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
            lambda *args: seen.append(1)
        )
        assert torch.equal(fast(x), plain(x))
        assert seen == [1]
        handle.remove()
        assert relative_error(fast(x), plain(x)) < 1e-6


def test_graphs_and_copies(pair):
    plain, fast = pair
    x = image(plain)
    with torch.no_grad():
        expected, folded = plain(x), fast(x)
        for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert torch.equal(twin(x), folded)
        for recorded in (torch.jit.script(fast), torch.jit.trace(fast, x)):
            assert torch.equal(recorded(x), expected)
        assert relative_error(torch.export.export(fast, (x,)).module()(x), expected) < 1e-6
    assert list(fast.state_dict()) == list(plain.state_dict())


def test_stem_of_a_network():
    plain = randomize(hf.create_model("hrnet_w18_small_v1", "features", fast=False)).eval()
    fast = hf.create_model("hrnet_w18_small_v1", "features").eval()
    fast.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))

    def assert_same():
        for a, b in zip(fast(x), plain(x), strict=True):
            assert relative_error(a, b) < 1e-5

    with torch.no_grad():
        assert_same()
        kept = fast._folded_stem._view
        for net in (plain, fast):
            net.bn2.bias.add_(1)
        assert_same()
        assert fast._folded_stem._view is kept
        for net in (plain, fast):
            net.conv1 = nn.Conv2d(3, 64, 5, stride=2, padding=2)
        fast.conv1.load_state_dict(plain.conv1.state_dict())
        assert_same()
        plain.bn1.train()
        fast.bn1.train()
        assert_same()  # with the statistics of the image
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert len(list(fast.parameters())) == len(list(plain.parameters()))


def test_a_residual_convolution_counts_its_flops_and_checks_the_shape():
    conv = PreparedConv(torch.randn(8, 4, 3, 3), None, padding=(1, 1))
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        conv.add_relu(x, torch.randn(1, 8, 6, 6))
    assert counter.get_total_flops() == 2 * 8 * 4 * 9 * 36
    for other in (torch.randn(1, 8, 6, 5), torch.randn(1, 7, 6, 6)):
        with pytest.raises(RuntimeError), torch.no_grad():
            conv.add_relu(x, other)
