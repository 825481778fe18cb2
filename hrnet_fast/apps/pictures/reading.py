"""Picture files as upright 8-bit RGB, whatever they hold, and as a network's input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hrnet_fast.apps.pictures import BadPicture, need_pillow

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as HRNet's official configurations say
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read(path: str | Path) -> Image:
    """A picture in RGB, turned as its EXIF data say.

    Transparency is dropped, as training code drops it; of 16 bits the upper 8 are kept; of an animation the first image.

    Raises:
        BadPicture: no such file, not a picture, damaged, too large for Pillow, or of a kind that has no 8-bit form.
        ImportError: Pillow is missing.
    """
    need_pillow()
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            file.load()
            return _rgb(_upright(file, ImageOps))
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture("not an image in a format that can be read") from None
    except FileNotFoundError:
        raise BadPicture("there is no such file") from None
    except MemoryError:
        raise BadPicture("cannot be read (not enough memory)") from None
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        lines = str(error).splitlines()
        raise BadPicture(f"cannot be read ({lines[0] if lines else type(error).__name__})") from None


def _upright(image: Image, ops) -> Image:
    try:
        return ops.exif_transpose(image)
    except Exception:  # damaged EXIF data are no reason to refuse the pixels
        return image


def _rgb(image: Image) -> Image:
    if image.mode in _SIXTEEN_BIT:
        low, high = image.getextrema()
        if low < 0 or high > 0xFFFF:
            raise BadPicture(f"pixels from {low} to {high}, which are neither 8 nor 16 bits")
        # Pillow's own conversion cuts off at 255
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if image.mode == "F":
        raise BadPicture("floating-point pixels, whose range is not known")
    return image.convert("RGB")


def to_tensor(image: Image, size: tuple[int, int] | None = None) -> Tensor:
    """Pixels [3, H, W] in uint8, channels innermost in memory; resized to ``size`` (height, width) if given."""
    if size is not None and size != (image.height, image.width):
        from PIL.Image import Resampling

        image = image.resize((size[1], size[0]), Resampling.BILINEAR)
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)


def normalize(pixels: Tensor, mean: Sequence[float] = MEAN, deviation: Sequence[float] = DEVIATION) -> Tensor:
    """Pixels [3, H, W], from 0 to 255, to float32 with mean and deviation of pixels from 0 to 1."""
    mean, deviation = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (mean, deviation))
    return pixels.to(torch.float32, copy=True).sub_(mean * 255).div_(deviation * 255)


def to_bytes(x: Tensor) -> bytearray:
    """The elements of an integer tensor, dense."""
    buffer = bytearray(x.numel() * x.element_size())
    if buffer:
        torch.frombuffer(buffer, dtype=x.dtype).view(x.shape).copy_(x)
    return buffer
