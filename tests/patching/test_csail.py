"""CSAIL's norm in patched networks: folded in evaluation; in training, also across replicas, it runs itself."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.tolerances import relative_error
from support.edits import randomized
from support.families import csail

CHANNELS = [4, 6, 8]


def streams(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, 16 >> j, 24 >> j, generator=generator) for j, c in enumerate(CHANNELS)]


def unit():
    torch.manual_seed(0)
    return randomized(csail.Module(CHANNELS)).eval()


def norms(module):
    return [m for m in module.modules() if isinstance(m, csail.SynchronizedBatchNorm2d)]


class Meeting:
    """Two replicas add up what they bring, each in a thread of its own; sums keep their gradients."""

    def __init__(self):
        self.barrier, self.sums = threading.Barrier(2, timeout=60), [None, None]

    def of(self, replica):
        def exchange(*sums):
            self.sums[replica] = sums
            self.barrier.wait()
            total = [a + b for a, b in zip(*self.sums, strict=True)]
            self.barrier.wait()
            return total

        return exchange


def in_replicas(model):
    """Results of two replicas that train on other streams, and their sum of gradients, by the name of the parameter."""
    replicas = [model, copy.deepcopy(model)]
    for pair in zip(*map(norms, replicas), strict=True):
        meeting = Meeting()
        for k, norm in enumerate(pair):
            norm._is_parallel, norm._parallel_id, norm._exchange = True, k, meeting.of(k)
    results = [None, None]

    def run(k):
        results[k] = replicas[k].train()(streams(k))

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loss = sum((y * y.detach().cos()).sum() for result in results for y in result)
    parameters = [dict(r.named_parameters()) for r in replicas]
    found = torch.autograd.grad(loss, [*parameters[0].values(), *parameters[1].values()])
    half = len(parameters[0])
    return [y.detach() for result in results for y in result], [a + b for a, b in zip(found[:half], found[half:])]


def test_training_across_replicas_and_evaluation_after_it():
    plain = unit()
    fast = copy.deepcopy(plain)
    report = hf.patch(fast)
    assert {row.kind for row in report.patched} == {"exchange unit", "residual block"}
    with torch.no_grad():
        fast(streams())  # folds are there
    for a, b in zip(in_replicas(plain), in_replicas(fast), strict=True):
        assert max(map(relative_error, b, a)) < 1e-4
    for model in (plain, fast):
        model.eval()
    with torch.no_grad():
        assert max(map(relative_error, fast(streams()), plain(streams()))) < 1e-5
    assert isinstance(fast._hrnet_fast_folds.get(fast.fuse_layers), tuple)


class Leaky(csail.SynchronizedBatchNorm2d):
    slope = 0.1

    def forward(self, x):
        return F.leaky_relu(super().forward(x), self.slope)


@pytest.mark.parametrize("edited", [False, True], ids=["before patch", "after patch"])
def test_a_norm_of_that_name_that_computes_something_else(edited):
    plain = unit()

    def edit(model):
        for row in model.fuse_layers:
            for norm in norms(row):
                norm.__class__ = Leaky

    fast = copy.deepcopy(plain)
    for model in (plain,) if edited else (plain, fast):
        edit(model)
    hf.patch(fast)
    if edited:
        with torch.no_grad():
            fast(streams())
        edit(fast)
    for training in (False, True):
        with torch.no_grad():
            found, expected = (model.train(training)(streams()) for model in (fast, plain))
        assert max(map(relative_error, found, expected)) < 1e-5
        assert fast._hrnet_fast_folds.get(fast.fuse_layers) is None


@pytest.mark.parametrize("kind", [Leaky, csail.SynchronizedBatchNorm2d])
def test_in_our_own_modules(kind):
    """Nobody tries them: the norm itself is asked before it is folded."""
    module = hf.ExchangeUnit(CHANNELS)
    for row in module:
        for path in row:
            for parent in path.modules():
                for name, child in parent.named_children():
                    if isinstance(child, nn.BatchNorm2d):
                        setattr(parent, name, kind(child.num_features))
    randomized(module).eval()
    with torch.no_grad():
        assert max(map(relative_error, module(streams()), module._plain(streams()))) < 1e-5
    assert (module._folds.get(module) is None) == (kind is Leaky)


def test_compiled():
    fast, plain = unit(), unit()
    hf.patch(fast)
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(fast, backend="eager", fullgraph=True)(streams())
        assert max(map(relative_error, found, plain(streams()))) < 1e-5
