"""Which pictures are meant, and what their results are called."""

import glob
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hrnet_fast.apps.pictures import need_pillow
from hrnet_fast.files import is_part

_WILDCARDS = "*?["


class Found(NamedTuple):
    """A picture, and the name of its results: a relative path without a suffix."""

    path: Path
    name: str


def find(sources: Sequence[str], leave_out: Path | None = None) -> list[Found]:
    """The pictures that arguments name: files, folders (with all below them), glob patterns (``**`` for folders below).

    In folders and by patterns only files with the suffix of a picture format are found, and none below ``leave_out``,
    where results are written. A result's name keeps the place of its picture below the folder, and its suffix where
    the name would not be unique without.

    Raises:
        ValueError: an argument that names no picture, or two pictures whose results would have one name.
        ImportError: Pillow is missing, which knows the suffixes.
    """
    out = None if leave_out is None else leave_out.resolve()
    found: dict[Path, Path] = {}  # path -> its place below the folder
    for source in sources:
        path = Path(source)
        if path.is_dir():
            below = _pictures(path.rglob("*"), out)
            found |= {p: p.relative_to(path) for p in below if p not in found}
            reason = "no picture in this folder"
        elif path.exists() or not any(c in source for c in _WILDCARDS):
            below = [path]  # also where it is missing: reading it says so
            found.setdefault(path, Path(path.name))
        else:
            below = _pictures(map(Path, glob.glob(source, recursive=True)), out)
            base = _fixed_part(source)
            found |= {p: p.relative_to(base) for p in below if p not in found}
            reason = "no picture matches this pattern"
        if not below:
            raise ValueError(f"{source}: {reason}")
    return _named(found)


def _pictures(paths, out: Path | None) -> list[Path]:
    need_pillow()
    from PIL import Image

    suffixes = {s for s, name in Image.registered_extensions().items() if name in Image.OPEN}
    found = (p for p in paths if p.suffix.lower() in suffixes and p.is_file() and not is_part(p))
    return sorted(p for p in found if out is None or not p.resolve().is_relative_to(out))


def _fixed_part(pattern: str) -> Path:
    fixed = itertools.takewhile(lambda part: not any(c in part for c in _WILDCARDS), Path(pattern).parts)
    return Path(*fixed)


def _named(found: Mapping[Path, Path]) -> list[Found]:
    stems = Counter(place.with_suffix("") for place in found.values())
    taken: dict[Path, Path] = {}
    for path, place in found.items():
        unique = stems[place.with_suffix("")] == 1
        name = place.with_suffix("") if unique else place.with_name(place.name.replace(".", "_"))
        if name in taken:
            raise ValueError(
                f"{taken[name]} and {path}: their results would have one name, {name}; name them one by one"
            )
        taken[name] = path
    return [Found(path, str(name)) for name, path in taken.items()]
