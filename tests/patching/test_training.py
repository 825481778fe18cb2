"""What people do to models around training: copies, pickles, parametrizations, shared weights, SyncBatchNorm."""

import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hrnet_fast as hf
from hrnet_fast.models import randomize
from hrnet_fast.tolerances import MODEL, relative_error
from support.patching_cases import original_and_patched

SIZE = (64, 64)


def own() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    plain, fast = (
        hf.create_model("hrnet_w18_small_v1", task="segmentation", num_classes=5, fast=f) for f in (False, True)
    )
    fast.load_state_dict(randomize(plain).state_dict())
    return plain.eval(), fast.eval()


PAIRS = {"own": own, "patched": lambda: original_and_patched("segmentation-v1.1")}


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]()


def image(batch=2):
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(3))


def close(a, b):
    assert relative_error(a, b.double()) < MODEL[torch.float32]


def evaluate(model):
    with torch.no_grad():
        return model(image())


def step(model, optimizer):
    model.train()
    optimizer.zero_grad()
    model(image()).square().mean().backward()
    optimizer.step()
    model.eval()


def test_an_average_of_the_weights_is_never_stale(pair):
    """A deepcopy whose weights change in place after each step, and that is evaluated in between."""
    averages = []
    for model in pair:
        evaluate(model)  # folds, which a copy must not take along
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True).eval()
        for _ in range(2):
            step(model, optimizer)
            average.update_parameters(model)
            evaluate(average)
        averages.append(evaluate(average))
    close(averages[1], averages[0])


def test_pickles_and_state_dicts_go_both_ways(pair):
    plain, fast = pair
    expected = evaluate(plain)
    assert list(plain.state_dict()) == list(fast.state_dict())
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    close(evaluate(torch.load(file, weights_only=False)), expected)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1.1)
    fast.load_state_dict(plain.state_dict())
    close(evaluate(fast), evaluate(plain))
    plain.load_state_dict(fast.state_dict())
    close(evaluate(fast), evaluate(plain))


def test_parametrized_convolutions(pair):
    """Weight normalization of a convolution in an exchange unit and of one in a block, put on and taken off."""
    plain, fast = pair
    evaluate(fast)
    for model in pair:
        with torch.no_grad():
            convs = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels > 3]
            chosen = [convs[0], next(m for n, m in model.named_modules() if "fuse_layers.0.1.0" in n)]
        for conv in chosen:
            parametrizations.weight_norm(conv)
            with torch.no_grad():
                conv.parametrizations.weight.original0.mul_(1.5)
        model.chosen = chosen
    close(evaluate(fast), evaluate(plain))
    for model in pair:
        step(model, torch.optim.SGD(model.parameters(), 1e-3))
    close(evaluate(fast), evaluate(plain))
    for model in pair:
        for conv in model.chosen:
            parametrize.remove_parametrizations(conv, "weight")
    close(evaluate(fast), evaluate(plain))


def test_weights_used_twice_in_a_step(pair):
    """A siamese network: one backward through two calls."""
    gradients = []
    for model in pair:
        model.double().train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        a, b = model(image().double()), model(image().double().flip(3))
        (a - b.flip(3)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, fast in zip(*gradients, strict=True):
        if plain is not None and plain.norm() > 1e-9:
            assert relative_error(fast, plain) < 1e-9


def test_sync_batchnorm_folds_as_well(pair):
    """Its training needs a GPU; converted models must be evaluated alike, and keep what makes them fast."""
    plain, fast = pair
    before = {name: type(module) for name, module in fast.named_modules() if not isinstance(module, nn.BatchNorm2d)}
    fast = nn.SyncBatchNorm.convert_sync_batchnorm(fast)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in fast.modules())
    assert all(type(module) is before.get(name, nn.SyncBatchNorm) for name, module in fast.named_modules())
    close(evaluate(fast), evaluate(plain))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_another_dtype_and_memory_format(pair, dtype):
    plain, fast = pair
    evaluate(fast)
    expected = evaluate(plain)
    fast.to(dtype).to(memory_format=torch.channels_last)
    with torch.no_grad():
        out = fast(image().to(dtype).contiguous(memory_format=torch.channels_last))
    assert out.dtype == dtype
    assert relative_error(out, expected.double()) < (MODEL[torch.float32] if dtype == torch.float64 else MODEL[dtype])
