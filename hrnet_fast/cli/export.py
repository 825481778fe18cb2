"""Write a network for other runtimes: ONNX, torch.export, AOTInductor, or a repository for Triton Inference Server."""

import argparse
import itertools
import os
from pathlib import Path

import torch
from rich.table import Table
from torch import nn

from hrnet_fast import Calibration, calibrate, create_model, load_checkpoint
from hrnet_fast import export as exporting
from hrnet_fast.apps.pictures import files
from hrnet_fast.bench import BadInput, images, report, timm_models
from hrnet_fast.export import check, onnx_file, preferences, triton_server
from hrnet_fast.files import AlreadyThere, check_free
from hrnet_fast.models import TASKS, configs, randomize

_PICTURES = 64  # that a calibration looks at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``export``."""
    add = parser.add_argument
    add("--model", default="hrnet_w48", metavar="NAME", help="default: hrnet_w48")
    add("--timm", default=None, metavar="NAME", help="instead: timm's network of that name")
    add("--task", default="segmentation", choices=TASKS, help="default: segmentation")
    add("--num-classes", type=int, default=None, metavar="N", help="default: that of the task's official repository")
    add("--checkpoint", default=None, metavar="FILE", help="trained weights (default: random ones, always the same)")
    add(
        "--align-corners",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="of the bilinear interpolation (default: as in the task's official repository)",
    )
    add(
        "--format",
        default="onnx",
        metavar="|".join(exporting.FORMATS),
        help="onnx, pt2 (torch.export) or aoti (compiled by AOTInductor for this machine); default: onnx",
    )
    add("--out", default=None, metavar="FILE", help="default: the model's and task's name and the format's suffix")
    add(
        "--triton",
        default=None,
        metavar="DIR",
        help="instead of a file: a model repository for NVIDIA Triton Inference Server",
    )
    add(
        "--commute-head",
        default="auto",
        choices=exporting.COMMUTE,
        help="the head's 1x1 convolution before the upsampling; auto: where that was measured to be faster",
    )
    add(
        "--runtime", default=None, choices=preferences.RUNTIMES, help="that auto decides for (default: for all of them)"
    )
    add("--size", default=None, metavar="HxW", help="a file for images of this size only (default: for any size)")
    add("--opset", type=int, default=onnx_file.DEFAULT_OPSET, metavar="N", help="of ONNX, 18 or newer (default: 18)")
    add(
        "--max-batch",
        type=int,
        default=triton_server.MAX_BATCH,
        metavar="N",
        help=f"with --triton: the largest batch that the server makes (default: {triton_server.MAX_BATCH})",
    )
    add("--device", default="cpu", metavar="DEVICE", help="cpu or cuda: for aoti and --triton (default: cpu)")
    add("--mean", type=float, nargs="+", default=None, metavar="X", help="noted in the file (default: ImageNet's)")
    add("--std", type=float, nargs="+", default=None, metavar="X", help="likewise")
    add(
        "--int8",
        default=None,
        metavar="FILE|FOLDER",
        help="of ONNX: convolutions multiply 8-bit integers; a calibration (.safetensors), or a folder of pictures "
        "like those that will come, of which up to 64 are looked at",
    )
    add("--no-check", action="store_true", help="do not run the file and compare it with the network")
    add("--force", action="store_true", help="replace what is there")


def run(arguments: argparse.Namespace) -> int:
    """Exports and prints what was written and how far off it is."""
    size = None if arguments.size is None else images.parse_size(arguments.size)
    if arguments.format not in exporting.FORMATS:
        raise BadInput(f"format {arguments.format!r}: expected one of {', '.join(exporting.FORMATS)}")
    if arguments.device not in ("cpu", "cuda") or (arguments.device == "cuda" and not torch.cuda.is_available()):
        raise BadInput(
            f"device {arguments.device}: expected cpu"
            + (" or cuda" if torch.cuda.is_available() else ", as torch finds no GPU that it can use here")
        )
    if arguments.int8 is not None and (arguments.triton is not None or arguments.format != "onnx"):
        raise BadInput("int8: 8-bit integers are written as a file of ONNX")
    if arguments.triton is not None and arguments.out is not None:
        raise BadInput("out: with --triton the files have the names that the server wants")
    name, path = _names(arguments)
    common = {
        "commute_head": arguments.commute_head,
        "size": size,
        "opset": arguments.opset,
        "force": arguments.force,
        "check": not arguments.no_check,
        **_normalisation(arguments),
    }
    try:
        if arguments.triton is None:
            check_free(path, arguments.force)
        model = _model(arguments).to(arguments.device)
        if arguments.triton is not None:
            done = triton_server.save_repository(
                model,
                arguments.triton,
                name,
                arguments.format,
                max_batch=arguments.max_batch,
                gpu=arguments.device == "cuda",
                **common,
            )
        else:
            calibration = None if arguments.int8 is None else _calibration(arguments.int8, model, size)
            done = exporting.save(
                model,
                path,
                arguments.format,
                runtime=arguments.runtime,
                calibration=calibration,
                name=arguments.timm and f"timm/{arguments.timm}",
                **common,
            )
    except AlreadyThere as error:
        raise BadInput(f"{error.filename}: exists already; --force replaces it") from None
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise BadInput(str(error)) from None
    _print(done, arguments)
    return 0


