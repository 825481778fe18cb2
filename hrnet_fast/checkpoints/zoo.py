"""The table of published weights: what public model zoos say of them in their own metadata files.

``zoo.json`` holds the entries. Each group names the repository, file and commit that its facts are from. The published
metric is that of the network's usual input and one pass, without flips.
"""

import difflib
import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

# 8 hexadecimal digits of SHA-256, before or behind the date: what OpenMMLab's names end in
_HASH = re.compile(r"-([0-9a-f]{8})(?:_\d{8})?\.pth$")


class Weights(NamedTuple):
    """Published weights of one network."""

    model: str  #: of list_models()
    task: str  #: as for create_model
    name: str  #: as for create_model's ``weights``
    dataset: str  #: that they were trained and measured on
    num_classes: int  #: classes or key points
    size: tuple[int, int]  #: (height, width) of the training's crops, or of the network's input
    metric: str  #: what was measured: mIoU, AP, top-1 or PCKh
    value: float  #: the published value, in per cent
    url: str  #: the address of the file
    source: str  #: repository and file that the facts are from
    licence: str  #: of the repository, or of the weights where it says so

    @property
    def sha256(self) -> str | None:
        """The beginning of the file's SHA-256 as its name says it; None: it does not."""
        found = _HASH.search(self.url)
        return found[1] if found else None

    @property
    def file_name(self) -> str:
        """What the file is called in the cache: its own name, behind its repository's where that alone tells."""
        parts = urlsplit(self.url).path.split("/")
        return parts[-1] if self.sha256 else f"{parts[-4]}-{parts[-1]}"  # REPOSITORY/resolve/REVISION/FILE


@functools.cache
def _table() -> tuple[Weights, ...]:
    found = []
    for group in json.loads(Path(__file__).with_name("zoo.json").read_text()):
        source = f"{group['source']} at {group['commit']}"
        for model, name, dataset, classes, size, value, path in group["entries"]:
            height, width = map(int, size.split("x"))
            about = group["metric"], value, group["base"] + path, source, group["licence"]
            found.append(Weights(model, group["task"], name, dataset, classes, (height, width), *about))
    return tuple(found)


def list_weights(model: str | None = None, task: str | None = None) -> list[Weights]:
    """The published weights that ``create_model(..., weights=NAME)`` knows, of a model and of a task if given."""
    return [w for w in _table() if model in (None, w.model) and task in (None, w.task)]


def find(model: str, task: str, name: str) -> Weights:
    """The weights of that name for a model and a task.

    Raises:
        ValueError: there are none; the message names what comes closest.
    """
    known = {w.name: w for w in list_weights(model, task)}
    if name in known:
        return known[name]
    asked = f"weights: none are known as {name!r} for {model} and {task}"
    if known:
        close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
        raise ValueError(f"{asked}; " + (f"did you mean {_either(close)}?" if close else f"there are {_all(known)}"))
    models = dict.fromkeys(w.model for w in list_weights(task=task) if w.name == name)
    if models:
        raise ValueError(f"{asked}; {_all(models)} {'have' if len(models) > 1 else 'has'} them")
    others = dict.fromkeys(w.task for w in list_weights(model))
    hint = f"{model} has weights for {_all(others)}" if others else "`hrnet-fast weights` lists what there is"
    raise ValueError(f"{asked}; {hint}")


def _all(names: Iterable[str]) -> str:
    return ", ".join(names)


def _either(names: Iterable[str]) -> str:
    return " or ".join(names)
