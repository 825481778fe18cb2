"""The header of a converted checkpoint: what its weights do not say, in the metadata of a safetensors file."""

import json
from collections.abc import Mapping
from os import PathLike, fspath
from typing import NamedTuple

from hrnet_fast.checkpoints import reading

VERSION = 1  # of the header, under the key that tells ours from others
_MARK = "hrnet_fast"


class Header(NamedTuple):
    """What a converted checkpoint is."""

    model: str  #: of list_models()
    task: str  #: as for create_model
    num_classes: int | None  #: classes or key points; None for tasks without
    in_chans: int  #: channels of the image
    upsample: str  #: of the exchange units
    align_corners: bool  #: of every bilinear interpolation
    mean: tuple[float, ...]  #: of the training images' channels (red, green, blue), where pixels are from 0 to 1
    std: tuple[float, ...]  #: their standard deviation
    source: str  #: the family that the checkpoint came from
    class_names: tuple[str, ...] = ()  #: where the source had them

    @property
    def description(self) -> str:
        """In words, as the messages use them."""
        return f"{self.model} for {self.task}" + counted(self.task, self.num_classes)


def counted(task: str, num_classes: int | None) -> str:
    """What follows a task in words, as in "with 19 classes"; nothing where there are none."""
    return "" if num_classes is None else f" with {num_classes} {'key points' if task == 'pose' else 'classes'}"


def to_metadata(header: Header) -> dict[str, str]:
    """As safetensors stores it: every value as JSON, beside the "format" that other readers look for."""
    return {"format": "pt", _MARK: json.dumps(VERSION)} | {k: json.dumps(v) for k, v in header._asdict().items()}


def read_header(path: str | PathLike) -> Header | None:
    """The header of a checkpoint that ``hrnet-fast convert`` wrote; None for every other file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged file or header, or one of a newer version.
        ImportError: a .safetensors file without the package safetensors.
    """
    return from_metadata(reading.read_metadata(path), path)


def from_metadata(metadata: Mapping[str, str], path: str | PathLike) -> Header | None:
    """``read_header`` from what safetensors gives."""
    if _MARK not in metadata:
        return None
    try:
        values = {name: json.loads(text) for name, text in metadata.items() if name in (_MARK, *Header._fields)}
        version = values.pop(_MARK)
        header = Header(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except (ValueError, TypeError) as error:
        raise ValueError(f"path: the header of {fspath(path)!r} is damaged ({error})") from None
    if version != VERSION:
        raise ValueError(f"path: the header of {fspath(path)!r} has version {version}, this hrnet_fast reads {VERSION}")
    return header


def disagreements(header: Header | None, recipe: Mapping | None) -> list[str]:
    """Interpolation of a file that a model does otherwise, as "align_corners True -> False"."""
    if header is None or recipe is None:
        return []
    names = ("upsample", "align_corners")
    return [f"{n} {getattr(header, n)} -> {recipe[n]}" for n in names if getattr(header, n) != recipe[n]]
