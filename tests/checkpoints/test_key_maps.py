"""Checkpoints in the key layouts of OpenMMLab, and those of another width or task."""

import re

import pytest
import torch

import hrnet_fast as hf
from hrnet_fast.models import randomize
from support.model_cases import SMALL

OCR = "decode_head.1.object_context_block"
BLOCK = "ocr_distri_head.object_context_block"

# official key, as a regular expression -> OpenMMLab's, in the words of its own modules
HEADS = {
    "segmentation": [
        (r"last_layer\.0\.", "decode_head.convs.0.conv."),
        (r"last_layer\.1\.", "decode_head.convs.0.bn."),
        (r"last_layer\.3\.", "decode_head.conv_seg."),
    ],
    "segmentation_ocr": [
        (r"aux_head\.0\.", "decode_head.0.convs.0.conv."),
        (r"aux_head\.1\.", "decode_head.0.convs.0.bn."),
        (r"aux_head\.3\.", "decode_head.0.conv_seg."),
        (r"conv3x3_ocr\.0\.", "decode_head.1.bottleneck.conv."),
        (r"conv3x3_ocr\.1\.", "decode_head.1.bottleneck.bn."),
        (rf"{BLOCK}\.f_pixel\.0\.", f"{OCR}.query_project.0.conv."),
        (rf"{BLOCK}\.f_pixel\.1\.0\.", f"{OCR}.query_project.0.bn."),
        (rf"{BLOCK}\.f_pixel\.2\.", f"{OCR}.query_project.1.conv."),
        (rf"{BLOCK}\.f_pixel\.3\.0\.", f"{OCR}.query_project.1.bn."),
        (rf"{BLOCK}\.f_object\.0\.", f"{OCR}.key_project.0.conv."),
        (rf"{BLOCK}\.f_object\.1\.0\.", f"{OCR}.key_project.0.bn."),
        (rf"{BLOCK}\.f_object\.2\.", f"{OCR}.key_project.1.conv."),
        (rf"{BLOCK}\.f_object\.3\.0\.", f"{OCR}.key_project.1.bn."),
        (rf"{BLOCK}\.f_down\.0\.", f"{OCR}.value_project.conv."),
        (rf"{BLOCK}\.f_down\.1\.0\.", f"{OCR}.value_project.bn."),
        (rf"{BLOCK}\.f_up\.0\.", f"{OCR}.out_project.conv."),
        (rf"{BLOCK}\.f_up\.1\.0\.", f"{OCR}.out_project.bn."),
        (r"ocr_distri_head\.conv_bn_dropout\.0\.", f"{OCR}.bottleneck.conv."),
        (r"ocr_distri_head\.conv_bn_dropout\.1\.0\.", f"{OCR}.bottleneck.bn."),
        (r"cls_head\.", "decode_head.1.conv_seg."),
    ],
    "pose": [(r"final_layer\.", "head.final_layer.")],
    "detection": [
        (r"neck\.reduction_conv\.0\.", "neck.reduction_conv.conv."),
        (r"neck\.fpn_conv\.(\d)\.", r"neck.fpn_convs.\1.conv."),
    ],
    "features": [],
}
UNBIASED = ["last_layer.0.bias", "aux_head.0.bias", "conv3x3_ocr.0.bias"]  # mmcv has no bias in front of a norm


def source(task):
    """Random weights that OpenMMLab's networks could have."""
    state = randomize(hf.create_model(SMALL, task=task)).state_dict()
    for key in UNBIASED:
        if key in state:
            state[key].zero_()
    return state


def openmmlab(state, task):
    result = {}
    for key, value in state.items():
        if key in UNBIASED:
            continue
        for official, theirs in HEADS[task]:
            renamed, count = re.subn("^" + official, theirs, key)
            if count:
                break
        else:
            renamed = f"backbone.{key}"
        result[renamed] = value
    return result


