"""What several commands take: dtypes, devices, checkpoints, numbers."""

import argparse
from pathlib import Path

import torch

from hrnet_fast.bench import BadInput

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES |= {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str) -> torch.device:
    """The device of that name; BadInput where it is none, or not here."""
    if name not in ("cpu", "cuda"):
        raise BadInput(f"device {name!r}: expected cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("device cuda: torch finds no GPU that it can use here")
    return torch.device(name)


def check_least(arguments: argparse.Namespace, *names: str) -> None:
    """BadInput where one of these arguments is given and below 1."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise BadInput(f"{name.replace('_', '-')} {value}: must be at least 1")


def check_checkpoint(path: str | None) -> None:
    """BadInput where there is no such file."""
    if path is not None and not Path(path).is_file():
        raise BadInput(f"checkpoint {path}: there is no such file")
