"""HRNet models by name, their weights, and their counts of parameters and multiply-adds."""

from collections.abc import Callable
from os import PathLike, fspath
from typing import NamedTuple

from torch import nn

import hrnet_fast
from hrnet_fast.checkpoints.header import Header, read_header
from hrnet_fast.checkpoints.load import load_checkpoint
from hrnet_fast.models import configs
from hrnet_fast.models import initialize as init
from hrnet_fast.models.classification import ClassificationHRNet
from hrnet_fast.models.configs import list_models
from hrnet_fast.models.detection import DetectionHRNet
from hrnet_fast.models.flops import MultiplyAdds, multiply_adds
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.models.initialize import randomize
from hrnet_fast.models.ocr import OCRHRNet
from hrnet_fast.models.pose import PoseHRNet
from hrnet_fast.models.segmentation import DenseHRNet, SegmentationHRNet
from hrnet_fast.ops.exchange.call import MODES

__all__ = [
    "TASKS",
    "MultiplyAdds",
    "create_model",
    "list_models",
    "multiply_adds",
    "official_interpolation",
    "randomize",
]


class _Task(NamedTuple):
    """A network, and what it is in its official repository."""

    network: type[HRNet]
    upsample: str  # of the exchange units
    align_corners: bool
    momentum: float  # of the BatchNorms
    num_classes: int | None  # Cityscapes, ImageNet, COCO's key points; None: the network has no classes
    initialize: Callable[[nn.Module], None]


_TASKS = {
    "segmentation": _Task(SegmentationHRNet, "bilinear", False, 0.01, 19, init.initialize_segmentation),
    "segmentation_ocr": _Task(OCRHRNet, "bilinear", True, 0.1, 19, init.initialize_segmentation_ocr),
    "classification": _Task(ClassificationHRNet, "nearest", False, 0.1, 1000, init.initialize_classification),
    "pose": _Task(PoseHRNet, "nearest", False, 0.1, 17, init.initialize_pose),
    "detection": _Task(DetectionHRNet, "nearest", False, 0.1, None, init.initialize_detection),
    "features": _Task(HRNet, "nearest", False, 0.1, None, init.initialize_classification),
}
TASKS = tuple(_TASKS)  #: what ``create_model`` takes as ``task``


