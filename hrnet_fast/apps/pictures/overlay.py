"""Class maps as pictures: the classes themselves, and their colours over the photograph."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hrnet_fast.apps.pictures.palette import Colour
from hrnet_fast.apps.pictures.reading import to_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

# zlib's Huffman codes alone: of a photograph 6 % larger than at Pillow's default, and written in a quarter of the time
PNG_SETTINGS = {"compress_level": 1, "compress_type": 2}


def class_image(classes: Tensor) -> Image:
    """Classes [H, W] as a grey picture whose values they are: 8 bits from uint8, else 16 bits."""
    from PIL import Image

    size = (classes.shape[1], classes.shape[0])
    if classes.dtype == torch.uint8:
        return Image.frombytes("L", size, bytes(to_bytes(classes)))
    return Image.frombytes("I;16", size, bytes(to_bytes(classes.to(torch.int16))))


def overlay(photograph: Image, classes: Tensor, colours: Sequence[Colour], opacity: float) -> Image:
    """The colours of classes [H, W] over an RGB photograph of that size.

    Args:
        photograph: RGB.
        classes: uint8 or int32, on the CPU.
        colours: one for each class.
        opacity: from 0, the photograph alone, to 1, the colours alone.
    """
    from PIL import Image

    if classes.dtype == torch.uint8:
        painted = class_image(classes)
        painted.putpalette([channel for colour in colours for channel in colour])
        painted = painted.convert("RGB")
    else:
        table = torch.tensor(colours, dtype=torch.uint8)
        painted = Image.frombytes("RGB", photograph.size, bytes(to_bytes(table[classes.long()])))
    return Image.blend(photograph, painted, opacity)


def png(image: Image) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **(PNG_SETTINGS if image.mode == "RGB" else {"compress_level": 1}))
    return buffer.getvalue()
