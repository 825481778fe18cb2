"""Run one HRNet on a photograph, in plain PyTorch and in hrnet_fast, and compare outputs, latency and memory."""

import argparse
from pathlib import Path

import torch

from hrnet_fast.bench import BadInput, images, machine, networks, report
from hrnet_fast.bench.contenders import (
    CHANNELS_LAST,
    COMPILED,
    EAGER,
    FAST,
    FAST_COMPILED,
    FOLDED,
    OPTIMIZED,
    OPTIMIZED_INT8,
)
from hrnet_fast.bench.measure import Case, measure
from hrnet_fast.bench.record import Record, Report
from hrnet_fast.cli.common import DTYPES, check_checkpoint, check_least, find_device
from hrnet_fast.cli.verify import forced_backend
from hrnet_fast.models import TASKS, configs
from hrnet_fast.ops import backends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``bench``; the defaults take about two minutes on two cores."""
    add = parser.add_argument
    models = ", ".join(f"{task}: {model}" for task, (model, _) in networks.DEFAULTS.items())
    sizes = ", ".join(f"{task}: {size[0]}x{size[1]}" for task, (_, size) in networks.DEFAULTS.items() if size)
    add("--model", default=None, metavar="NAME", help=f"default, by task: {models}")
    add("--timm", default=None, metavar="NAME", help="instead: timm's network of that name, patched, at 224x224")
    add("--task", default="segmentation", choices=TASKS, help="default: segmentation")
    add("--image", default=None, metavar="FILE", help="default: a photograph that scikit-learn brings along, 427x640")
    add("--size", default=None, metavar="HxW", help=f"resize the image (default, by task: {sizes}; else its own)")
    add(
        "--dtype",
        default="float32",
        choices=[*DTYPES, "int8"],
        help="int8: optimize in it beside float32, calibrated with other views of the photograph (default: float32)",
    )
    add("--batch", type=int, default=1, metavar="N", help="the image N times (default: 1)")
    add("--threads", type=int, default=None, metavar="N", help="threads for torch (default: torch's own choice)")
    add("--device", default="cpu", metavar="DEVICE", help="cpu or cuda (default: cpu)")
    add("--backend", default="auto", choices=["auto", *backends.TABLE], help="of hrnet_fast (default: auto)")
    add("--compile", action="store_true", help="also torch.compile, frozen, which takes a minute to compile")
    add("--checkpoint", default=None, metavar="FILE", help="trained weights (default: random ones, always the same)")
    add("--budget", type=float, default=60.0, metavar="SECONDS", help="time to spend on timing (default: 60)")
    add("--json", nargs="?", const="bench.json", default=None, metavar="FILE", help="write the results (bench.json)")
    add("--plot", nargs="?", const="bench.png", default=None, metavar="FILE", help="draw the results (bench.png)")


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the table, writes what was asked for. 1 where the outputs do not agree."""
    case, device = _case(arguments), find_device(arguments.device)
    for path in (arguments.json, arguments.plot):
        _check_writable(path)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with report.progress_bar() as progress, forced_backend(arguments.backend):
        record = measure(case, budget=arguments.budget, progress=progress, device=device)

    shown = report.console()
    report.show(record, EAGER)
    if arguments.checkpoint is None:
        shown.print("random weights, with which outputs vary from pixel to pixel: the agreement is that of the "
                    "computations, the outputs mean nothing")  # fmt: skip
    ran_on = Report([record])
    shown.print(f"measured on: {machine.summary(ran_on.machine)}")
    if arguments.json is not None:
        ran_on.save(arguments.json)
        shown.print(f"results: {arguments.json}")
    if arguments.plot is not None and any(entry.seconds for entry in record.entries):
        _plot(record, ran_on.machine, arguments.plot)
        shown.print(f"plot: {arguments.plot}")
    return 0 if record.agrees else 1


def _case(arguments: argparse.Namespace) -> Case:
    try:
        model, _ = configs.find(arguments.model or networks.DEFAULTS[arguments.task][0])
    except ValueError as error:
        raise BadInput(str(error)) from None
    check_least(arguments, "batch", "threads")
    if not 0 < arguments.budget < float("inf"):
        raise BadInput(f"budget {arguments.budget:g}: must be a number of seconds above 0")
    check_checkpoint(arguments.checkpoint)
    if arguments.backend != "auto":
        reason = backends.TABLE[arguments.backend].why_not(None)
        if reason is not None:
            raise BadInput(f"backend {arguments.backend!r} cannot run here: {reason}")
    integers = arguments.dtype == "int8"
    if integers and arguments.device != "cpu":
        raise BadInput("dtype int8: on CPUs only")
    # timm's networks classify
    _, official = networks.DEFAULTS["classification" if arguments.timm else arguments.task]
    size = images.parse_size(arguments.size) if arguments.size else official
    height, width = size or images.load(arguments.image).shape[2:]
    dtype, compiled = torch.float32 if integers else DTYPES[arguments.dtype], [FOLDED, COMPILED] * arguments.compile
    contenders = [EAGER, CHANNELS_LAST, *compiled, *([FAST_COMPILED] if compiled and not arguments.timm else []), FAST]
    contenders += [OPTIMIZED, *([OPTIMIZED_INT8] if integers else [])]
    options = {"contenders": contenders, "dtype": dtype, "size": size, "source": arguments.image,
               "batch": arguments.batch, "calibrated": integers}  # fmt: skip
    shown = f"{height}x{width}, batch {arguments.batch}, {str(dtype).removeprefix('torch.')}{' and int8' * integers}"
    if arguments.timm is None:
        return networks.network(model, f"{arguments.task}, {shown}", model=model, task=arguments.task,
                                checkpoint=arguments.checkpoint, **options)  # fmt: skip
    if arguments.checkpoint is not None:
        raise BadInput("checkpoint: --timm measures random weights only")
    return networks.drop_in(arguments.timm, f"patched, {shown}", model=arguments.timm, **options)


def _check_writable(path: str | None) -> None:
    """Minutes of measuring must not end in a file that cannot be written."""
    if path is None:
        return
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab"):
            pass
        if target.stat().st_size == 0:
            target.unlink()
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from None


def _plot(record: Record, ran_on: dict, path: str) -> None:
    try:
        from hrnet_fast.bench.plot import plot

        plot([record], path, baseline=EAGER, title=f"{record.name} on a photograph", footnote=machine.summary(ran_on))
    except ImportError as error:
        raise BadInput(f"--plot needs matplotlib, which cannot be imported ({error}): pip install matplotlib") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"plot {path}: cannot be written ({error})") from None
