"""Class probabilities of an image: whole or in sliding windows, at one scale or several, with or without its mirror image.

Evaluation as in HRNet-Semantic-Segmentation (``multi_scale_inference`` in ``lib/datasets/cityscapes.py``), with the mean of
probabilities over scales, flips and overlaps.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SIDE = 32  # pixels that a scaled image keeps, at least


@torch.no_grad()
def probabilities(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    window: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Class probabilities [1, C, H, W] in float32, the mean over scales and flips.

    Args:
        model: logits [1, C, h, w] of an image [1, 3, h, w].
        image: [1, 3, H, W], normalized.
        window: (height, width) in pixels of windows that overlap by a third; None: the whole image at once.
        scales: factors on the image's size.
        flip: also the image mirrored left to right.
    """
    size, total = image.shape[2:], None
    for scale in scales:
        scaled = image
        if scale != 1:
            scaled = F.interpolate(image, [max(MIN_SIDE, round(side * scale)) for side in size], mode="bilinear")
        for flipped in (False, True) if flip else (False,):
            p = _windows(model, scaled.flip(-1) if flipped else scaled, window or tuple(scaled.shape[2:]))
            p = F.interpolate(p.flip(-1) if flipped else p, size, mode="bilinear")
            total = p if total is None else total + p
    return total / (len(scales) * (2 if flip else 1))


def one_window(size: Sequence[int], window: tuple[int, int] | None) -> bool:
    """Whether an image (height, width) fits into a window."""
    return window is None or (size[0] <= window[0] and size[1] <= window[1])


def _windows(model, image: Tensor, window: tuple[int, int]) -> Tensor:
    """Windows of at most ``window`` that overlap by a third, the mean where they do; one window where the image fits."""
    height, width = image.shape[2:]
    if one_window((height, width), window):
        return model(image).float().softmax(1)
    total, count = None, torch.zeros(1, 1, height, width, device=image.device)
    for top in _starts(height, window[0]):
        for left in _starts(width, window[1]):
            place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            p = model(image[place]).float().softmax(1)
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
