"""A patched model stays a model: whatever is edited later changes it as it changes the model that was not patched.

Weights are loaded after ``patch`` here, too: fresh from their initialization units and blocks hide what they compute.
"""

import copy
import random
import zlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.nn.plain_mode import standard_operators
from hrnet_fast.tolerances import relative_error
from support.edits import EDITS, double, frozen, is_upsample, observed, removed_hook
from support.exhaustive import sampled
from support.families import official, openmmlab, simple_hrnet
from support.families.common import BasicBlock

CHANNELS = [4, 6, 8]
CASES, CHUNK = 500, 50
UNITS = (
    official.NearestModule,
    official.SizedModule,
    official.AlignedModule,
    official.PoseModule,
    openmmlab.HRModule,
    openmmlab.FaceModule,
    openmmlab.SegModule,
    simple_hrnet.StageModule,
)


def streams(batch=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, c, 16 >> j, 24 >> j, generator=generator) for j, c in enumerate(CHANNELS)]


def randomized(model):
    """Weights, scales and statistics that show what the model does."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() == 4:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith(("running_var", "weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.3)
    return model


def unit(cls, seed=0):
    torch.manual_seed(seed)
    return randomized(cls(CHANNELS)).eval()


class Own(nn.Module):
    """Parts of our own networks, one after the other."""

    def __init__(self):
        super().__init__()
        from hrnet_fast.models.hrnet import FAST, HighResolutionModule

        settings = {"mode": "bilinear", "align_corners": False, "momentum": 0.1}
        self.stage = HighResolutionModule(CHANNELS, 1, FAST, **settings)
        self.head = hf.SegmentationHead(CHANNELS, 5)

    def forward(self, x):
        x = self.stage(x)
        return [*x, self.head(x)]


def called(edit, model, seed):
    """The kind of the error, where torch refuses an edit; a parametrization that is there already for instance."""
    try:
        edit(model, random.Random(seed))
    except Exception as error:
        return type(error)


def outcome(model, mode, plainly):
    """What a call gives: results and gradients of the streams; or the error."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    given = [x.to(dtype).requires_grad_(mode != "evaluation") for x in streams()]
    context = standard_operators() if plainly else torch.autocast("cpu", enabled=False)
    try:
        with torch.set_grad_enabled(mode != "evaluation"), context:
            torch.manual_seed(0)
            results = list(model([x * 1 for x in given]))
            if mode != "evaluation":
                results += torch.autograd.grad(sum((y * y.detach().cos()).sum() for y in results), given)
        return [y.detach() for y in results], None
    except Exception as error:
        return [], error


def fault(one, other, mode, plainly):
    (expected, error), (got, own) = outcome(one, mode, plainly), outcome(other, mode, False)
    if type(error) is not type(own):
        return f"{mode}: {own!r} in place of {error!r}"
    worst = max((relative_error(y, z) for y, z in zip(got, expected, strict=True)), default=0.0)
    return f"{mode}: off by {worst:.2g}" if worst > 1e-4 else ""


@pytest.mark.parametrize("first", sampled(range(0, CASES, CHUNK), 5))
def test_random_edits(first):
    faults = []
    for seed in range(first, first + CHUNK):
        draw = random.Random(seed)
        own = draw.random() < 0.3
        plain = Own().eval() if own else unit(draw.choice(UNITS), seed)
        plain = randomized(plain) if own else plain
        fast = copy.deepcopy(plain)
        if not own:
            assert hf.patch(fast).patched
        about = [f"seed {seed}: {'own' if own else type(plain).__name__}"]
        for _ in range(draw.randrange(1, 4)):
            if draw.random() < 0.6:  # warm
                about.append(mode := draw.choice(["evaluation", "evaluation with gradients", "training"]))
                for model in (plain, fast):
                    model.train(mode == "training")
                faults += [f"{about} {f}" for f in [fault(plain, fast, mode, own)] if f]
            for model in (plain, fast):
                model.eval()
            edit, same = draw.choice(EDITS), draw.randrange(10**6)
            about.append(edit.__name__)
            errors = [called(edit, model, same) for model in (plain, fast)]
            assert errors[0] == errors[1], about
        for mode in ("evaluation", "evaluation with gradients", "training"):
            if mode == "training":
                for model in (plain, fast):
                    model.train()
            faults += [f"{about} {f}" for f in [fault(plain, fast, mode, own)] if f]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_every_edit_but_some_changes_the_result(edit):
    """An edit that nobody could see would prove nothing."""
    invisible = {removed_hook, observed, double, frozen}
    changed = set()
    for seed, cls in enumerate((official.NearestModule, official.SizedModule)):
        model = unit(cls)
        before, _ = outcome(model, "evaluation", False)
        edit(model, random.Random(seed + zlib.crc32(edit.__name__.encode())))
        after, error = outcome(model, "evaluation", False)
        changed.add(error is not None or max(map(relative_error, after, before)) > 1e-3)
    assert (True in changed) == (edit not in invisible)


