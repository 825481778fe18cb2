"""Key layouts of other projects' checkpoints, translated to the official keys that the models here have."""

from collections.abc import Mapping

from torch import Tensor

_OBJECTS = "decode_head.1.object_context_block"
_CONTEXT = "ocr_distri_head.object_context_block"

# Convolution and norm in one (mmcv's ConvModule, keys ``conv`` and ``bn``) -> where the two are in the official layout.
# Sources: mmseg/models/decode_heads/{fcn_head,ocr_head}.py, mmdet/models/necks/hrfpn.py.
_CONV_MODULES = {
    "decode_head.convs.0": ("last_layer.0", "last_layer.1"),
    "decode_head.0.convs.0": ("aux_head.0", "aux_head.1"),
    "decode_head.1.bottleneck": ("conv3x3_ocr.0", "conv3x3_ocr.1"),
    f"{_OBJECTS}.query_project.0": (f"{_CONTEXT}.f_pixel.0", f"{_CONTEXT}.f_pixel.1.0"),
    f"{_OBJECTS}.query_project.1": (f"{_CONTEXT}.f_pixel.2", f"{_CONTEXT}.f_pixel.3.0"),
    f"{_OBJECTS}.key_project.0": (f"{_CONTEXT}.f_object.0", f"{_CONTEXT}.f_object.1.0"),
    f"{_OBJECTS}.key_project.1": (f"{_CONTEXT}.f_object.2", f"{_CONTEXT}.f_object.3.0"),
    f"{_OBJECTS}.value_project": (f"{_CONTEXT}.f_down.0", f"{_CONTEXT}.f_down.1.0"),
    f"{_OBJECTS}.out_project": (f"{_CONTEXT}.f_up.0", f"{_CONTEXT}.f_up.1.0"),
    f"{_OBJECTS}.bottleneck": ("ocr_distri_head.conv_bn_dropout.0", "ocr_distri_head.conv_bn_dropout.1.0"),
    "neck.reduction_conv": ("neck.reduction_conv.0", None),
    **{f"neck.fpn_convs.{i}": (f"neck.fpn_conv.{i}", None) for i in range(5)},
}

_RENAMED = {
    "backbone.": "",
    "decode_head.conv_seg.": "last_layer.3.",
    "decode_head.0.conv_seg.": "aux_head.3.",
    "decode_head.1.conv_seg.": "cls_head.",
    "keypoint_head.final_layer.": "final_layer.",  # mmpose 0.x
    "head.final_layer.": "final_layer.",  # mmpose 1.x
    **{f"{name}.conv.": f"{conv}." for name, (conv, _) in _CONV_MODULES.items()},
    **{f"{name}.bn.": f"{norm}." for name, (_, norm) in _CONV_MODULES.items() if norm},
}

# Convolutions that have a bias in front of their norm in the official code, and none elsewhere: mmseg's FCN and OCR
# heads, each on its own, and timm's hrnet_*_ssld, all of them.
_UNBIASED_IN_MMSEG = (("last_layer.0",), ("aux_head.0",), ("conv3x3_ocr.0",))
_UNBIASED_IN_SSLD = (("downsamp_modules.0.0", "downsamp_modules.1.0", "downsamp_modules.2.0", "final_layer.0"),)

# What a detector has behind its pyramid.
_DETECTOR_HEADS = ("rpn_head.", "roi_head.", "bbox_head.", "mask_head.")

# A key that only one task has -> the task.
_MARKS = {
    "cls_head.weight": "segmentation_ocr",
    "last_layer.3.weight": "segmentation",
    "classifier.weight": "classification",
    "final_layer.weight": "pose",
    "neck.reduction_conv.0.weight": "detection",
}
_COUNTED = {"pose": "key points"}  # what the outputs of a task stand for, where they are no classes


def to_official(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with official keys, made from one of OpenMMLab's or timm's, for a model with the state dict ``own``.

    Keys that are the model's own are left as they are. Convolutions without a bias get a bias of zero where the
    official ones have one; a detector's heads are left out where the model has a pyramid, but no such heads.
    """
    translated = {k if k in own else _rename(k): v for k, v in state.items()}
    renamed = translated.keys() != state.keys()  # in an official file a missing bias is a mistake
    for group in _UNBIASED_IN_MMSEG if renamed else _UNBIASED_IN_SSLD:
        weights, biases = [f"{name}.weight" for name in group], [f"{name}.bias" for name in group]
        if all(k in own and k not in translated for k in biases) and all(k in translated for k in weights):
            for weight, bias in zip(weights, biases, strict=True):
                translated[bias] = translated[weight].new_zeros(translated[weight].shape[:1])
    if any(k.startswith("neck.") for k in own):
        heads = tuple(head for head in _DETECTOR_HEADS if not any(k.startswith(head) for k in own))
        translated = {k: v for k, v in translated.items() if not k.startswith(heads)}
    return translated


def describe(state: Mapping[str, Tensor]) -> str | None:
    """Width, task and number of classes of a state dict with official keys; None where it is no HRNet's."""
    branch = state.get("stage4.0.branches.0.0.conv1.weight")
    if branch is None or branch.dim() != 4:
        return None
    marks = [mark for mark in _MARKS if mark in state]
    width, task = branch.shape[0], _MARKS[marks[0]] if marks else "features"
    if task in ("features", "detection") or state[marks[0]].dim() == 0:
        return f"an HRNet of width {width} for {task}"
    return f"an HRNet of width {width} for {task} with {state[marks[0]].shape[0]} {_COUNTED.get(task, 'classes')}"


def _rename(key: str) -> str:
    for prefix, official in _RENAMED.items():
        if key.startswith(prefix):
            return official + key.removeprefix(prefix)
    return key
