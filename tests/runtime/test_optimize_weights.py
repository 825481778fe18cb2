"""Memory of optimized networks, and when their weights are out of date."""

import gc
import weakref

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.runtime.cpu.packed_weights import Packed
from support.engine_cases import errors, network, plannable
from support.model_cases import image


@plannable
def test_packed_weights_are_shared_bounded_and_freed():
    model, x = network(fast=False), image((64, 64), 1)
    fast = hf.optimize(model, x, max_shapes=2)
    largest = fast.memory().weights
    for size in ((64, 96), (96, 64), (72, 72), (128, 64), (256, 192), (33, 65), (96, 96)):
        other = image(size, 1)
        assert max(errors(fast(other), model, other)) < 1e-5
        largest = max(largest, hf.optimize(model, other).memory().weights)  # what a shape takes alone
        assert fast.memory().weights < 1.3 * largest  # in small images some convolutions are direct, too
    alive = weakref.ref(next(iter(fast._ways._planned._weights._known.values())))
    gc.disable()
    try:
        del fast
        assert alive() is None  # no cycle keeps it
    finally:
        gc.enable()
    assert not [x for x in gc.get_objects() if isinstance(x, Packed)]


OPTIMIZERS = {
    "SGD fused": lambda p: torch.optim.SGD(p, 0.1, fused=True),
    "Adam fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, 0.1, fused=True),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, 0.1, fused=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, 0.1, foreach=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.1, foreach=False),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_makes_it_stale(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 8, 8)
    fast = hf.optimize(model, x)
    optimizer = OPTIMIZERS[name](model.parameters())
    model(x).sum().backward()
    assert not fast.is_stale()
    optimizer.step()
    assert fast.is_stale()
    assert max(errors(fast.refresh()(x), model, x)) < 1e-5
    assert not fast.is_stale()


def test_other_modules_and_hooks_make_it_stale():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
    fast = hf.optimize(model, x)
    model[1] = nn.Tanh().eval()
    assert fast.is_stale()
    assert max(errors(fast.refresh()(x), model, x)) < 1e-5
    model[0].register_forward_hook(lambda module, given, result: result * 2)
    assert fast.is_stale()
    assert max(errors(fast.refresh()(x), model, x)) < 1e-5


class Scaled(nn.Module):
    """Its Python code reads a number out of a parameter."""

    def __init__(self):
        super().__init__()
        self.conv, self.gain = nn.Conv2d(3, 4, 3), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.conv(x) * self.gain.item()


def test_numbers_that_were_read_are_read_again():
    model, x = Scaled().eval(), torch.randn(1, 3, 8, 8)
    fast = hf.optimize(model, x)
    assert fast.engine in ("planned", "torch")
    with torch.no_grad():
        model.gain.fill_(3)
    assert fast.is_stale()
    assert max(errors(fast.refresh()(x), model, x)) < 1e-5


def test_a_model_in_training_mode_is_prepared_for_nothing_new():
    model, x = network(), image()
    fast = hf.optimize(model, x)
    before = fast(x)
    model.train()
    assert torch.equal(fast(x), before)
    with pytest.raises(RuntimeError, match="training mode"):
        fast(image((32, 32)))
