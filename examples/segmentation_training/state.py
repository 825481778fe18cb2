"""What is kept on disk: a checkpoint and a log of the loss, which neither a kill nor a full disk can tear."""

import contextlib
import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

COLUMNS = ("step", "loss", "learning_rate", "seconds", "miou")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside the final name, which it gets once it is whole and on the disk.

    A kill at any moment leaves what was there before (and ``path.part``, which the next one writes over), an error does
    not leave even that.

    Raises:
        OSError: it cannot be written, for instance because the disk is full.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # torch.save's writer fails once more at its end, with an error that says nothing
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def save(path: Path, state: dict) -> None:
    """A checkpoint, as ``replaced`` writes it."""
    with replaced(path) as file:
        torch.save(state, file)


def load(path: Path, configuration: dict) -> dict:
    """A checkpoint of this very configuration; no code of the file is run.

    Raises:
        ValueError: it is no checkpoint of this program, or one of another configuration (what differs is listed).
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = state["configuration"]
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint of this program ({type(error).__name__}: {error})") from error
    keys = sorted({k for k in {**theirs, **configuration} if theirs.get(k) != configuration.get(k)})
    if keys:
        lines = "; ".join(f"{k}: {theirs.get(k)} there, {configuration.get(k)} here" for k in keys)
        raise ValueError(f"{path}: a checkpoint of another configuration: {lines}")
    return state


class Log:
    """Rows of COLUMNS in a CSV file; those of steps that a resumed run computes again are dropped."""

    def __init__(self, path: Path, first_step: int):
        rows = [",".join(COLUMNS), *(_rows(path, first_step) if first_step and path.is_file() else ())]
        with replaced(path) as file:  # a kill now must not lose the rows of a resumed run
            file.write("".join(f"{row}\r\n" for row in rows).encode())
        self._file = open(path, "a", newline="")  # noqa: SIM115  closed with the program
        self._writer = csv.DictWriter(self._file, COLUMNS)

    def write(self, **row) -> None:
        self._writer.writerow(row)
        self._file.flush()


def _rows(path: Path, first_step: int) -> list[str]:
    """The lines of the steps before one; without those that a kill or a full disk has cut off."""
    lines = path.read_bytes().decode(errors="replace").split("\r\n")[:-1]
    cells = [(line, line.split(",")) for line in lines[1:]]
    return [row for row, c in cells if len(c) == len(COLUMNS) and c[0].isdecimal() and int(c[0]) < first_step]
