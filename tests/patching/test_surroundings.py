"""What is around a call: functions and methods of torch that somebody has replaced, modes, hooks, kinds of tensors."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.nn.plain_mode import standard_operators
from hrnet_fast.tolerances import relative_error
from support.edits import (
    AROUND,
    CHANNELS,
    REPLACED,
    Own,
    fault,
    outcome,
    randomized,
    replaced,
    streams,
    unit,
)
from support.families import official
from support.families.common import BasicBlock

IDS = ["mode for functions", "mode for operators", *(f"{holder.__name__}.{name}" for holder, name in REPLACED)]


def pair(own):
    """A model, and what is fast of it."""
    plain = randomized(Own()).eval() if own else unit(official.NearestModule)
    fast = copy.deepcopy(plain)
    if not own:
        hf.patch(fast)
    return plain, fast


@pytest.mark.parametrize("own", [False, True], ids=["patched", "own"])
@pytest.mark.parametrize("around", AROUND, ids=IDS)
def test_replacements_and_modes_have_their_effect(around, own):
    plain, fast = pair(own)
    outcome(fast, "evaluation", False)  # warm
    for mode in ("evaluation", "evaluation with gradients"):
        assert not fault(plain, fast, mode, own, around)
    for model in (plain, fast):
        model.train()
    assert not fault(plain, fast, "training", own, around)


@pytest.mark.parametrize("around", AROUND, ids=IDS)
def test_every_replacement_changes_a_result(around):
    """One that nobody could see would prove nothing."""
    changed = []
    for model in (
        unit(official.NearestModule),
        unit(official.SizedModule),
        unit(official.PoseModule),
        randomized(Own()).eval(),
    ):
        before, after = outcome(model, "evaluation", True)[0], outcome(model, "evaluation", True, around)[0]
        changed.append(max(map(relative_error, after, before)) > 1e-3)
    assert any(changed)


@pytest.mark.parametrize("own", [False, True], ids=["patched", "own"])
@pytest.mark.parametrize("cls", [BasicBlock, official.NearestModule])
def test_a_forward_that_is_replaced_for_a_whole_class(cls, own):
    plain, fast = pair(own)
    before = outcome(fast, "evaluation", False)[0]
    with replaced(cls, "forward"):
        assert not fault(plain, fast, "evaluation", own)
        changed = max(map(relative_error, outcome(fast, "evaluation", False)[0], before)) > 1e-3
        assert changed == (not own)
    assert all(map(torch.equal, outcome(fast, "evaluation", False)[0], before))


class Scaled(torch.Tensor):
    """A tensor of somebody's own, which changes what functions give."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        y = super().__torch_function__(function, types, args, kwargs or {})
        return y * 1.2 if function in (F.conv2d, F.relu) else y


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("what", ["streams", "weight", "scale", "statistics"])
@pytest.mark.parametrize("own", [False, True], ids=["patched", "own"])
def test_tensors_of_a_class_of_somebodys_own(own, what, training):
    models = pair(own)
    found = []
    for model in models:
        model.train(training)
        given = [x.contiguous(memory_format=torch.channels_last) for x in streams()]
        with torch.no_grad():
            model(list(given))
            if what == "streams":
                given = [x.as_subclass(Scaled) for x in given]
            for module in model.modules():
                if (what == "weight" and isinstance(module, nn.Conv2d)) or (
                    what == "scale" and isinstance(module, nn.BatchNorm2d)
                ):
                    module._parameters["weight"] = module.weight.detach().as_subclass(Scaled)
                elif what == "statistics" and isinstance(module, nn.BatchNorm2d):
                    module.running_mean = module.running_mean.as_subclass(Scaled)
            with standard_operators() if own and model is models[0] else contextlib.nullcontext():
                found.append(model(given))
    for y, expected in zip(*found[::-1], strict=True):
        assert type(y) is type(expected)
        assert relative_error(y.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor)) < 1e-4


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_norms_that_lose_their_scale(training):
    plain, fast = pair(False)
    for model in (plain, fast):
        model.train(training)
        model([x.contiguous(memory_format=torch.channels_last) for x in streams()])
        for module in model.fuse_layers.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight = module.bias = None
    assert not fault(plain, fast, "training" if training else "evaluation", False)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("own", [False, True], ids=["patched", "own"])
def test_gradients_of_parameters_that_a_frozen_model_is_called_with(own, warm):
    """What was folded before had no gradient; that says nothing about other parameters in its place."""
    found = []
    for model in pair(own):
        model.requires_grad_(False)
        if warm:
            model(streams())
        parameters = {name: (0.8 * p).requires_grad_() for name, p in model.named_parameters()}

        def loss(parameters, model=model):
            return sum(y.square().sum() for y in torch.func.functional_call(model, parameters, (streams(),)))

        gradients = torch.autograd.grad(loss(parameters), list(parameters.values()))
        of_func = torch.func.grad(loss)({name: p.detach() for name, p in parameters.items()})
        found += [torch.cat([g.flatten() for g in given]) for given in (gradients, of_func.values())]
    assert max(relative_error(g, found[0]) for g in found[1:]) < 1e-4


def test_arguments_by_name():
    class Renamed(official.NearestModule):
        def forward(self, inputs):
            return super().forward(inputs)

    plain = unit(Renamed)
    fast = copy.deepcopy(plain)
    assert hf.patch(fast).patched
    with torch.no_grad():
        for y, expected in zip(fast(inputs=streams()), plain(inputs=streams()), strict=True):
            assert relative_error(y, expected) < 1e-5


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_global_hooks_see_every_call(kind):
    """As many calls as on the model that was not patched; the results stay the same."""
    plain = unit(official.NearestModule)
    if kind == "full_backward":  # torch forbids what the blocks do in place beside such hooks
        plain.branches = nn.ModuleList(nn.Conv2d(c, c, 1) for c in CHANNELS)
    fast = copy.deepcopy(plain)
    hf.patch(fast)
    counts, results = [], []
    for model in (plain, fast):
        seen = []
        register = getattr(nn.modules.module, f"register_module_{kind}_hook")
        handle = register(lambda module, *rest, seen=seen: seen.append(type(module).__mro__[-3]))
        try:
            results.append(outcome(model, "training" if kind == "full_backward" else "evaluation", False)[0])
        finally:
            handle.remove()
        counts.append(len(seen))
    assert counts[0] == counts[1] > 20
    assert max(map(relative_error, *results)) < 1e-5
