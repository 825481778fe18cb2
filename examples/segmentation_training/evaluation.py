"""Mean intersection over union: whole images or sliding windows, one scale or several, with or without flips."""

import torch
from torch import Tensor

from hrnet_fast.apps.inference import probabilities
from hrnet_fast.apps.pictures.reading import normalize
from segmentation_training.data import IGNORE


def confusion(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """[classes, classes] counts, row: the label, column: what was predicted."""
    counted = target != IGNORE
    pairs = target[counted].long() * classes + prediction[counted].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def mean_iou(matrix: Tensor) -> tuple[float, list[float]]:
    """mIoU over the classes that occur in labels or predictions, and every class's IoU (NaN where it does not occur)."""
    hits = matrix.diagonal().double()
    iou = hits / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    return float(iou.nanmean()), iou.tolist()


def evaluate(model, source, device, window, classes, scales=(1.0,), flip=False, rank=0, ranks=1, tick=lambda: None):
    """The confusion matrix of every ``ranks``-th image from ``rank`` on; the model is left in the mode it was in."""
    training, matrix = model.training, torch.zeros(classes, classes, dtype=torch.int64, device=device)
    model.eval()
    for index in range(rank, len(source), ranks):
        image, mask = source.load(index)
        image = normalize(image)[None].to(device, memory_format=torch.channels_last)
        prediction = probabilities(model, image, window, scales, flip).argmax(1)[0]
        matrix += confusion(prediction, mask.to(device), classes)
        tick()
    model.train(training)
    return matrix
