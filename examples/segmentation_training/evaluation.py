"""Mean intersection over union: whole images or sliding windows, one scale or several, with or without flips."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmentation_training.data import IGNORE, normalize


@torch.no_grad()
def probabilities(model: nn.Module, image: Tensor, window: tuple[int, int], scales=(1.0,), flip=False) -> Tensor:
    """Class probabilities [1, C, H, W] of an image [1, 3, H, W], the mean over scales and flips."""
    size, total = image.shape[2:], None
    for scale in scales:
        scaled = image
        if scale != 1:
            scaled = F.interpolate(image, [max(32, round(side * scale)) for side in size], mode="bilinear")
        for flipped in (False, True) if flip else (False,):
            p = _windows(model, scaled.flip(-1) if flipped else scaled, window)
            p = F.interpolate(p.flip(-1) if flipped else p, size, mode="bilinear")
            total = p if total is None else total + p
    return total / (len(scales) * (2 if flip else 1))


def _windows(model: nn.Module, image: Tensor, window: tuple[int, int]) -> Tensor:
    """Windows of at most ``window`` that overlap by a third, the mean where they do; one window where the image fits."""
    height, width = image.shape[2:]
    tops, lefts = _starts(height, window[0]), _starts(width, window[1])
    if len(tops) == len(lefts) == 1:
        return model(image).float().softmax(1)
    total, count = None, image.new_zeros(1, 1, height, width)
    for top in tops:
        for left in lefts:
            place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            p = model(image[place].contiguous(memory_format=torch.channels_last)).float().softmax(1)
            if total is None:
                total = p.new_zeros(1, p.shape[1], height, width)
            total[place] += p
            count[place] += 1
    return total / count


def _starts(size: int, window: int) -> list[int]:
    if size <= window:
        return [0]
    steps = -(-(size - window) // max(1, window * 2 // 3))
    return [round(k * (size - window) / steps) for k in range(steps + 1)]


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
