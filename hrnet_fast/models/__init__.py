"""HRNet models by name, their weights, and their counts of parameters and multiply-adds."""

from collections.abc import Callable
from os import PathLike

from torch import nn

from hrnet_fast.call import MODES
from hrnet_fast.models import configs
from hrnet_fast.models.checkpoint import LoadReport, load_checkpoint
from hrnet_fast.models.configs import list_models
from hrnet_fast.models.flops import MultiplyAdds, multiply_adds
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.models.initialize import initialize_features, initialize_segmentation, randomize
from hrnet_fast.models.segmentation import SegmentationHRNet

__all__ = [
    "LoadReport",
    "MultiplyAdds",
    "create_model",
    "list_models",
    "load_checkpoint",
    "multiply_adds",
    "randomize",
]

# task -> the upsampling of the exchange units, BatchNorm momentum and initialization of its official repository
_TASKS: dict[str, tuple[str, float, Callable[[nn.Module], None]]] = {
    "segmentation": ("bilinear", 0.01, initialize_segmentation),
    "features": ("nearest", 0.1, initialize_features),
}


def create_model(
    name: str,
    task: str = "segmentation",
    num_classes: int = 19,
    in_chans: int = 3,
    upsample: str | None = None,
    align_corners: bool = False,
    full_resolution: bool = True,
    fast: bool = True,
    checkpoint: str | PathLike | None = None,
) -> nn.Module:
    """An HRNet, initialized as in the official code of its task, or with the weights of a checkpoint.

    Args:
        name: one of ``list_models()``, or timm's name.
        task: "segmentation" (HRNetV2; image [N, in_chans, H, W] to logits [N, num_classes, H, W]) or "features" (image
            to a list of four streams [N, C << k, ceil(H / (4 << k)), ceil(W / (4 << k))]).
        num_classes: channels of the logits; unused by "features".
        in_chans: channels of the image.
        upsample: upsampling of the exchange units, "bilinear" or "nearest"; None: that of the task's official
            repository (segmentation: bilinear; features: nearest, as HRNet-Image-Classification and timm).
        align_corners: of every bilinear interpolation.
        full_resolution: segmentation logits at the image's size; False: at the official quarter of it.
        fast: False for the plain form, step by step as in the official code. State dicts are interchangeable.
        checkpoint: a file for ``load_checkpoint``.

    Raises:
        ValueError: an unknown name, task or upsampling, align_corners without any bilinear interpolation, counts below
            1, or a checkpoint that does not fit.
    """
    if task not in _TASKS:
        raise ValueError(f"task: expected one of {', '.join(map(repr, _TASKS))}, got {task!r}")
    canonical, config = configs.find(name)
    default, momentum, initialize = _TASKS[task]
    mode = default if upsample is None else upsample
    if mode not in MODES:
        raise ValueError(f"upsample: expected None or one of {', '.join(map(repr, MODES))}, got {upsample!r}")
    if align_corners and task == "features" and mode == "nearest":
        raise ValueError("align_corners: only bilinear interpolation has it, got upsample 'nearest'")
    for argument, value in (("num_classes", num_classes), ("in_chans", in_chans)):
        if value < 1:
            raise ValueError(f"{argument}: expected at least 1, got {value}")
    shared = (config, in_chans, mode, align_corners, momentum, fast)
    model = SegmentationHRNet(*shared, num_classes, full_resolution) if task == "segmentation" else HRNet(*shared)
    # what flops.multiply_adds builds its twins from
    model.recipe = {"name": canonical, "task": task, "num_classes": num_classes, "in_chans": in_chans, "upsample": mode,
                    "align_corners": align_corners}  # fmt: skip
    initialize(model)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model
