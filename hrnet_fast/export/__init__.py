"""Networks for other runtimes: ONNX, torch.export, AOTInductor, and model repositories for Triton Inference Server.

A network is recorded in PyTorch's own operators for any batch and size, BatchNorm is folded into the convolutions, and
a head's 1x1 convolution comes before the upsampling where that was measured to be faster.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from torch import nn

from hrnet_fast import files
from hrnet_fast.checkpoints.header import MEAN, STD
from hrnet_fast.export import check as checking
from hrnet_fast.export import onnx_file, preferences, torch_files
from hrnet_fast.export.metadata import describe, read
from hrnet_fast.export.record import Recorded, in_evaluation, record
from hrnet_fast.network.passes import all_streams, no_streams
from hrnet_fast.runtime.calibration import Calibration

__all__ = ["COMMUTE", "FORMATS", "Exported", "Recorded", "choose_streams", "read", "record", "save"]

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2"}  # format -> suffix of its files
COMMUTE = ("auto", "on", "off")


class Exported(NamedTuple):
    """What was written."""

    path: Path
    recorded: Recorded
    metadata: dict[str, str]
    errors: dict[str, float]  # shape of an image -> relative error of the outputs; empty where nothing was checked


def choose_streams(commute_head: str, runtime: str | None = None):
    """What ``record`` takes for "auto", "on" or "off".

    Args:
        commute_head: whether heads get their 1x1 convolution before the upsampling; "auto": where that was measured to
            be faster.
        runtime: that the file is for, one of ``preferences.RUNTIMES``; None: whichever of those that run ONNX, so that
            "auto" does nothing that any of them would lose by. A runtime that was not measured gets the official order.

    Raises:
        ValueError: something else was given.
    """
    if commute_head not in COMMUTE:
        raise ValueError(f"commute_head: expected one of {', '.join(map(repr, COMMUTE))}, got {commute_head!r}")
    if runtime is not None and runtime not in preferences.RUNTIMES:
        raise ValueError(
            f"runtime: expected None or one of {', '.join(map(repr, preferences.RUNTIMES))}, got {runtime!r}"
        )
    return {"on": all_streams, "off": no_streams, "auto": preferences.choice(runtime)}[commute_head]


def save(
    model: nn.Module,
    path: str | PathLike,
    format: str = "onnx",
    *,
    commute_head: str = "auto",
    runtime: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int = onnx_file.DEFAULT_OPSET,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    name: str | None = None,
    force: bool = False,
    check: bool = True,
    calibration: Calibration | None = None,
) -> Exported:
    """Writes a network as a file for other runtimes, and compares what it computes there with the network.

    The file takes "image" [N, C, H, W] in float32 with any N, and any H and W unless ``size`` is given (multiples of
    32 where upsampling is nearest). It appears under its name when it is complete and was found right.

    Args:
        model: one of ``create_model``, a patched one, or any other network that takes one image; left as it is.
        path: the file; missing folders are made.
        format: "onnx", "pt2" (torch.export) or "aoti" (a package that AOTInductor has compiled for this machine).
        commute_head: see ``choose_streams``.
        runtime: likewise; for "pt2" and "aoti" it is "inductor" where it is not given.
        size: (H, W) in pixels, for a file of this size only.
        opset: of ONNX, 18 or newer.
        mean: of the channels of the training images, whose pixels are from 0 to 1; only noted in the file.
        std: their standard deviation; likewise.
        name: noted in the file as the model's name; None: its own.
        force: replace an existing file.
        check: compare at three sizes; False: write it without.
        calibration: for "onnx": convolutions multiply 8-bit integers, in ``QuantizeLinear`` and ``DequantizeLinear``
            with the scales that ``optimize`` takes from it in int8 (``hrnet_fast.calibrate``). The first convolution,
            and 1x1 convolutions that make the outputs, stay in float32. The file is compared with the network rounded
            alike.

    Returns:
        The recorded network, the metadata, and the errors that were found at each size.

    Raises:
        FileExistsError: the file is there and ``force`` is not given.
        ImportError: a package that the format needs is missing.
        TypeError: ``model`` is not an nn.Module.
        ValueError: an unknown format or setting, a size that the network does not take, a network that cannot be
            recorded, one whose file computes something else (relative error above 1e-4; in int8 above 5e-2, since a
            sum between two steps may become either), or a calibration of another network or for another format.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    if calibration is not None and format != "onnx":
        raise ValueError(f"calibration: 8-bit integers are written as ONNX, not as {format!r}")
    path = Path(path)
    if path.suffix != FORMATS[format]:
        raise ValueError(f"path: expected a name that ends in {FORMATS[format]} for the format {format!r}, got {path}")
    choose = choose_streams(commute_head, runtime or (None if format == "onnx" else "inductor"))
    files.check_free(path, force)
    if format == "onnx":
        onnx_file.require(opset, check)
    recorded = record(model, choose, size, calibration=calibration)
    return save_recorded(model, recorded, path, format, opset, describe(model, recorded, mean, std, name), force, check)


def save_recorded(
    model: nn.Module,
    recorded: Recorded,
    path: Path,
    format: str,
    opset: int,
    metadata: dict[str, str],
    force: bool,
    check: bool,
) -> Exported:
    """``save`` of what was recorded already."""
    with files.whole_file(path, force) as part:
        if format == "onnx":
            onnx_file.write(recorded, part, metadata, opset)
        else:
            (torch_files.write_program if format == "pt2" else torch_files.write_package)(recorded, part, metadata)
        found = _checked(model, recorded, part, format) if check else {}
    return Exported(path, recorded, metadata, found)


def _checked(model: nn.Module, recorded: Recorded, part: Path, format: str) -> dict[str, float]:
    found = checking.errors(recorded.rounded or in_evaluation(model), recorded, part, format)
    shape, worst = max(found.items(), key=lambda item: item[1])
    allowed = checking.TOLERANCE if recorded.rounded is None else checking.TOLERANCE_OF_INTEGERS
    if not worst <= allowed:
        raise ValueError(
            f"model: the exported file computes something else than the network: relative error {worst:.1e} "
            f"on an image of {shape}, allowed {allowed:.0e}; nothing was written"
        )
    return found
