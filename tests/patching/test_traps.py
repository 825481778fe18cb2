"""Where a careless drop-in goes wrong: what the families do differently, and what only looks like an HRNet."""

import copy

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.models import randomize
from hrnet_fast.tolerances import relative_error
from support.families import common, lite_hrnet, nvidia, ocr_branch, official, openmmlab, simple_hrnet
from support.model_cases import flat, image
from support.patching_cases import FAMILIES
from support.units import CHANNELS, streams, unit


def same(module, sizes, tolerance=1e-6):
    """Whether the module computes what it does unpatched."""
    original = hf.unpatch(copy.deepcopy(module))
    with torch.no_grad():
        expected, outputs = original(streams(sizes)), module(streams(sizes))
    return max(relative_error(y, z) for y, z in zip(outputs, expected, strict=True)) < tolerance


def reasons(model):
    return {row.kind: row.detail for row in hf.patch(model).left_alone}


HALVES, ODD = [(16, 24), (8, 12), (4, 6)], [(17, 23), (9, 12), (5, 6)]


def test_mmseg_resizes_twice_where_sizes_do_not_halve():
    module = unit(openmmlab.SegModule)
    hf.patch(module)
    assert same(module, HALVES)
    assert same(module, ODD)
    # one direct resize would be something else: the trap is real
    direct = unit(official.SizedModule)
    direct.load_state_dict(module.state_dict())
    with torch.no_grad():
        once, twice = direct(streams(ODD))[0], module(streams(ODD))[0]
    assert relative_error(once, twice) > 1e-3


@pytest.mark.parametrize("family", [ocr_branch, nvidia], ids=["OCR branch", "NVIDIA"])
@pytest.mark.parametrize("kind", ["unit", "network"])
def test_align_corners_is_read_at_the_time_of_the_call(monkeypatch, family, kind):
    name = "ALIGN_CORNERS" if family is ocr_branch else "align_corners"
    model = unit(family.Module) if kind == "unit" else randomize(family.Network("v2" if family is ocr_branch else None))
    original = copy.deepcopy(model.eval())
    report = hf.patch(model)
    assert any(f"align_corners read from {family.__name__}.{name}" in row.detail for row in report.patched)
    outputs = []
    for value in (True, False, True):
        monkeypatch.setattr(family, name, value)
        with torch.no_grad():
            x = (lambda: streams(HALVES)) if kind == "unit" else image
            y, expected = flat(model(x())), flat(original(x()))
        assert relative_error(y[0], expected[0]) < 1e-5
        outputs.append(y[0])
    assert relative_error(outputs[1], outputs[0]) > 1e-3
    torch.testing.assert_close(outputs[2], outputs[0])


def test_align_corners_in_the_text_of_forward_is_found_by_trying():
    aligned, unset = unit(official.AlignedModule), unit(official.SizedModule)
    assert "align_corners" in hf.patch(aligned).patched[-1].detail + str(hf.patch(aligned))
    assert "align_corners" not in str(hf.patch(unset))
    assert same(aligned, ODD)
    assert same(unset, ODD)
    with torch.no_grad():
        assert relative_error(aligned(streams(ODD))[0], unset(streams(ODD))[0]) > 1e-3


def test_inplace_abn_scales_by_the_absolute_weight():
    module = unit(official.MasterModule)
    assert (module.fuse_layers[0][1][1].weight < 0).any()
    assert hf.patch(module).patched
    assert same(module, ODD)


def test_an_inplace_abn_with_an_activation_is_left_alone():
    module = unit(official.MasterModule)
    module.fuse_layers[0][1][1].activation = "leaky_relu"
    assert "InPlaceABNSync" in reasons(module)["exchange unit"]


def test_lite_hrnet_is_left_alone():
    module = lite_hrnet.LiteHRModule(CHANNELS).eval()
    assert "Lite-HRNet" in reasons(module)["exchange unit"]
    assert type(module) is lite_hrnet.LiteHRModule


def test_hrformer_keeps_its_down_paths():
    module = unit(openmmlab.HRFormerModule)
    report = hf.patch(module)
    (row,) = [row for row in report.patched if row.kind == "exchange unit"]
    assert "down paths stay as they are" in row.detail
    assert same(module, HALVES)


@pytest.mark.parametrize("name", ["classification", "pose", "mmdet", "mmpose-face", "simple-hrnet"])
def test_sizes_that_do_not_fit_raise_as_before(name):
    model = FAMILIES[name].make()
    x = image((72, 96))
    with pytest.raises(RuntimeError) as before, torch.no_grad():
        model(x)
    hf.patch(model)
    with pytest.raises(RuntimeError) as after, torch.no_grad():
        model(x)
    assert str(after.value) == str(before.value)


