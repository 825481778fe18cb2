"""Published weights by name: downloaded once, converted once, and from then on in a folder of this machine."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock  # torch brings it

from hrnet_fast.checkpoints import zoo
from hrnet_fast.checkpoints.convert import convert_checkpoint
from hrnet_fast.checkpoints.download import DownloadFailed, download
from hrnet_fast.files import HOME, cache_folder, save
from hrnet_fast.models import configs


def cached(weights: zoo.Weights) -> Path:
    """The place of converted weights in the cache, whether they are there or not."""
    mark = weights.sha256 or hashlib.sha256(weights.url.encode()).hexdigest()[:8]
    name = f"{weights.model}-{weights.task}-{weights.name}-{mark}.safetensors"
    return cache_folder() / "weights" / name


def download_weights(model: str, task: str, weights: str) -> Path:
    """The file of published weights for ``create_model(..., checkpoint=)``, brought here unless it is there already.

    The download goes on where it was cut, is checked against the hash that the publisher's metadata say, and is written
    anew as ``hrnet-fast convert`` writes it. Several processes may ask at the same time: one of them downloads.

    Args:
        model: one of ``list_models()``, or timm's name.
        task: as for ``create_model``.
        weights: one of the names of ``list_weights(model, task)``.

    Returns:
        A safetensors file in the folder that the environment variable HRNET_FAST_HOME names, or in the platform's
        folder for caches.

    Raises:
        ValueError: an unknown model, or weights that are not known for it; the message names the closest ones.
        OSError: they cannot be had (no network, no such file any more, another hash, a full disk).
    """
    entry = zoo.find(configs.find(model)[0], task, weights)
    path = cached(entry)
    if path.is_file():
        return path
    with _alone(path):
        if not path.is_file():  # another process may have brought it meanwhile
            _bring(entry, path)
    return path


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; one that dies lets go."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise DownloadFailed(
            f"{path.parent}: cannot be written ({error.strerror or error}); name another folder by {HOME}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _bring(entry: zoo.Weights, path: Path) -> None:
    original, record = cache_folder() / "downloads" / entry.file_name, path.with_suffix(".json")
    sha256 = _recorded(record) or entry.sha256
    with _bar(f"{entry.model}, {entry.task}, {entry.name}") as progress:
        receipt = download(entry.url, original, sha256=sha256, progress=progress)
    try:
        convert_checkpoint(
            original, path, model=entry.model, task=entry.task, num_classes=entry.num_classes, overwrite=True
        )
        save({record: json.dumps({"url": entry.url, **receipt._asdict()}, indent=1).encode()}, overwrite=True)
    except OSError as error:
        raise DownloadFailed(
            f"{path.parent}: cannot be written ({error.strerror or error}); make room there, or name another folder by "
            f"{HOME}"
        ) from None
    except ValueError as error:
        original.unlink(missing_ok=True)
        reason = " ".join(str(error).removeprefix("path: ").split())
        raise DownloadFailed(f"{entry.url}: cannot be used and was removed ({reason}); try again") from None
    original.unlink(missing_ok=True)


def _recorded(record: Path) -> str | None:
    """The whole hash, if these weights were here before."""
    try:
        return str(json.loads(record.read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