def create_model(
    name: str,
    task: str = "segmentation",
    num_classes: int | None = None,
    in_chans: int = 3,
    upsample: str | None = None,
    align_corners: bool | None = None,
    full_resolution: bool = True,
    fast: bool = True,
    checkpoint: str | PathLike[str] | None = None,
    weights: str | None = None,
) -> nn.Module:
    """An HRNet, initialized as in the official code of its task, or with the weights of a checkpoint.

    Without trained weights do not compare outputs: of a fresh network they are almost the same for every image and
    pixel (segmentation, OCR) or almost zero (pose), so that even a wrong computation seems to agree. Call
    ``hrnet_fast.models.randomize`` first.

    Args:
        name: one of ``list_models()``, or timm's name.
        task: what an image [N, in_chans, H, W] becomes:

            - "segmentation" (HRNetV2): logits [N, num_classes, H, W];
            - "segmentation_ocr": a list of auxiliary logits and logits, both [N, num_classes, H, W];
            - "classification": logits [N, num_classes];
            - "pose" (HRNetV1): heat maps [N, num_classes, ceil(H / 4), ceil(W / 4)];
            - "detection" (HRNetV2p): a list of five levels [N, 256, H / (4 << i), W / (4 << i)];
            - "features": a list of four streams [N, C << k, ceil(H / (4 << k)), ceil(W / (4 << k))].
        num_classes: classes, or key points for "pose"; None: 19, 1000 for classification, 17 for pose. Unused by
            "detection" and "features".
        in_chans: channels of the image.
        upsample: upsampling of the exchange units, "bilinear" or "nearest"; None: that of the task's official
            repository (segmentation: bilinear; the others: nearest).
        align_corners: of every bilinear interpolation but the detection pyramid's; None: that of the task's official
            repository (segmentation_ocr: True; the others: False).
        full_resolution: segmentation logits at the image's size; False: at the official quarter of it.
        fast: False for the plain form, step by step as in the official code. State dicts are interchangeable.
        checkpoint: a file for ``load_checkpoint``. Where ``hrnet-fast convert`` wrote it, it must hold this name and
            task; num_classes, upsample and align_corners are the file's where they are None, and must agree where not.
        weights: published weights by name, such as "cityscapes", in place of a checkpoint: ``list_weights(name, task)``
            names them. They are downloaded at first use (``download_weights``).

    Raises:
        ValueError: an unknown name, task, upsampling or weights, align_corners without any bilinear interpolation,
            counts below 1, or a checkpoint that does not fit or was trained otherwise.
        OSError: the weights cannot be downloaded; the message says why and what to do.
    """
    if task not in _TASKS:
        raise ValueError(f"task: expected one of {', '.join(map(repr, _TASKS))}, got {task!r}")
    canonical, config = configs.find(name)
    official = _TASKS[task]
    if weights is not None:
        if checkpoint is not None:
            raise ValueError("weights: expected either weights by name or a checkpoint, got both")
        checkpoint = hrnet_fast.download_weights(canonical, task, weights)  # which builds on this module
    trained = None
    if checkpoint is not None and (trained := read_header(checkpoint)) is not None:
        asked = {"num_classes": num_classes, "upsample": upsample, "align_corners": align_corners}
        _check_trained(trained, canonical, task, asked, checkpoint)
        num_classes, upsample, align_corners = trained.num_classes, trained.upsample, trained.align_corners
    mode = official.upsample if upsample is None else upsample
    if mode not in MODES:
        raise ValueError(f"upsample: expected None or one of {', '.join(map(repr, MODES))}, got {upsample!r}")
    is_dense = issubclass(official.network, DenseHRNet)
    if align_corners and mode == "nearest" and not is_dense:
        raise ValueError("align_corners: only bilinear interpolation has it, got upsample 'nearest'")
    align_corners = official.align_corners if align_corners is None else align_corners
    num_classes = official.num_classes if num_classes is None else num_classes
    for argument, value in (("num_classes", num_classes), ("in_chans", in_chans)):
        if value is not None and value < 1:
            raise ValueError(f"{argument}: expected at least 1, got {value}")
    head = {} if official.num_classes is None else {"num_classes": num_classes}
    if is_dense:
        head["full_resolution"] = full_resolution
    model = official.network(config, in_chans, mode, align_corners, official.momentum, fast, **head)
    # what flops.multiply_adds builds its twins from
    model.recipe = {
        "name": canonical,
        "task": task,
        "num_classes": num_classes,
        "in_chans": in_chans,
        "upsample": mode,
        "align_corners": align_corners,
    }
    model.header = trained  # what to write into a file of its weights
    official.initialize(model)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model


def official_interpolation(task: str) -> tuple[str, bool]:
    """``upsample`` and ``align_corners`` of a task in its official repository."""
    return _TASKS[task].upsample, _TASKS[task].align_corners


def _check_trained(trained: Header, name: str, task: str, asked: dict, path: str | PathLike) -> None:
    """Raises ValueError where a checkpoint's header is not what was asked for."""
    for argument, want, has in (("name", name, trained.model), ("task", task, trained.task)):
        if want != has:
            raise ValueError(f"{argument}: {fspath(path)!r} holds {trained.description}, got {want!r}")
    for argument, want in asked.items():
        has = getattr(trained, argument)
        if want is None or has is None or want == has:
            continue
        if argument == "num_classes":
            raise ValueError(f"num_classes: {fspath(path)!r} holds {trained.description}, got {want}")
        raise ValueError(
            f"{argument}: {fspath(path)!r} was trained with {argument}={has!r}, got {want!r}, which would "
            "give wrong results without any other sign; leave the argument out to take the file's; if its "
            f"header is wrong, convert the checkpoint again with --{argument.replace('_', '-')}"
        )
