"""Crops of images and masks for training, augmented by their position in it."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from hrnet_fast.apps.evaluation.sets import IGNORE, Folder, Shapes
from hrnet_fast.apps.pictures.reading import normalize


class Positions(Dataset):
    """Augmented crops by their position in training, not by their place in the set.

    Position p is item p mod n of the shuffled epoch p div n, augmented with random numbers of its own: the same for any
    number of workers and ranks, and after a resume.
    """

    def __init__(self, source: Folder | Shapes, crop: tuple[int, int], seed: int, scale: bool = True):
        self.source, self.crop, self.seed, self.scale = source, crop, seed, scale

    def index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.source))
        g = torch.Generator().manual_seed(self.seed * 7919 + epoch)
        return int(torch.randperm(len(self.source), generator=g)[place])

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, int]:
        image, mask = self.source.load(self.index(position))
        g = torch.Generator().manual_seed(self.seed * 104_729 + position)
        image, mask = self._augment(normalize(image), mask.long(), g)
        return image, mask, position

    def _augment(self, image: Tensor, mask: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """The official recipe: a factor of 0.5 to 2.1, padding, a random crop, a flip."""
        if self.scale:
            factor = 0.5 + int(torch.randint(0, 17, (), generator=g)) / 10
            size = [max(1, int(side * factor + 0.5)) for side in mask.shape]
            image = F.interpolate(image[None], size, mode="bilinear")[0]
            mask = F.interpolate(mask[None, None].float(), size, mode="nearest")[0, 0].long()
        height, width = self.crop
        below, right = max(0, height - mask.shape[0]), max(0, width - mask.shape[1])
        image, mask = F.pad(image, (0, right, 0, below)), F.pad(mask, (0, right, 0, below), value=IGNORE)
        top = int(torch.randint(0, mask.shape[0] - height + 1, (), generator=g))
        left = int(torch.randint(0, mask.shape[1] - width + 1, (), generator=g))
        image, mask = (t[..., top : top + height, left : left + width] for t in (image, mask))
        if torch.rand((), generator=g) < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        return image.contiguous(), mask.contiguous()


def batches(first: int, last: int, batch: int, rank: int, ranks: int):
    """The positions of steps ``first`` to ``last`` that this rank computes, a list a step."""
    for step in range(first, last):
        start = (step * ranks + rank) * batch
        yield list(range(start, start + batch))
