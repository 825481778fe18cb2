"""timm's HRNets, for ``hrnet-fast patch-report --timm`` and ``bench --timm``."""

import difflib

import torch
from torch import nn

from hrnet_fast.bench import BadInput


def create(name: str) -> nn.Module:
    """timm's HRNet of that name in evaluation, without pretrained weights.

    Raises:
        BadInput: timm cannot be imported, or has no HRNet of that name.
    """
    timm = load()
    known = timm.list_models("hrnet*")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or known
        raise BadInput(f"timm has no HRNet called {name!r}; the closest names are: {', '.join(close)}")
    return timm.create_model(name, pretrained=False).eval()


def load():
    """The module timm.

    timm imports torchvision, whose import fails where its compiled operators do not fit the installed torch (the builds
    of PyPI need a torch with CUDA). No HRNet uses those operators: declaring them is enough.

    Raises:
        BadInput: it cannot be imported.
    """
    try:
        try:
            import timm
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            for operator in ("nms", "qnms"):
                if not hasattr(torch.ops.torchvision, operator):
                    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    torch.library.define(f"torchvision::{operator}", schema)
            import timm
    except Exception as error:  # whatever an incomplete installation raises
        raise BadInput(f"timm cannot be imported ({error}): pip install timm") from None
    return timm
