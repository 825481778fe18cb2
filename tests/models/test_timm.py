"""timm's own HRNets: the same keys, the same outputs from the same weights, the same multiply-adds."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import hrnet_fast as hf
from hrnet_fast.models import multiply_adds, randomize
from support.model_cases import assert_equal, image

# timm's name -> ours; of its hrnet_*_ssld the convolutions of the head have no bias
NAMES = {
    "hrnet_w18_small": "hrnet_w18_small_v1",
    "hrnet_w18_small_v2": "hrnet_w18_small_v2",
    "hrnet_w18_ssld": "hrnet_w18",
    "hrnet_w48_ssld": "hrnet_w48",
    **{f"hrnet_w{width}": f"hrnet_w{width}" for width in (18, 30, 32, 40, 44, 48, 64)},
}


def without_weights(create, *args, **kwargs):
    """A model whose memory is not initialized: all of it is loaded afterwards."""
    with torch.device("meta"):
        model = create(*args, **kwargs)
    return model.to_empty(device="cpu").eval()


def test_all_of_timms_names_are_known(timm):
    assert set(timm.list_models("hrnet_*")) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_classification(timm, tmp_path, name):
    ours = randomize(without_weights(hf.create_model, NAMES[name], task="classification", fast=False))
    theirs = without_weights(timm.create_model, name)
    state = ours.state_dict()
    if name.endswith("_ssld"):
        biases = sorted(state.keys() - theirs.state_dict().keys())
        assert len(biases) == 4
        for key in biases:
            state.pop(key).zero_()
    theirs.load_state_dict(state, strict=True)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    fast = without_weights(hf.create_model, NAMES[name], task="classification")
    assert hf.load_checkpoint(fast, tmp_path / "timm.pth") == ([], [], [])
    for model in (fast, ours):
        assert_equal(model, theirs, image((64, 96), batch=1))


@pytest.mark.parametrize("name", NAMES)
def test_features(timm, tmp_path, name):
    """timm has the stem's output in front of the four streams."""
    ours = randomize(without_weights(hf.create_model, NAMES[name], task="features", fast=False))
    theirs = without_weights(timm.create_model, name, features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    fast = without_weights(hf.create_model, NAMES[name], task="features")
    assert hf.load_checkpoint(fast, tmp_path / "timm.pth") == ([], [], [])
    for model in (fast, ours):
        assert_equal(model, theirs, image((64, 96), batch=1))


@pytest.mark.parametrize("name", NAMES)
def test_feature_extraction_takes_as_many_multiply_adds(timm, name):
    with torch.device("meta"), torch.no_grad():
        theirs = timm.create_model(name, features_only=True, feature_location="").eval()
        with FlopCounterMode(display=False) as counter:
            theirs(torch.empty(1, 3, 224, 224))
        counts = multiply_adds(hf.create_model(NAMES[name], task="features", fast=False), (224, 224))
    assert counts.published * 2 == counter.get_total_flops()
