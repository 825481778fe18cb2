"""Files that are there whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path


@contextmanager
def whole_file(path: str | PathLike, overwrite: bool = False) -> Iterator[Path]:
    """The path of an empty file to write; it gets the name ``path`` when the block ends without an error.

    It lies in the same folder (made where it is missing) as ``.NAME.*.part``, and is removed after an error. A kill
    leaves at most that, and whatever was under the name before. ``path`` may be a link; its target is replaced.

    Raises:
        FileExistsError: there is such a file already, at the beginning or at the end, and not ``overwrite``.
        OSError: the folder or the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    _refuse(target, path, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # that name is for ``path`` itself
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(target.parent)) from None
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        mask = os.umask(0)  # mkstemp's files are for their owner alone
        os.umask(mask)
        part.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~mask)
        with part.open("rb") as written:
            os.fsync(written.fileno())  # else a power cut could keep the name and lose the content
        _refuse(target, path, overwrite)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _refuse(target: Path, path: str | PathLike, overwrite: bool) -> None:
    if target.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)} is a folder")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{os.fspath(path)} is there already")
