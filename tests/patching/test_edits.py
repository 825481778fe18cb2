"""A patched model stays a model: whatever is edited later changes it as it changes the model that was not patched.

Weights are loaded after ``patch`` here, too: fresh from their initialization units and blocks hide what they compute.
"""

import copy
import functools
import random
import zlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.nn.plain_mode import standard_operators
from hrnet_fast.tolerances import relative_error
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


# ------------------------------------------------------------------------------------------------ edits
# each is given a model and a random.Random, and does the same to two models of the same structure


def some(model, draw, kind, where=lambda m: True):
    found = [m for _, m in model.named_modules() if isinstance(m, kind) and where(m)]
    return draw.choice(found) if found else None


def replace(model, old, new):
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
                return


def is_plain(m):
    return type(m) is nn.Conv2d


def is_upsample(m):
    return hasattr(m, "scale_factor") and hasattr(m, "mode")


def activation(model, draw):
    new = draw.choice([nn.Identity(), nn.LeakyReLU(0.3), nn.GELU(), nn.ReLU6(), nn.Hardtanh()])
    if (old := some(model, draw, nn.ReLU)) is not None:
        replace(model, old, new)


def upsample_settings(model, draw):
    for m in [m for m in model.modules() if is_upsample(m)][: draw.choice([1, None])]:
        m.mode, m.align_corners = draw.choice(
            [("bilinear", True), ("bilinear", False), ("nearest", None), ("bicubic", False)]
        )


def upsample_replaced(model, draw):
    old = some(model, draw, nn.Module, is_upsample)
    if old is not None:
        mode = "bilinear" if old.mode == "nearest" else "nearest"
        replace(model, old, nn.Upsample(scale_factor=old.scale_factor, mode=mode))


def geometry(model, draw):
    conv = some(model, draw, nn.Conv2d, lambda m: m.kernel_size == (3, 3))
    if draw.random() < 0.5:
        conv.dilation = conv.padding = (2, 2)
    else:
        conv.padding_mode, conv._reversed_padding_repeated_twice = "reflect", (1, 1, 1, 1)


def own_forward(model, draw):
    module = some(model, draw, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU))
    module.forward = functools.partial(lambda m, x: type(m).forward(m, x) * 1.5, module)


def own_method(model, draw):
    """Of those that a forward calls."""
    conv = some(model, draw, nn.Conv2d)
    conv._conv_forward = functools.partial(lambda m, *args: type(m)._conv_forward(m, *args) * 1.5, conv)


def hook(model, draw):
    module = some(model, draw, nn.Module, lambda m: not list(m.children()))
    if draw.random() < 0.5:
        module.register_forward_hook(lambda m, args, y: y * 1.25)
    else:
        module.register_forward_pre_hook(lambda m, args: args[0] + 0.5)


def removed_hook(model, draw):
    module = some(model, draw, nn.Conv2d)
    module.register_forward_hook(lambda m, args, y: y * 2).remove()


def parametrized(model, draw):
    class Half(nn.Module):
        def forward(self, w):
            return w * 0.5

    nn.utils.parametrize.register_parametrization(some(model, draw, nn.Conv2d, is_plain), "weight", Half())


def weight_norm(model, draw):
    conv = some(model, draw, nn.Conv2d, is_plain)
    nn.utils.parametrizations.weight_norm(conv)
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(1.5)


def eps(model, draw):
    some(model, draw, nn.BatchNorm2d).eps = 0.5


def norm_replaced(model, draw):
    old = some(model, draw, nn.BatchNorm2d)
    replace(
        model, old, draw.choice([nn.GroupNorm(2, old.num_features), nn.Identity(), nn.InstanceNorm2d(old.num_features)])
    )


def norm_of_the_batch(model, draw):
    some(model, draw, nn.BatchNorm2d).train()


def norm_without_statistics(model, draw):
    norm = some(model, draw, nn.BatchNorm2d)
    norm.running_mean = norm.running_var = None
    norm.track_running_stats = False


def more_in_a_path(model, draw):
    path = some(model, draw, nn.Sequential, lambda m: len(m) > 1 and isinstance(m[0], nn.Conv2d))
    if path is not None:
        path.append(draw.choice([nn.Tanh(), nn.LeakyReLU(0.5), nn.AvgPool2d(3, 1, 1)]))


def bias_added(model, draw):
    conv = some(model, draw, nn.Conv2d, lambda m: m.bias is None)
    conv.bias = nn.Parameter(torch.linspace(-1, 1, conv.out_channels))


def weights_loaded(model, draw):
    torch.manual_seed(draw.randrange(1000))
    model.load_state_dict(
        {k: v + 0.2 * torch.rand_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    )


def weight_replaced(model, draw):
    conv = some(model, draw, nn.Conv2d)
    conv.weight = nn.Parameter(conv.weight.detach() * -0.7)


def weight_written(model, draw):
    with torch.no_grad():
        some(model, draw, nn.Conv2d).weight.mul_(1.3)


def module_replaced(model, draw):
    old = some(model, draw, (nn.ModuleList, nn.Sequential), lambda m: any(True for _ in m.parameters()))
    new = copy.deepcopy(old)
    with torch.no_grad():
        for p in new.parameters():
            p.mul_(0.8)
    replace(model, old, new)


def optimizer_step(model, draw):
    kind = draw.choice(
        [
            lambda p: torch.optim.SGD(p, 0.1),
            lambda p: torch.optim.AdamW(p, 0.05, fused=True),
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
            lambda p: torch.optim.Adam(p, 0.05, foreach=True),
            lambda p: torch.optim.Adagrad(p, 0.1, fused=True),
            lambda p: torch.optim.RMSprop(p, 0.01),
        ]
    )
    parameters = list(model.parameters())
    for k, p in enumerate(parameters):
        p.grad = torch.linspace(-1, 1, p.numel(), dtype=p.dtype).view(p.shape) * (1 + k % 3)
    kind(parameters).step()
    for p in parameters:
        p.grad = None


def averaged(model, draw):
    with torch.no_grad():
        for p in model.parameters():
            p.lerp_(torch.full_like(p, 0.1), 0.3)


def subclass(model, draw):
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    some(model, draw, nn.Conv2d).__class__ = Scaled


def double(model, draw):
    model.double()


def observed(model, draw):
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    torch.ao.quantization.prepare(model, inplace=True)


def swapped(model, draw):
    conv = some(model, draw, nn.Conv2d)
    torch.utils.swap_tensors(conv.weight, nn.Parameter(conv.weight.detach() * 0.6))


def frozen(model, draw):
    model.requires_grad_(False)


EDITS = (activation, upsample_settings, upsample_replaced, geometry, own_forward, own_method, hook, removed_hook,
         parametrized, weight_norm, eps, norm_replaced, norm_of_the_batch, norm_without_statistics, more_in_a_path,
         bias_added, weights_loaded, weight_replaced, weight_written, module_replaced, optimizer_step, averaged,
         subclass, double, observed, swapped, frozen)  # fmt: skip


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