def _names(arguments: argparse.Namespace) -> tuple[str, Path]:
    """The model's name on a server, and the file's."""
    if arguments.timm is not None:
        name = f"timm_{arguments.timm}"
    else:
        try:
            name = f"{configs.find(arguments.model)[0]}-{arguments.task}"
        except ValueError as error:
            raise BadInput(str(error)) from None
    suffix = exporting.FORMATS.get(arguments.format, "")
    return name, Path(arguments.out or f"{name}{'-aoti' if arguments.format == 'aoti' else ''}{suffix}")


def _normalisation(arguments: argparse.Namespace) -> dict:
    given = {key: getattr(arguments, key) for key in ("mean", "std") if getattr(arguments, key) is not None}
    for key, values in given.items():
        if len(values) != 3:
            raise BadInput(f"{key}: expected 3 numbers, one for each channel of the image, got {len(values)}")
    return given


def _model(arguments: argparse.Namespace) -> nn.Module:
    if arguments.timm is not None:
        if arguments.checkpoint is not None or arguments.num_classes is not None:
            raise BadInput(
                "timm: --checkpoint and --num-classes are for --model; "
                "hrnet_fast.export.save takes timm's networks with their weights"
            )
        return randomize(timm_models.create(arguments.timm))
    if arguments.checkpoint is not None and not os.path.isfile(arguments.checkpoint):
        raise BadInput(f"checkpoint {arguments.checkpoint}: there is no such file")
    model = create_model(arguments.model, arguments.task, arguments.num_classes, align_corners=arguments.align_corners)
    if arguments.checkpoint is None:
        randomize(model)
    else:
        load_checkpoint(model, arguments.checkpoint)
    return model.eval()


def _calibration(source: str, model: nn.Module, size: tuple[int, int] | None) -> Calibration:
    """From a file, or of pictures, which are resized to ``size`` or 512x512."""
    if source.endswith(".safetensors"):
        return Calibration.load(source)
    found = files.find([source])[:_PICTURES]
    return calibrate(model, (images.load(str(picture.path), size or (512, 512)) for picture in found))


def _print(done: exporting.Exported, arguments: argparse.Namespace) -> None:
    shown, recorded = report.console(), done.recorded
    shown.print(f"wrote {done.path}" + (f" ({_megabytes(done.path)})"))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    if recorded.size is not None:
        sides = f"only {recorded.size[0]}x{recorded.size[1]}"
    else:
        sides = "any" if recorded.multiple == 1 else f"multiples of {recorded.multiple}"
    table.add_row("image", f"[N, {recorded.example.shape[1]}, H, W], float32; batch: any; sides: {sides}")
    table.add_row("outputs", ", ".join(recorded.outputs))
    left = f", {recorded.unfolded} left as they are" if recorded.unfolded else ""
    table.add_row("BatchNorm", f"{recorded.folded} folded into convolutions{left}")
    moved = f"moved in {recorded.commuted}" if recorded.commuted else "where they were"
    table.add_row(
        "head", f"1x1 convolutions over concatenated streams: {moved} (--commute-head {arguments.commute_head})"
    )
    if recorded.integers:
        table.add_row("int8", f"{len(recorded.integers)} convolutions multiply 8-bit integers")
    if done.errors:
        allowed = check.TOLERANCE_OF_INTEGERS if recorded.integers else check.TOLERANCE
        shapes = ", ".join(f"{shape}: {error:.1e}" for shape, error in done.errors.items())
        table.add_row("checked", f"relative error of {shapes} (allowed: {allowed:.0e})")
    shown.print(table)
    if arguments.checkpoint is None:
        shown.print("random weights: pass --checkpoint FILE for trained ones")


def _megabytes(path: Path) -> str:
    files = [path] if path.is_file() else [f for f in itertools.chain(path.rglob("*")) if f.is_file()]
    return f"{sum(f.stat().st_size for f in files) / 1e6:.1f} MB"