def assert_loads(state, expected, task, path):
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, path)
    model = hf.create_model(SMALL, task=task)
    assert hf.load_checkpoint(model, path) == ([], [], [])
    loaded = model.state_dict()
    assert [k for k, v in expected.items() if not torch.equal(loaded[k], v)] == []


@pytest.mark.parametrize("task", HEADS)
def test_openmmlab(tmp_path, task):
    expected = source(task)
    state = openmmlab(expected, task)
    assert not [k for k in state if not k.startswith(("backbone.", "decode_head.", "head.", "neck."))]
    assert_loads(state, expected, task, tmp_path / "weights.pth")


def test_mmpose_0(tmp_path):
    expected = source("pose")
    state = {k.replace("head.final", "keypoint_head.final"): v for k, v in openmmlab(expected, "pose").items()}
    assert "keypoint_head.final_layer.weight" in state
    assert_loads(state, expected, "pose", tmp_path / "weights.pth")


@pytest.mark.parametrize("layout", ["official", "mmdet"])
def test_detectors_are_loaded_without_their_heads(tmp_path, layout):
    expected = source("detection")
    state = openmmlab(expected, "detection")
    if layout == "official":
        state = {k if k.startswith("neck.") else f"backbone.{k}": v for k, v in expected.items()}
    heads = {
        "rpn_head.rpn_conv.weight": torch.ones(2),
        "roi_head.bbox_head.fc_cls.bias": torch.ones(2),
        "bbox_head.fc_cls.weight": torch.ones(2),
    }
    assert_loads({**state, **heads}, expected, "detection", tmp_path / "weights.pth")


def test_a_missing_bias_of_an_official_file_is_a_mistake(tmp_path):
    for task, key in (("segmentation", "last_layer.0.bias"), ("classification", "final_layer.0.bias")):
        state = hf.create_model(SMALL, task=task).state_dict()
        del state[key]
        torch.save(state, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=f"1 missing: {key}"):
            hf.load_checkpoint(hf.create_model(SMALL, task=task), tmp_path / "weights.pth")


def test_a_missing_openmmlab_key_is_listed(tmp_path):
    state = openmmlab(source("segmentation"), "segmentation")
    del state["decode_head.convs.0.conv.weight"], state["backbone.conv1.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"missing: conv1.weight, last_layer.0.weight"):
        hf.load_checkpoint(hf.create_model(SMALL), tmp_path / "weights.pth")


OTHERS = [
    (
        "hrnet_w18_small_v2",
        "segmentation",
        "width 18 for segmentation with 19 classes, the model is an HRNet of width 16 for segmentation with 19 classes",
    ),
    (
        SMALL,
        "segmentation_ocr",
        "width 16 for segmentation_ocr with 19 classes, "
        "the model is an HRNet of width 16 for segmentation with 19 classes",
    ),
    (SMALL, "classification", "width 16 for classification with 1000 classes, .*unexpected: incre_modules"),
    (SMALL, "pose", "width 16 for pose with 17 key points, .*missing: stage4.0.fuse_layers.1"),
    (SMALL, "detection", "width 16 for detection, .*unexpected: neck.reduction_conv.0.weight"),
    (SMALL, "features", "width 16 for features, .*missing: last_layer.0.weight"),
]


@pytest.mark.parametrize(("name", "task", "message"), OTHERS, ids=[f"{row[0]}-{row[1]}" for row in OTHERS])
def test_checkpoints_of_another_width_or_task(tmp_path, name, task, message):
    torch.save(hf.create_model(name, task=task).state_dict(), tmp_path / "weights.pth")
    model = hf.create_model(SMALL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"(?s)it holds an HRNet of {message}"):
        hf.load_checkpoint(model, tmp_path / "weights.pth")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_scalars_under_the_keys_of_weights_are_a_mismatch(tmp_path):
    torch.save({k: torch.tensor(1.0) for k in hf.create_model(SMALL).state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"mismatched: conv1.weight \[\] -> \[64, 3, 3, 3\]"):
        hf.load_checkpoint(hf.create_model(SMALL), tmp_path / "weights.pth")
