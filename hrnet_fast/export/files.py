"""Files and folders that appear under their name whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_free(path: Path, force: bool) -> None:
    """Raises FileExistsError where something is in the way and may not be replaced."""
    if path.exists() and not force:
        raise FileExistsError(f"{path}: exists already; --force replaces it (in Python: force=True)")


@contextmanager
def whole_file(path: Path, force: bool) -> Iterator[Path]:
    """A temporary name beside ``path``, with its suffix, which becomes ``path`` if the block ends without an error.

    Raises:
        FileExistsError: ``path`` is there and ``force`` is not given, or it is a folder.
    """
    check_free(path, force)
    if path.is_dir():
        raise FileExistsError(f"{path}: is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", suffix=".part", dir=path.parent))
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_folder(path: Path, force: bool, mark: str) -> Iterator[Path]:
    """The same for a folder. An old one is replaced only where it holds the file ``mark``, as those written here do.

    Raises:
        FileExistsError: ``path`` is there and ``force`` is not given, or it is something else than was written here.
    """
    check_free(path, force)
    if path.exists() and not (path / mark).is_file():
        raise FileExistsError(f"{path}: is something else than a folder with a {mark} in it, and is not replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        (folder / "new").mkdir()
        yield folder / "new"
        if path.exists():
            os.replace(path, folder / "old")
        os.replace(folder / "new", path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
