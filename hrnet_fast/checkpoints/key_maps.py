"""Key layouts of other projects' checkpoints, translated to the official keys that the models here have."""

from collections.abc import Mapping

from torch import Tensor

from hrnet_fast.checkpoints.header import counted

_OBJECTS = "decode_head.1.object_context_block"
_CONTEXT = "ocr_distri_head.object_context_block"

# Convolution and norm in one (mmcv's ConvModule, keys ``conv`` and ``bn``) -> where the two are in the official layout.
# Sources: mmseg/models/decode_heads/{fcn_head,ocr_head}.py, mmdet/models/necks/hrfpn.py,
# mmpretrain/models/necks/hr_fuse.py.
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
    **{f"neck.downsample_layers.{i}": (f"downsamp_modules.{i}.0", f"downsamp_modules.{i}.1") for i in range(3)},
    "neck.final_layer": ("final_layer.0", "final_layer.1"),
}

_RENAMED = {
    "backbone.": "",
    "decode_head.conv_seg.": "last_layer.3.",
    "decode_head.0.conv_seg.": "aux_head.3.",
    "decode_head.1.conv_seg.": "cls_head.",
    "keypoint_head.final_layer.": "final_layer.",  # mmpose 0.x
    "head.final_layer.": "final_layer.",  # mmpose 1.x
    "neck.increase_layers.": "incre_modules.",
    "head.fc.": "classifier.",  # mmpretrain
    **{f"{name}.conv.": f"{conv}." for name, (conv, _) in _CONV_MODULES.items()},
    **{f"{name}.bn.": f"{norm}." for name, (_, norm) in _CONV_MODULES.items() if norm},
}

# Convolutions that have a bias in front of their norm in the official code, and none elsewhere: mmseg's FCN and OCR
# heads, each on its own, and those of mmpretrain and of timm's hrnet_*_ssld, all of them.
_UNBIASED_CLASSIFIER = ("downsamp_modules.0.0", "downsamp_modules.1.0", "downsamp_modules.2.0", "final_layer.0")
_UNBIASED_IN_SSLD = (_UNBIASED_CLASSIFIER,)
_UNBIASED_IN_OPENMMLAB = (("last_layer.0",), ("aux_head.0",), ("conv3x3_ocr.0",), _UNBIASED_CLASSIFIER)

# What a detector has behind its pyramid.
_DETECTOR_HEADS = ("rpn_head.", "roi_head.", "bbox_head.", "mask_head.")

# A key that only one task has -> the task. Its length is the number of classes, but for the pyramid's.
_MARKS = {
    "cls_head.weight": "segmentation_ocr",
    "last_layer.3.weight": "segmentation",
    "classifier.weight": "classification",
    "final_layer.weight": "pose",
    "neck.reduction_conv.0.weight": "detection",
}

# A beginning of keys that only one family has -> the family.
_FAMILIES = {
    "decode_head.": "OpenMMLab mmseg",
    "keypoint_head.": "OpenMMLab mmpose",
    "head.final_layer.": "OpenMMLab mmpose",
    "neck.increase_layers.": "OpenMMLab mmpretrain",
    "neck.reduction_conv.conv.": "OpenMMLab mmdet",
    "neck.reduction_conv.0.": "official HRNet-Object-Detection",
    "backbone.": "OpenMMLab, a backbone alone",
    "cls_head.": "official HRNet-Semantic-Segmentation, branch HRNet-OCR",
    "last_layer.": "official HRNet-Semantic-Segmentation",
    "classifier.": "official HRNet-Image-Classification, or timm",  # the same keys
    "final_layer.weight": "official deep-high-resolution-net.pytorch",
}


def to_official(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with official keys, made from one of OpenMMLab's or timm's, for a model with the state dict ``own``.

    Keys that are the model's own are left as they are. Convolutions without a bias get a bias of zero where the
    official ones have one; a detector's heads are left out where the model has a pyramid, but no such heads.
    """
    translated = {k if k in own else _rename(k): v for k, v in state.items()}
    renamed = translated.keys() != state.keys()  # in an official file a missing bias is a mistake
    for group in _UNBIASED_IN_OPENMMLAB if renamed else _UNBIASED_IN_SSLD:
        weights, biases = [f"{name}.weight" for name in group], [f"{name}.bias" for name in group]
        if all(k in own and k not in translated for k in biases) and all(k in translated for k in weights):
            for weight, bias in zip(weights, biases, strict=True):
                translated[bias] = translated[weight].new_zeros(translated[weight].shape[:1])
    if any(k.startswith("neck.") for k in own):
        heads = tuple(head for head in _DETECTOR_HEADS if not any(k.startswith(head) for k in own))
        translated = {k: v for k, v in translated.items() if not k.startswith(heads)}
    return translated


def family(state: Mapping[str, Tensor]) -> str:
    """Whose key layout the keys of a file are in, without the prefixes of wrappers."""
    if "classifier.weight" in state and "downsamp_modules.0.0.bias" not in state:
        return "timm, hrnet_*_ssld"
    found = (name for start, name in _FAMILIES.items() if any(k.startswith(start) for k in state))
    return next(found, "official, a backbone alone")


def task_of(state: Mapping[str, Tensor]) -> tuple[str, int | None]:
    """The task of a state dict with official keys, and how many classes or key points it has."""
    for mark, task in _MARKS.items():
        if mark in state:
            classes = state[mark].shape[:1]
            return task, classes[0] if classes and task != "detection" else None
    return "features", None


def describe(state: Mapping[str, Tensor]) -> str | None:
    """Width, task and classes of a state dict with official keys; None where it is no HRNet's."""
    branch = state.get("stage4.0.branches.0.0.conv1.weight")
    if branch is None or branch.dim() != 4:
        return None
    task, classes = task_of(state)
    return f"an HRNet of width {branch.shape[0]} for {task}{counted(task, classes)}"


def _rename(key: str) -> str:
    for prefix, official in _RENAMED.items():
        if key.startswith(prefix):
            return official + key.removeprefix(prefix)
    return key
