"""A photograph as a network's input: [1, 3, H, W], normalised with ImageNet's mean and deviation."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast.apps.pictures import BadPicture
from hrnet_fast.apps.pictures.reading import normalize, read, to_tensor
from hrnet_fast.bench import BadInput

SAMPLES = ("china.jpg", "flower.jpg")  # scikit-learn's sample images, real photographs of 427x640 pixels
NOISE = "noise"  # in place of a photograph: random pixels, for which nothing has to be installed
SEED = 2  # of variants, and of noise
MIN_SIZE = 32  # pixels: the fourth stream has 1/32 of the input's resolution


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from "HxW".

    Raises:
        BadInput: it does not read like that, or is too small for HRNet's four streams.
    """
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise BadInput(f"size {text!r}: expected HEIGHTxWIDTH in pixels, for example 512x1024") from None
    check_size(height, width)
    return height, width


def check_size(height: int, width: int) -> None:
    """Raises BadInput where the fourth stream would have less than one pixel."""
    if min(height, width) < MIN_SIZE:
        raise BadInput(f"size {height}x{width}: too small for HRNet's four streams, "
                       f"the least is {MIN_SIZE}x{MIN_SIZE} pixels")  # fmt: skip


def load(source: str | None = None, size: tuple[int, int] | None = None) -> Tensor:
    """A photograph as a normalised float32 tensor [1, 3, H, W].

    Args:
        source: an image file, or the name of one of scikit-learn's sample images (by default the first of those), or
            NOISE, which needs a size.
        size: (height, width) to resize to; by default the image's own.

    Raises:
        BadInput: the file cannot be read as an image, is too small, or scikit-learn is needed and missing.
    """
    if source == NOISE:
        return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(SEED))
    pixels = _pixels(source)
    check_size(*(size or pixels.shape[1:]))
    return _resized(normalize(pixels).unsqueeze(0), size)


def variants(count: int, size: tuple[int, int], source: str | None = None) -> Tensor:
    """Other views of a photograph, as training would draw them: what int8 is calibrated with.

    Each is a crop of 50 to 90 % of the height and width, flipped or not, 0.7 to 1.3 times as bright, so that none is
    the image of ``load``. They are the same on every machine.

    Args:
        count: how many.
        size: (height, width) to resize each to.
        source: as for ``load``.

    Returns:
        Normalised float32 images [count, 3, H, W], contiguous.

    Raises:
        BadInput: as ``load``.
    """
    pixels = _pixels(source)
    check_size(*size)
    generator = torch.Generator().manual_seed(SEED)
    made = []
    for _ in range(count):
        scale, top, left, flip, brightness = torch.rand(5, generator=generator).tolist()
        height, width = (max(1, round((0.5 + 0.4 * scale) * extent)) for extent in pixels.shape[1:])
        y, x = round(top * (pixels.shape[1] - height)), round(left * (pixels.shape[2] - width))
        part = pixels[:, y : y + height, x : x + width]
        part = part.flip(2) if flip < 0.5 else part
        made.append(_resized(normalize((part * (0.7 + 0.6 * brightness)).clamp(0, 255)).unsqueeze(0), size))
    return torch.cat(made).contiguous()


def _pixels(source: str | None) -> Tensor:
    """[3, H, W] in uint8; BadInput as ``load`` says."""
    path = Path(source) if source and source not in SAMPLES else sample(source or SAMPLES[0])
    try:
        return to_tensor(read(path))
    except BadPicture as error:
        raise BadInput(f"image {source or path.name}: {error}") from None
    except ImportError as error:
        raise BadInput(str(error)) from None


def _resized(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None or size == tuple(image.shape[2:]):
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=True)


def sample(name: str) -> Path:
    """The file of one of SAMPLES; BadInput where scikit-learn is missing."""
    try:
        import sklearn.datasets
    except ImportError:
        raise BadInput("the default photograph comes with scikit-learn, which is not installed: "
                       "pass --image FILE, or pip install scikit-learn") from None  # fmt: skip
    return Path(sklearn.datasets.__file__).parent / "images" / name
