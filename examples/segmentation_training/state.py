"""What is kept on disk: a checkpoint that a kill cannot tear, and a log of the loss."""

import csv
import os
from pathlib import Path

import torch

COLUMNS = ("step", "loss", "learning_rate", "seconds", "miou")


def save(path: Path, state: dict) -> None:
    """Write beside the final name, then rename: a kill at any moment leaves the previous checkpoint whole."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


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
        rows = []
        if first_step and path.is_file():
            with open(path, newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < first_step]
        self._file = open(path, "w", newline="")  # noqa: SIM115  closed with the program
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()
        self._writer.writerows(rows)

    def write(self, **row) -> None:
        self._writer.writerow(row)
        self._file.flush()
