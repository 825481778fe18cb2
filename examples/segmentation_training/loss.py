"""The loss and the learning rate of HRNet-Semantic-Segmentation's recipe."""

import torch
import torch.nn.functional as F
from torch import Tensor

from segmentation_training.data import IGNORE


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the pixels that are not ignored; 0 where all are (torch's mean would be NaN)."""
    total = F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)


def ohem(logits: Tensor, target: Tensor, threshold: float = 0.9, least: int = 131072) -> Tensor:
    """Cross-entropy over hard pixels: the class has a probability below ``threshold``, at least ``least`` of them.

    logits [N, C, H, W], target [N, H, W]; the official ``OhemCrossEntropy`` (lib/core/criterion.py).
    """
    losses = F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="none").flatten()
    losses = losses[target.flatten() != IGNORE]
    if losses.numel() == 0:
        return logits.float().sum() * 0
    probability = torch.exp(-losses.detach())
    least = min(least, probability.numel() - 1)
    limit = max(float(probability.kthvalue(least + 1).values), threshold)
    hard = losses[probability < limit]
    return hard.mean() if hard.numel() else losses.mean()


def poly(base: float, step: int, steps: int, power: float = 0.9) -> float:
    """The learning rate of a step."""
    return base * (1 - step / steps) ** power