def test_one_branch_is_not_an_exchange():
    torch.manual_seed(0)
    module = official.NearestModule(CHANNELS[:1]).eval()
    x = torch.randn(1, CHANNELS[0], 8, 8)
    with torch.no_grad():
        expected = module([x])[0]
    assert "one branch" in reasons(module)["exchange unit"]
    with torch.no_grad():
        assert relative_error(module([x])[0], expected) < 1e-6
    linear = official.NearestModule(CHANNELS[:1]).eval()
    linear.branches = nn.ModuleList([nn.Conv2d(CHANNELS[0], CHANNELS[0], 1)])
    hf.patch(linear)
    with torch.no_grad():
        assert (linear([x])[0] < 0).any()  # no ReLU


@pytest.mark.parametrize(("cls", "overwritten"), [(official.NearestModule, True), (openmmlab.HRModule, True)])
def test_the_list_of_the_caller_is_overwritten_as_before(cls, overwritten):
    module = unit(cls)
    original = copy.deepcopy(module)
    hf.patch(module)
    given, expected = streams(HALVES), streams(HALVES)
    with torch.no_grad():
        module(given)
        original(expected)
    for a, b in zip(given, expected, strict=True):
        assert relative_error(a, b) < 1e-6


def test_the_caller_of_simple_hrnet_keeps_his_list():
    model = FAMILIES["simple-hrnet"].make()
    hf.patch(model)
    given = streams([(16, 16), (8, 8)], CHANNELS[:2])
    kept = [x.clone() for x in given]
    with torch.no_grad():
        model.stage2[0](given)
    assert all(map(torch.equal, given, kept))


def test_an_inplace_relu_does_not_reach_into_the_streams():
    """In-place ReLUs of the unit act on sums of its own; a first stream that goes straight in must stay what it is."""
    module = unit(official.PoseModule)
    module.branches = nn.ModuleList(nn.Identity() for _ in CHANNELS)
    hf.patch(module)
    given = streams(HALVES)
    kept = [x.clone() for x in given]
    with torch.no_grad():
        module(given)
    assert all(map(torch.equal, given, kept))


def test_a_forward_that_computes_something_else_is_left_alone():
    class Scaled(official.NearestModule):
        def forward(self, x):
            return [0.9 * y for y in self.fuse(x)]

    assert "computes something else" in reasons(unit(Scaled))["exchange unit"]


def test_a_head_with_3x3_kernels_or_concat_input_is_left_alone():
    for head in (openmmlab.FCNHead(kernel=3), openmmlab.FCNHead(concat_input=True)):
        assert "FCN head" in reasons(head.eval())


def test_another_activation_is_left_alone():
    module = unit(official.NearestModule)
    module.relu = nn.SiLU()
    assert "SiLU, not a ReLU" in reasons(module)["exchange unit"]


def test_blocks_with_more_inside_are_left_alone():
    module = unit(official.NearestModule)
    block = module.branches[0][0]
    block.se = nn.Linear(2, 2)  # squeeze and excitation
    rows = [row for row in hf.patch(module).left_alone if row.kind == "residual block"]
    assert [row.name for row in rows] == ["branches.0.0"]
    assert "Linear" in rows[0].detail
    assert same(module, HALVES)


def test_blocks_of_other_networks_are_not_looked_at():
    report = hf.patch(nn.Sequential(common.BasicBlock(4, 4)))
    assert not report.rows
    assert "nothing was patched" in report.summary
    assert "fuse_layers" in report.summary


@pytest.mark.parametrize("place", ["fuse_layers.0.1.0", "branches.0.0.conv1", "relu"])
def test_hooks_are_called_whenever_they_were_added(place):
    early, late = unit(official.NearestModule), unit(official.NearestModule)
    calls = []
    early.get_submodule(place).register_forward_hook(lambda *_: calls.append("early"))
    hf.patch(early)
    hf.patch(late)
    with torch.no_grad():
        late(streams(HALVES))
        late.get_submodule(place).register_forward_hook(lambda *_: calls.append("late"))
        early(streams(HALVES))
        late(streams(HALVES))
    assert set(calls) == {"early", "late"}
    assert same(late, HALVES)


def test_hooks_on_patched_modules_are_called():
    module = unit(official.NearestModule)
    hf.patch(module)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    module.branches[0][0].register_forward_pre_hook(lambda *_: calls.append(2))
    with torch.no_grad():
        module(streams(HALVES))
    assert calls == [2, 1]


