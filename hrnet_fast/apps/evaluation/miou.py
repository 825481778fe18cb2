"""Mean intersection over union, from a matrix that counts pixels by their label and their predicted class."""

import torch
from torch import Tensor

from hrnet_fast.apps.evaluation.sets import IGNORE


def confusion(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """[classes, classes] counts, row: the label, column: what was predicted."""
    counted = target != IGNORE
    pairs = target[counted].long() * classes + prediction[counted].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def mean_iou(matrix: Tensor) -> tuple[float, list[float]]:
    """mIoU over the classes that occur in labels or predictions, and the IoU of each (NaN if it does not occur)."""
    hits = matrix.diagonal().double()
    iou = hits / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    return float(iou.nanmean()), iou.tolist()
