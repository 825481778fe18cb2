"""What a network expects of its images, and callers have not done."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Normalization:
    """What a network expects of its image: (image - mean) / std, of each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """A normalized image [N, C, H, W], in its own dtype."""
        mean, std = (image.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (image - mean) / std