@pytest.mark.parametrize("replace", ["norm", "conv", "block"])
def test_modules_replaced_after_patching(replace):
    module = unit(official.NearestModule)
    hf.patch(module)
    with torch.no_grad():
        before = module(streams(HALVES))[0]
    block = module.branches[0][0]
    if replace == "norm":
        block.bn1 = nn.GroupNorm(2, CHANNELS[0])
    elif replace == "conv":
        block.conv2 = nn.Conv2d(CHANNELS[0], CHANNELS[0], 5, padding=2)
    else:
        module.branches[0] = nn.Sequential(nn.Conv2d(CHANNELS[0], CHANNELS[0], 1))
    assert same(module, HALVES)
    with torch.no_grad():
        assert relative_error(module(streams(HALVES))[0], before) > 1e-3


def test_frozen_norms_in_a_model_in_training():
    """norm_eval of OpenMMLab: the statistics are fixed while the rest is trained."""
    original = FAMILIES["mmdet"].make()
    patched = copy.deepcopy(original)
    hf.patch(patched)
    for model in (original, patched):
        model.double().train()
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
    x = image((64, 64)).double()
    for model in (original, patched):
        sum(y.square().mean() for y in model(x)).backward()
    for a, b in zip(original.parameters(), patched.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-6, atol=1e-9)


def test_shared_modules_are_reported_under_every_name():
    module = unit(official.NearestModule)
    report = hf.patch(nn.ModuleDict({"a": module, "b": module}))
    details = {row.name: row.detail for row in report.patched if row.kind == "exchange unit"}
    assert set(details) == {"a", "b"}
    assert details["b"] == "the same module as a"


def test_not_a_model():
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got dict"):
        hf.patch({})


def test_a_model_of_our_own_is_fast_already():
    report = hf.patch(hf.create_model("hrnet_w18_small_v1", task="features"))
    assert not report.patched
    assert "hrnet_fast's own" in str(report)


def test_replaced_forwards_and_meta_parameters_are_left_alone():
    module = unit(official.NearestModule)
    module.forward = lambda x: x
    assert "replaced the forward" in reasons(module)["exchange unit"]
    with torch.device("meta"):
        empty = official.NearestModule(CHANNELS)
    assert "meta device" in reasons(empty)["exchange unit"]


def test_autocast():
    model = FAMILIES["segmentation-v1.1"].make()
    original = copy.deepcopy(model)
    hf.patch(model)
    x = image((65, 97))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, expected = model(x), original(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    with torch.no_grad():
        truth = original(x)
    assert relative_error(y, truth) < 1.25 * relative_error(expected, truth)


def test_a_batch_of_none():
    model = FAMILIES["segmentation-v1.1"].make()
    hf.patch(model)
    with torch.no_grad():
        assert model(image((64, 64), batch=2)[:0]).shape == (0, 5, 16, 16)


class Renamed(simple_hrnet.StageModule):
    """Attributes as in other people's rewrites: input_branches and output_branches, and no more than these."""

    def __init__(self, channels):
        super().__init__(channels)
        self.input_branches = self.stage
        del self.stage


class Functional(official.NearestModule):
    """F.relu in the place of a module."""

    def __init__(self, channels):
        super().__init__(channels)
        del self.relu, self.num_inchannels, self.num_branches

    def forward(self, x):
        x = [branch(y) for branch, y in zip(self.branches, x, strict=True)]
        return [
            nn.functional.relu(sum(path(y) if i != j else y for j, (path, y) in enumerate(zip(row, x, strict=True))))
            for i, row in enumerate(self.fuse_layers)
        ]


class Numbered(official.SizedModule):
    """num_branches under another name."""

    def __init__(self, channels):
        super().__init__(channels)
        self.number_of_branches = len(channels)
        del self.num_inchannels


class WithoutReLU(Functional):
    """No ReLU at all: that is no HRNet's exchange."""

    def forward(self, x):
        x = [branch(y) for branch, y in zip(self.branches, x, strict=True)]
        return [
            sum(path(y) if i != j else y for j, (path, y) in enumerate(zip(row, x, strict=True)))
            for i, row in enumerate(self.fuse_layers)
        ]


@pytest.mark.parametrize("cls", [Renamed, Functional, Numbered])
def test_units_are_known_by_what_they_do(cls):
    module = unit(cls)
    given = streams(HALVES)
    with torch.no_grad():
        original = copy.deepcopy(module)
        kept = list(given)
        original(kept)
    report = hf.patch(module)
    assert [row.kind for row in report.patched].count("exchange unit") == 1, report
    assert same(module, HALVES)
    mine = list(given)
    with torch.no_grad():
        module(mine)
    assert all(relative_error(a, b) < 1e-6 for a, b in zip(mine, kept, strict=True))  # overwritten or not, as before


def test_a_unit_without_relu_is_left_alone():
    assert "computes something else" in reasons(unit(WithoutReLU))["exchange unit"]
