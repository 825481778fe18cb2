"""Files and folders that are there whole or not at all."""

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike, fspath
from pathlib import Path

HOME = "HRNET_FAST_HOME"  # the environment variable that names the cache folder
PART = ".part"  # how the names of folders end in which something is being written


class AlreadyThere(FileExistsError):
    """Something is under a name and may not be replaced; ``filename`` is that name."""

    def __init__(self, path: str | PathLike):
        super().__init__(errno.EEXIST, os.strerror(errno.EEXIST), fspath(path))

    def __str__(self) -> str:
        return f"{self.filename} is there already"

    def __reduce__(self):
        return type(self), (self.filename,)


def cache_folder() -> Path:
    """What is kept for later runs lies there: HRNET_FAST_HOME, or hrnet_fast in the platform's folder for caches."""
    given = os.environ.get(HOME)
    if given:
        return Path(given).expanduser()
    usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(usual).expanduser()) / "hrnet_fast"


def check_free(path: str | PathLike, overwrite: bool) -> None:
    """Raises AlreadyThere where something is in the way and may not be replaced."""
    if os.path.exists(path) and not overwrite:
        raise AlreadyThere(path)


@contextmanager
def whole_file(path: str | PathLike, overwrite: bool = False, durable: bool = True) -> Iterator[Path]:
    """Where to write a file; it gets the name ``path`` when the block ends without an error.

    It has its own name already, in a folder ``.NAME.*.part`` beside (missing folders are made), which is removed in the
    end. A kill leaves at most that, and whatever was under the name before. ``path`` may be a link; its target is
    replaced, and keeps its permissions.

    Args:
        path: the file.
        overwrite: replace what is there; else a file that appears in the meantime is kept, too.
        durable: wait until the disk has it. Else a power cut soon after could keep the name and lose the content.

    Raises:
        AlreadyThere: there is such a file already, at the beginning or at the end, and not ``overwrite``.
        OSError: the folder or the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    _check_no_folder(target, path)
    check_free(path, overwrite)
    with _folder_beside(target) as folder:
        part = folder / target.name
        yield part
        if target.exists():
            part.chmod(target.stat().st_mode & 0o777)
        if durable:
            with part.open("rb") as written:
                os.fsync(written.fileno())
        _check_no_folder(target, path)
        _rename(part, target, path, overwrite)


@contextmanager
def whole_folder(path: str | PathLike, overwrite: bool, mark: str) -> Iterator[Path]:
    """The same for a folder. An old one is replaced only where it holds the file ``mark``, as those written here do.

    Raises:
        AlreadyThere: ``path`` is there and not ``overwrite``.
        FileExistsError: it is something else than was written here.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    check_free(path, overwrite)
    if path.exists() and not (path / mark).is_file():
        raise FileExistsError(f"{path}: is something else than a folder with a {mark} in it, and is not replaced")
    with _folder_beside(path) as folder:
        (folder / "new").mkdir()
        yield folder / "new"
        check_free(path, overwrite)
        if path.exists():
            os.replace(path, folder / "old")
        os.replace(folder / "new", path)


def save(contents: Mapping[Path, bytes], overwrite: bool) -> None:
    """Writes several files; none gets its name before all are written.

    Raises:
        AlreadyThere: not ``overwrite``, and a file is there already; none is written then.
        OSError: a file cannot be written; nothing of it is left.
    """
    for path in contents:
        check_free(path, overwrite)
    with ExitStack() as stack:
        for path, content in contents.items():
            part = stack.enter_context(whole_file(path, overwrite, durable=False))
            with open(part, "xb") as file:
                file.write(content)


def is_part(path: Path) -> bool:
    """Whether a path lies where a writer that was killed may have left it."""
    return any(name.startswith(".") and name.endswith(PART) for name in path.parts[:-1])


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # that name is for ``path`` itself
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), fspath(target.parent)) from None
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PART, dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_no_folder(target: Path, path: str | PathLike) -> None:
    if target.is_dir():
        raise IsADirectoryError(f"{fspath(path)} is a folder")


def _rename(part: Path, target: Path, path: str | PathLike, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(part, target)  # fails where somebody has written the file in the meantime
            return
        except FileExistsError:
            raise AlreadyThere(path) from None
        except OSError:  # a file system without hard links
            check_free(path, overwrite)
    os.replace(part, target)
