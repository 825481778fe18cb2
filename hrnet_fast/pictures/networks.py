"""The network behind a command: made, given its weights, and called on images."""

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.models import create_model, load_checkpoint, randomize
from hrnet_fast.pictures.reading import normalize


class Network(NamedTuple):
    """A network that is ready to be called."""

    model: nn.Module
    num_classes: int  # or key points
    align_corners: bool  # of its last interpolation
    dtype: torch.dtype
    device: torch.device
    random: bool  # its weights are random

    def image(self, pixels: Tensor) -> Tensor:
        """Pixels [3, H, W] in uint8 as the network's input [1, 3, H, W]."""
        image = normalize(pixels.to(self.device)).unsqueeze(0)
        return image.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def __call__(self, image: Tensor) -> Tensor:
        """Scores [N, classes, ceil(H / 4), ceil(W / 4)], or heat maps, of images [N, 3, H, W]."""
        scores = self.model(image)
        return scores if isinstance(scores, Tensor) else scores[-1]  # segmentation_ocr: auxiliary scores come first


def build(
    name: str,
    task: str,
    *,
    checkpoint: str | PathLike | None = None,
    num_classes: int | None = None,
    align_corners: bool | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Network:
    """A network in evaluation mode; segmentation ends at a quarter of the image's size.

    Args:
        name: one of ``hrnet_fast.list_models()``.
        task: "segmentation", "segmentation_ocr" or "pose".
        checkpoint: a file for ``hrnet_fast.load_checkpoint``; None: random weights, always the same.
        num_classes: as in ``hrnet_fast.create_model``.
        align_corners: likewise.
        dtype: of weights and computation.
        device: where it runs.

    Raises:
        ValueError: an unknown name, or a checkpoint that does not fit; the message says what it holds.
        FileNotFoundError: there is no such checkpoint.
    """
    settings = {} if task == "pose" else {"full_resolution": False}
    model = create_model(name, task, num_classes, align_corners=align_corners, **settings).eval()
    if checkpoint is None:
        randomize(model)
    else:
        load_checkpoint(model, Path(checkpoint))
    recipe, device = model.recipe, torch.device(device)
    model = _fast(model.to(device, dtype, memory_format=torch.channels_last))
    return Network(model, recipe["num_classes"], recipe["align_corners"], dtype, device, checkpoint is None)


def _fast(model: nn.Module) -> nn.Module:
    """The network as it is called; the one place for what makes it faster."""
    return model.requires_grad_(False)
