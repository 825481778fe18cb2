"""Which shapes are tried beside the model: those that an earlier trial says nothing about."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hrnet_fast as hf
from hrnet_fast.runtime import ways

SMALL, LARGE = torch.rand(1, 3, 16, 24), torch.rand(2, 3, 24, 40)


class Net(nn.Module):
    """Convolutions, and ``code``, which is given the module, the image and whether it is a large one."""

    def __init__(self, code):
        super().__init__()
        self.first, self.left, self.right = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.code = code

    def forward(self, x):
        return self.code(self, torch.relu(self.first(x)), x.shape[3] > 30)


def plain(m, x, large):
    low = m.right(F.avg_pool2d(x, 2))
    return m.left(x) + F.interpolate(low, x.shape[2:], mode="bilinear")


def other_wires(m, x, large):
    y = torch.relu(m.left(x))
    return m.right(x if large else y) + y


def other_weights(m, x, large):
    return (m.left if large else m.right)(x)


def other_factor(m, x, large):
    return m.left(x) * (2.0 if large else 3.0)


def other_stride(m, x, large):
    return F.conv2d(x, m.left.weight, None, 1 if large else 2, 1)


def other_operator(m, x, large):
    return torch.sigmoid(m.left(x)) if large else torch.tanh(m.left(x))


@pytest.fixture
def trials(monkeypatch):
    seen, before = [], ways.Ways._expectation
    monkeypatch.setattr(ways.Ways, "_expectation", lambda self, call: seen.append(call.shapes()) or before(self, call))
    return seen


def optimized(code, **settings):
    torch.manual_seed(0)
    model = Net(code).eval()
    return model, hf.optimize(model, SMALL, **settings)


def test_one_trial_serves_all_sizes_of_one_network(trials):
    model, fast = optimized(plain)
    for image in (LARGE, torch.rand(1, 3, 18, 26)):
        torch.testing.assert_close(fast(image), model(image).detach(), rtol=1e-4, atol=1e-5)
    kernels = set(fast._ways._kernels)
    assert len(trials) == 1 or fast.engine == "planned"  # another size may take other kernels, which are tried
    fast(torch.rand(1, 3, 16, 26))
    assert fast._ways._kernels == kernels


@pytest.mark.parametrize("code", [other_wires, other_weights, other_factor, other_stride, other_operator])
def test_another_network_by_size_is_tried(trials, code):
    model, fast = optimized(code)
    torch.testing.assert_close(fast(LARGE), model(LARGE).detach(), rtol=1e-4, atol=1e-5)
    assert trials == [tuple(SMALL.shape), tuple(LARGE.shape)]


def test_a_kernel_that_no_trial_has_run_is_tried(trials):
    _, fast = optimized(plain)
    if fast.engine != "planned":
        return
    here = len(trials)
    fast._ways._kernels.pop()
    fast(torch.rand(1, 3, 16, 26))
    assert len(trials) == here + 1


def test_a_program_that_is_wrong_for_one_size_is_not_used(monkeypatch):
    """The trial, not the recording, must find it."""
    model, fast = optimized(other_factor)
    run = ways.Ways.run

    def wrong(self, prepared, call):
        result = run(self, prepared, call)
        return result * 1.1 if prepared.run is not None and call.tensors()[0].shape == LARGE.shape else result

    monkeypatch.setattr(ways.Ways, "run", wrong)
    torch.testing.assert_close(fast(LARGE), model(LARGE).detach(), rtol=1e-4, atol=1e-5)
    assert fast.preparations[-1].engine == "model" and "something else than the model" in fast.preparations[-1].reason
