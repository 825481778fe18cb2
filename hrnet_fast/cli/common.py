"""What several commands take: dtypes, devices, checkpoints, numbers."""

import argparse
from pathlib import Path

import torch

from hrnet_fast.bench import BadInput
from hrnet_fast.checkpoints.pretrained import download_weights

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


def add_weights(parser: argparse.ArgumentParser) -> None:
    """The options that say where a network's weights are from."""
    add = parser.add_argument
    add("--checkpoint", default=None, metavar="FILE", help="trained weights (default: random ones, which mean nothing)")
    add("--weights", default=None, metavar="NAME", help="published weights in place of a file: `hrnet-fast weights`")


def checkpoint_of(arguments: argparse.Namespace, task: str) -> str | None:
    """The file of the weights, downloaded where they are named; None: random ones. BadInput where it cannot be had."""
    check_checkpoint(arguments.checkpoint)
    if arguments.weights is None:
        return arguments.checkpoint
    if arguments.checkpoint is not None:
        raise BadInput("weights: given beside --checkpoint; only one of them can be used")
    try:
        return str(download_weights(arguments.model, task, arguments.weights))
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from None
