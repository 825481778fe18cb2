"""timm for real: every one of its HRNets, as classifier and as backbone."""

import copy

import pytest
import torch

import hrnet_fast as hf
from hrnet_fast.models import randomize
from support.model_cases import assert_equal, flat, image

NAMES = ("hrnet_w18_small", "hrnet_w18_small_v2", "hrnet_w18", "hrnet_w48")
UNITS = {"hrnet_w18_small": 3, "hrnet_w18_small_v2": 6, "hrnet_w18": 8, "hrnet_w48": 8}


@pytest.mark.parametrize("name", NAMES)
def test_classifier(timm, name):
    original = randomize(timm.create_model(name)).eval()
    patched = copy.deepcopy(original)
    report = hf.patch(patched)
    assert sum(row.kind == "exchange unit" for row in report.patched) == UNITS[name]
    assert [row.kind for row in report.left_alone] == ["HRNetV2"]
    for size in ((64, 96), (224, 224)):
        assert_equal(patched, original, image(size, batch=1))
    x = image((64, 96), batch=1)
    hf.unpatch(patched)
    with torch.no_grad():
        assert torch.equal(patched(x), original(x))


@pytest.mark.parametrize("arguments", [{}, {"feature_location": ""}, {"output_stride": 32, "out_indices": (1, 3)}])
def test_backbone(timm, arguments):
    original = randomize(timm.create_model("hrnet_w18_small", features_only=True, **arguments)).eval()
    patched = copy.deepcopy(original)
    assert hf.patch(patched).patched
    assert_equal(patched, original, image((64, 96)))


def test_training_step(timm):
    original = randomize(timm.create_model("hrnet_w18_small", num_classes=7)).double().train()
    patched = copy.deepcopy(original)
    hf.patch(patched)
    for model in (original, patched):
        model(image((64, 64)).double()).square().mean().backward()
    for (name, a), b in zip(original.named_parameters(), patched.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_sizes_that_do_not_fit(timm):
    model = timm.create_model("hrnet_w18_small").eval()
    hf.patch(model)
    with pytest.raises(RuntimeError, match="must match the size"):
        model(image((72, 96)))


def test_reset_classifier_and_features_after_patching(timm):
    original = randomize(timm.create_model("hrnet_w18_small")).eval()
    patched = copy.deepcopy(original)
    hf.patch(patched)
    for model in (original, patched):
        model.reset_classifier(0)
    x = image((64, 64))
    assert_equal(patched, original, x)
    with torch.no_grad():
        pairs = zip(flat(patched.forward_features(x)), flat(original.forward_features(x)), strict=True)
        for y, expected in pairs:
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
