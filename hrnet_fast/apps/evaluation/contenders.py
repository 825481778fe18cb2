"""The ways of computing that are compared: the network in plain PyTorch, optimized in each dtype, and ONNX files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.apps import networks
from hrnet_fast.export import metadata
from hrnet_fast.export.check import onnx_runner
from hrnet_fast.models import create_model
from hrnet_fast.runtime import optimize

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
PLAIN = "plain PyTorch"
MAX_SHAPES = 64  # that are kept prepared


class Contender(NamedTuple):
    """One way of computing."""

    name: str
    dtype: torch.dtype = torch.float32
    winograd: bool = True
    file: Path | None = None  # of ONNX


class Ready(NamedTuple):
    """A contender that can be called."""

    network: networks.Network
    engine: str  # what runs it
    note: str  # why that, where it is not what was asked for; else ""


def listed(
    dtypes: Sequence[str], winograd: Sequence[bool] = (True,), files: Sequence[Path] = (), plain: bool = True
) -> list[Contender]:
    """The contenders for these dtypes, with and without Winograd's algorithm, and for these ONNX files."""
    found = [Contender(PLAIN)] if plain else []
    for dtype in dtypes:
        found += [Contender(dtype + ("" if w else ", no Winograd"), DTYPES[dtype], w) for w in winograd]
    return found + [Contender(file.name, file=file) for file in files]


def prepare(contender: Contender, base: networks.Network, example: Tensor, calibration: Sequence[Tensor]) -> Ready:
    """A contender for a network.

    Args:
        contender: one of ``listed``.
        base: the network in float32, whose ``model`` is that of create_model.
        example: [1, 3, H, W] in float32, normalized, on the network's device.
        calibration: some such images, for int8.

    Raises:
        ValueError: an ONNX file of another task, or one that is damaged.
        ImportError: ONNX Runtime is missing.
        FileNotFoundError: there is no such file.
    """
    model = base.model
    if contender.file is not None:
        return Ready(_from_file(contender.file, base), "ONNX Runtime", "")
    if contender.name == PLAIN:
        return Ready(base._replace(model=_plain(model)), "PyTorch", "")
    integers = contender.dtype == torch.int8
    wide = torch.float32 if integers else contender.dtype
    options: dict[str, Any] = {"calibration": list(calibration)} if integers else {}
    engine = optimize(
        model, example.to(wide), dtype=contender.dtype, winograd=contender.winograd, max_shapes=MAX_SHAPES, **options
    )
    return Ready(base._replace(model=engine, dtype=wide), engine.engine, engine.reason or "")


def _plain(model: nn.Module) -> nn.Module:
    recipe = dict(model.recipe)
    settings = {} if recipe["task"] == "pose" else {"full_resolution": False}
    plain = create_model(**recipe, fast=False, **settings).eval().requires_grad_(False)
    plain.load_state_dict(model.state_dict())
    return plain.to(next(model.parameters()).device)


def _from_file(path: Path, base: networks.Network) -> networks.Network:
    about = metadata.read(path)
    task, classes = about.get("task"), about.get("num_classes")
    recipe = base.model.recipe
    if about and (task, classes) != (recipe["task"], recipe["num_classes"]):
        raise ValueError(f"{path}: holds a network for {task} with {classes} classes, and {_named(recipe)} is measured")
    try:
        run = onnx_runner(path)
    except ImportError:
        raise
    except Exception as error:  # its errors share no type
        raise ValueError(f"{path}: cannot be run ({str(error).splitlines()[0]})") from None
    images = {k: tuple(about[k]) for k in ("mean", "std") if about.get(k)}
    size = about.get("size")

    def model(image: Tensor) -> list[Tensor]:
        try:
            return run(image.contiguous())
        except Exception as error:
            only = f"it takes images of {size[0]}x{size[1]} alone" if size else str(error).splitlines()[0]
            raise ValueError(f"{path}: cannot be run on {'x'.join(map(str, image.shape))} ({only})") from None

    cpu = {"device": torch.device("cpu"), "dtype": torch.float32}
    return base._replace(model=model, align_corners=bool(about.get("align_corners")), **cpu, **images)


def _named(recipe: dict) -> str:
    return f"one for {recipe['task']} with {recipe['num_classes']} classes"
