"""Checkpoints as every family saves them, made of random weights."""

import argparse
import functools
from pathlib import Path

import numpy
import torch

from checkpoints.test_key_maps import openmmlab
from checkpoints.test_key_maps import source as make
from hrnet_fast.checkpoints.convert import convert_checkpoint

HEADS = ("downsamp_modules.", "final_layer.")


made = functools.cache(make)


def source(task):
    """Random weights of one network for each task, the same for all tests; they may be changed."""
    return {k: v.clone() for k, v in made(task).items()}


def prefixed(state, prefix):
    return {prefix + k: v for k, v in state.items()}


def unbiased(state):
    return {k: v for k, v in state.items() if not (k.startswith(HEADS) and k.endswith("0.bias"))}


def official_training(state):
    """checkpoint.pth.tar of HRNet-Semantic-Segmentation: its mIoU is a number of numpy."""
    weights = prefixed(state, "model.") | {"loss.criterion.weight": torch.ones(19)}
    return {"epoch": 3, "best_mIoU": numpy.float64(0.7), "optimizer": {"state": {}}, "state_dict": weights}


def official_ocr(state):
    return prefixed(state, "module.model.")


def official_pose(state):
    return {"epoch": 210, "model": "pose_hrnet", "state_dict": prefixed(state, "module."), "perf": numpy.float32(0.7),
            "best_state_dict": state, "optimizer": {}}  # fmt: skip


def official_detector(state):
    heads = {"rpn_head.rpn_conv.weight": torch.ones(2), "bbox_head.fc_cls.weight": torch.ones(2)}
    neck = {k: v for k, v in state.items() if k.startswith("neck.")}
    return {"state_dict": prefixed({k: v for k, v in state.items() if k not in neck}, "backbone.") | neck | heads}


def timm_training(state):
    """What timm's CheckpointSaver writes; the average is another network here."""
    average = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    settings = argparse.Namespace(lr=0.1, folder=Path("data"))
    return {"epoch": 1, "arch": "hrnet_w18_small", "state_dict": prefixed(state, "module."), "args": settings,
            "optimizer": {}, "version": 2, "state_dict_ema": average}  # fmt: skip


def mmseg(state):
    return {"meta": {"mmseg_version": "0.30"}, "state_dict": openmmlab(state, "segmentation"), "optimizer": {}}


def mmseg_ocr(state):
    return {"meta": {}, "state_dict": prefixed(openmmlab(state, "segmentation_ocr"), "module.")}


def mmpose(state):
    return {"state_dict": openmmlab(state, "pose")}


def mmpose_0(state):
    return {
        "state_dict": {k.replace("head.final", "keypoint_head.final"): v for k, v in openmmlab(state, "pose").items()}
    }


def mmdet(state):
    return {"state_dict": openmmlab(state, "detection") | {"roi_head.bbox_head.fc_cls.bias": torch.ones(2)}}


def mmpretrain(state):
    names = [("incre_modules.", "neck.increase_layers."), ("classifier.", "head.fc.")]
    names += [(f"downsamp_modules.{i}.{k}.", f"neck.downsample_layers.{i}.{name}.")
              for i in range(3) for k, name in enumerate(("conv", "bn"))]  # fmt: skip
    names += [(f"final_layer.{k}.", f"neck.final_layer.{name}.") for k, name in enumerate(("conv", "bn"))]
    renamed = {}
    for key, value in unbiased(state).items():
        new = next((there + key.removeprefix(here) for here, there in names if key.startswith(here)), f"backbone.{key}")
        renamed[new] = value
    return {"meta": {}, "state_dict": renamed}


def lightning(state):
    return {"pytorch-lightning_version": "2.4", "state_dict": prefixed(state, "net._orig_mod."), "loops": {}}


def backbone_alone(state):
    return {"state_dict": prefixed(state, "backbone.")}


FAMILIES = [
    ("segmentation", official_training, "official HRNet-Semantic-Segmentation"),
    ("segmentation_ocr", official_ocr, "official HRNet-Semantic-Segmentation, branch HRNet-OCR"),
    ("classification", dict, "official HRNet-Image-Classification, or timm"),
    ("pose", official_pose, "official deep-high-resolution-net.pytorch"),
    ("detection", official_detector, "official HRNet-Object-Detection"),
    ("features", dict, "official, a backbone alone"),
    ("classification", timm_training, "official HRNet-Image-Classification, or timm"),
    ("classification", unbiased, "timm, hrnet_*_ssld"),
    ("segmentation", mmseg, "OpenMMLab mmseg"),
    ("segmentation_ocr", mmseg_ocr, "OpenMMLab mmseg"),
    ("pose", mmpose, "OpenMMLab mmpose"),
    ("pose", mmpose_0, "OpenMMLab mmpose"),
    ("detection", mmdet, "OpenMMLab mmdet"),
    ("classification", mmpretrain, "OpenMMLab mmpretrain"),
    ("features", backbone_alone, "OpenMMLab, a backbone alone"),
    ("segmentation", lightning, "official HRNet-Semantic-Segmentation"),
]


def weights_of(task, family=None):
    state = source(task)
    if family in (unbiased, mmpretrain):
        for key in state.keys() - unbiased(state).keys():
            state[key].zero_()
    return state


def converted(content, folder, **options):
    torch.save(content, folder / "weights.pth")
    return convert_checkpoint(folder / "weights.pth", folder / "new.safetensors", **options)
