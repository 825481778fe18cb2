"""Which pictures are meant, what the results are called, and how they get there whole or not at all."""

import errno
import glob
import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hrnet_fast.pictures import need_pillow

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_WILDCARDS = "*?["
_numbers = itertools.count()


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
    found = (p for p in paths if p.suffix.lower() in suffixes and p.is_file())
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


def save(contents: Mapping[Path, bytes], force: bool) -> None:
    """Writes files, each whole or not at all: under a temporary name in its folder first, then renamed.

    Raises:
        FileExistsError: without ``force``, where a file is there already; none is written then.
        OSError: a file cannot be written; no temporary file is left.
    """
    existing = [path for path in contents if path.exists()]
    if existing and not force:
        raise FileExistsError(errno.EEXIST, "exists already", str(existing[0]))
    temporaries: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.parent / f".hrnet-fast-{os.getpid()}-{next(_numbers)}.part"
            with open(temporary, "xb") as file:
                temporaries[path] = temporary
                file.write(content)
        for path, temporary in temporaries.items():
            _rename(temporary, path, force)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def _rename(temporary: Path, path: Path, force: bool) -> None:
    if not force:
        try:
            os.link(temporary, path)  # fails where somebody has written the file in the meantime
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            pass
    os.replace(temporary, path)
