"""The GPU program without a GPU: how a network becomes launches."""

import time

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.network.nodes import Constants
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.runtime.arguments import Arguments
from hrnet_fast.runtime.cpu.operations import Convolution, Exchange, Reorder
from hrnet_fast.runtime.cuda_graphs import GraphedModule
from hrnet_fast.runtime.cuda_streams import Branches
from hrnet_fast.runtime.gpu.lower import MAX_TASKS, lower
from hrnet_fast.runtime.ways import Ways
from support.fake_cuda import FakeBackend

# of a whole network: the longest way through it; the input takes two, its padding and its copy
LAUNCHES = {"segmentation": 104, "classification": 114, "pose": 102}


def lowered(task, head=True):
    model = hf.create_model("hrnet_w18", task=task).eval()
    graph = record(model, (torch.empty(1, 3, 64, 128),), {}, constants=Constants(), calls=1)
    return graph, lower(graph, steps_of(graph), head)


@pytest.mark.parametrize("task", LAUNCHES)
def test_a_whole_network_in_about_a_hundred_launches(task):
    graph, plan = lowered(task)
    launches = len(plan.steps) + sum(isinstance(op, Reorder) for step in plan.steps for op in step)
    assert launches <= LAUNCHES[task], launches
    assert launches < len(graph.nodes) / 5
    made = set()
    for step in plan.steps:  # nothing is read that is made beside it or later
        for op in step:
            assert all(image.buffer in made for image in op.reads())
        made.update(op.output.buffer for op in step if isinstance(op, (Convolution, Exchange, Reorder)))
        assert len(step) <= MAX_TASKS


def test_a_head_in_pieces_where_its_kernel_does_not_serve():
    steps = [op for step in lowered("segmentation", head=False)[1].steps for op in step]
    assert not any(isinstance(op, Exchange) and op.projection for op in steps)
    assert any(isinstance(op, Exchange) and op.projection for step in lowered("segmentation")[1].steps for op in step)


class StandIn:
    """In the place of ``Grouped``: torch's operators, as slow or as wrong as is asked for."""

    def __init__(self, ways, seconds=0.0, factor=1.0, error=None):
        self.ways, self.seconds, self.factor, self.error = ways, seconds, factor, error

    def prepare(self, graph, steps):
        if self.error is not None:
            raise self.error
        plan = self.ways._torch.prepare(graph, steps, False)

        def run(tensors):
            time.sleep(self.seconds)
            return [self.factor * y for y in plan(tensors)]

        return run

    def places(self):
        return ()


@pytest.fixture
def on_a_stand_in(monkeypatch):
    """A small network's Ways as on a GPU, with graphs and streams of a stand-in; and a call of it."""
    backend, call = FakeBackend(), Arguments.of((torch.randn(1, 3, 12, 20),), {})
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    settings = {
        "dtype": torch.float32,
        "memory_format": "auto",
        "normalization": None,
        "winograd": True,
        "streams": "auto",
        "cuda_graph": "auto",
        "calibration": None,
        "max_shapes": 2,
    }
    ways = Ways(net, torch.device("cpu"), settings)
    ways._torch.branches = Branches(backend)
    ways._graphs = GraphedModule(ways._run_steps, 4, state=ways._places, backend=backend)
    monkeypatch.setattr(ways, "_candidates", ways._on_gpu)
    return ways, call


def prepared(ways, call):
    with torch.no_grad():
        return ways.prepare(call)


def test_the_fastest_way_on_a_gpu_is_kept_and_all_times_are_said(on_a_stand_in):
    ways, call = on_a_stand_in
    ways._grouped = StandIn(ways, seconds=0.1)
    found = prepared(ways, call)
    assert found.engine == "torch"
    for way in ("grouped launches", "torch's operators", "torch's operators on streams"):
        assert f"{way} " in found.reason
    assert found.reason.count(" ms") == 3
    expected = ways._model(call.leaves[0])
    torch.testing.assert_close(ways.run(found, call), expected)
    fast, quick = StandIn(ways), ways._torch.prepare

    def slow(*arguments):
        plan = quick(*arguments)
        return lambda tensors: time.sleep(0.1) or plan(tensors)

    fast.prepare = quick  # before the others are slowed down
    ways._grouped, ways._torch.prepare = fast, slow
    assert prepared(ways, call).engine == "grouped"


def test_a_way_that_is_wrong_or_fails_makes_room_for_the_next(on_a_stand_in):
    ways, call = on_a_stand_in
    ways._grouped = StandIn(ways, factor=1.5)
    found = prepared(ways, call)
    assert found.engine == "torch"
    ways._grouped = StandIn(ways, error=RuntimeError("Triton Error: no PTX\nmore"))
    found = prepared(ways, call)
    assert found.engine == "torch"
    assert "grouped launches cannot run it (Triton Error: no PTX)" in found.reason