@pytest.mark.parametrize("own", [False, True], ids=["patched", "own"])
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (nn.Conv2d, "forward"),
        (nn.Conv2d, "_conv_forward"),
        (nn.ReLU, "forward"),
        (nn.BatchNorm2d, "forward"),
        (nn.BatchNorm2d, "__call__"),
        (BasicBlock, "forward"),
        (official.NearestModule, "forward"),
    ],
)
def test_methods_that_are_replaced_for_a_whole_class(cls, name, own, monkeypatch):
    plain = randomized(Own()).eval() if own else unit(official.NearestModule)
    fast = copy.deepcopy(plain)
    if not own:
        hf.patch(fast)
    before = outcome(fast, "evaluation", False)[0]
    method = getattr(cls, name)

    def scaled(self, *args):
        y = method(self, *args)
        return [z * 1.2 for z in y] if isinstance(y, list) else y * 1.2

    monkeypatch.setattr(cls, name, scaled)
    assert not fault(plain, fast, "evaluation", own)
    changed = max(map(relative_error, outcome(fast, "evaluation", False)[0], before)) > 1e-3
    assert changed == (not own or cls not in (BasicBlock, official.NearestModule))
    monkeypatch.undo()
    assert all(map(torch.equal, outcome(fast, "evaluation", False)[0], before))


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


# ------------------------------------------------------------------------------------ weights that are loaded later


class Variant(official.SizedModule):
    """An exchange unit whose forward does more than its structure says."""

    kind = ""

    def __init__(self, channels):
        super().__init__(channels)
        if self.kind == "attention":
            self.attention, self.gamma = nn.Conv2d(channels[0], channels[0], 1), nn.Parameter(torch.zeros(1))
        if self.kind == "buffer":
            self.register_buffer("gain", torch.zeros(1))

    def up(self, i, j, x, corners):
        if self.kind in ("nearest", "bicubic"):
            return F.interpolate(self.fuse_layers[i][j](x[j]), size=x[i].shape[-2:], mode=self.kind)
        return super().up(i, j, x, self.kind == "corners on one path" and (i, j) == (0, 2))

    def forward(self, x):
        y = super().forward(x)
        if self.kind == "attention":
            y[0] = y[0] + self.gamma * self.attention(y[0])
        if self.kind == "buffer":
            y[1] = y[1] * (1 + self.gain)
        if self.kind == "dropout":
            y[0] = F.dropout(y[0], 0.5, self.training)
        if self.kind == "scaled":
            y[-1] = y[-1] * 1.05
        return y


class BlockVariant(BasicBlock):
    """A residual block likewise."""

    kind = ""

    def forward(self, x):
        act = F.gelu if self.kind == "gelu" else F.relu
        if self.kind == "pre-activation":
            y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
            return y + x
        y = self.bn2(self.conv2(act(self.bn1(self.conv1(x)))))
        if self.kind == "gate":
            y = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        if self.kind == "tenth":
            y = y * 0.1
        if self.kind == "stochastic depth":
            y = y * (torch.rand(()) > 0.5) if self.training else y
        return act(y + x)


UNIT_KINDS = ("", "nearest", "bicubic", "corners on one path", "attention", "buffer", "dropout", "scaled")
BLOCK_KINDS = ("", "gelu", "pre-activation", "gate", "tenth", "stochastic depth")


class TwoBlocks(nn.Module):
    """A block in a model that has an exchange unit: others are not looked at."""

    def __init__(self, kind):
        super().__init__()
        cls = type("Block", (BlockVariant,), {"kind": kind})
        self.unit, self.block = official.SizedModule(CHANNELS), cls(CHANNELS[0], CHANNELS[0])

    def forward(self, x):
        y = self.unit(x)
        return [*y, self.block(y[0])]


@pytest.mark.parametrize("fresh", ["official", "zero gamma", "zero weights"])
@pytest.mark.parametrize(
    "kind", [*(("unit", k) for k in UNIT_KINDS), *(("block", k) for k in BLOCK_KINDS)], ids=lambda kind: " ".join(kind)
)
def test_weights_loaded_after_patch(kind, fresh):
    torch.manual_seed(0)
    model = type("Unit", (Variant,), {"kind": kind[1]})(CHANNELS) if kind[0] == "unit" else TwoBlocks(kind[1])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0, 0 if fresh == "zero weights" else 0.001)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(0 if fresh == "zero gamma" else 1)
    model.eval()
    plain, fast = copy.deepcopy(model), model
    report = hf.patch(fast)
    trained = randomized(copy.deepcopy(plain)).state_dict()
    for name in trained.keys() & {"gamma", "gain"}:
        trained[name] = torch.full_like(trained[name], 0.7)
    for m in (plain, fast):
        m.load_state_dict(trained)
    assert not fault(plain, fast, "evaluation", False)
    for m in (plain, fast):
        m.train()
    assert not fault(plain, fast, "training", False)
    what = {"unit": "exchange unit", "block": "residual block"}[kind[0]]
    rows = [row for row in report.rows if row.kind == what and row.name in ("", "block")]
    # in training a block runs its own forward
    assert [row.patched for row in rows] == [kind[1] in ("", "stochastic depth")], report


def test_an_upsampling_without_size_and_broken_units_are_left_alone():
    class Upsampling(nn.Module):
        scale_factor, mode = 2, "nearest"

        def forward(self, x):
            return F.interpolate(x, scale_factor=2.0)

    model = nn.ModuleList([unit(official.NearestModule), unit(official.NearestModule)])
    for row in model[0].fuse_layers:
        for path in row:
            if isinstance(path, nn.Sequential) and is_upsample(path[-1]):
                path[2] = Upsampling()
    del model[1].fuse_layers[0][1][1].running_mean
    before = [type(m) for m in model]
    report = hf.patch(model)
    alone = {row.name: row.detail for row in report.left_alone}
    assert "0" in alone and "1" in alone and [type(m) for m in model] == before
