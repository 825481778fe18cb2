"""The network behind a command: made, given its weights, and called on images."""

from collections.abc import Callable
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.apps.by_shape import ByShape
from hrnet_fast.apps.pictures.reading import normalize
from hrnet_fast.checkpoints.header import MEAN, STD, read_header
from hrnet_fast.models import create_model, randomize
from hrnet_fast.runtime import optimize
from hrnet_fast.runtime.cpu.planned import why_not


class Network(NamedTuple):
    """A network that is ready to be called."""

    model: Callable[[Tensor], Any]
    num_classes: int  # or key points
    align_corners: bool  # of its last interpolation
    dtype: torch.dtype
    device: torch.device
    random: bool  # its weights are random
    mean: tuple[float, ...] = MEAN  # of the training images' channels, whose pixels are from 0 to 1
    std: tuple[float, ...] = STD

    def normalized(self, pixels: Tensor) -> Tensor:
        """Pixels [3, H, W], from 0 to 255, in float32 as the network was trained on them."""
        return normalize(pixels.to(self.device), self.mean, self.std)

    def image(self, pixels: Tensor) -> Tensor:
        """Pixels [3, H, W] in uint8 as the network's input [1, 3, H, W]."""
        return self.normalized(pixels).unsqueeze(0).to(self.dtype)

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
    """``load`` as it is fastest in a dtype; the other arguments are those of ``load``.

    Args:
        dtype: of the computation.
    """
    network = load(
        name, task, checkpoint=checkpoint, num_classes=num_classes, align_corners=align_corners, device=device
    )
    return network._replace(model=_fast(network.model, dtype, network.device), dtype=dtype)


def load(
    name: str,
    task: str,
    *,
    checkpoint: str | PathLike | None = None,
    num_classes: int | None = None,
    align_corners: bool | None = None,
    device: torch.device | str = "cpu",
) -> Network:
    """A network in float32 and evaluation mode; segmentation ends at a quarter of the image's size.

    Args:
        name: one of ``hrnet_fast.list_models()``.
        task: "segmentation", "segmentation_ocr" or "pose".
        checkpoint: a file for ``hrnet_fast.load_checkpoint``; None: random weights, always the same. Where
            ``hrnet-fast convert`` wrote it, classes, interpolation and normalisation are the file's.
        num_classes: as in ``hrnet_fast.create_model``.
        align_corners: likewise.
        device: where it runs.

    Raises:
        ValueError: an unknown name, or a checkpoint that does not fit; the message says what it holds.
        FileNotFoundError: there is no such checkpoint.
    """
    settings = {} if task == "pose" else {"full_resolution": False}
    trained = None if checkpoint is None else read_header(checkpoint)
    if trained is not None and trained.in_chans != 3:
        raise ValueError(f"path: it is for images of {trained.in_chans} channels, and pictures have 3")
    model = create_model(name, task, num_classes, align_corners=align_corners, checkpoint=checkpoint, **settings).eval()
    if checkpoint is None:
        randomize(model)
    for key, value in model.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"path: {key} holds NaN or infinity")
    recipe, device = model.recipe, torch.device(device)
    images = {} if trained is None else {"mean": trained.mean, "std": trained.std}
    model = model.requires_grad_(False).to(device)
    about = recipe["num_classes"], recipe["align_corners"], torch.float32, device, checkpoint is None
    return Network(model, *about, **images)


def _fast(model: nn.Module, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor], Any]:
    """The network as it is called; the one place for what makes it faster."""
    if why_not(dtype, device) is None:
        return ByShape(model, dtype)
    return optimize(model, torch.zeros(1, 3, 64, 64, device=device), dtype=dtype)  # which is ready for any shape
