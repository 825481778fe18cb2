"""The list of passes is all that a new one has to be entered in: whatever runs or is exported goes through it."""

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.export.record import record as record_for_export
from hrnet_fast.network import passes
from hrnet_fast.network.nodes import Constants
from hrnet_fast.network.record import record
from hrnet_fast.network.sums import Sum
from hrnet_fast.tolerances import relative_error


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1)).eval()


@pytest.fixture
def seen(monkeypatch):
    """What a pass that changes nothing is given, as the last of the list."""
    calls = []

    def look(steps, outputs):
        calls.append((steps, outputs))
        return steps

    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES, look))
    return calls


def test_it_gets_the_fused_steps_and_the_results(seen, model):
    graph = record(model, (torch.randn(1, 3, 16, 16),), constants=Constants())
    passes.steps_of(graph)
    ((steps, outputs),) = seen
    assert [type(step) for step in steps] == [Sum, Sum] and steps[0].relu and not steps[1].relu
    assert outputs == graph.outputs() == [steps[1].output]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["planned", "torch"])
def test_optimize_goes_through_it(seen, model, dtype):
    x = torch.randn(1, 3, 16, 16)
    fast = hf.optimize(model, x, dtype=dtype)
    assert seen and relative_error(fast(x), model(x)) < 1e-5


def test_exported_files_go_through_it(seen, model):
    record_for_export(model, passes.no_streams)
    assert seen


def test_what_it_drops_is_not_computed(monkeypatch, model):
    """A wrong pass is noticed: the network is tried before it is used."""

    def no_relu(steps, outputs):
        for step in steps:
            if isinstance(step, Sum):
                step.relu = False
        return steps

    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES, no_relu))
    x = torch.randn(1, 3, 16, 16)
    fast = hf.optimize(model, x)
    assert fast.engine == "model" and relative_error(fast(x), model(x)) < 1e-5
