"""Run one HRNet on a photograph, in plain PyTorch and in hrnet_fast, and compare outputs, latency and memory."""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hrnet_fast.bench import BadInput, drop_in, images, machine, network, report
from hrnet_fast.bench.contenders import CHANNELS_LAST, COMPILED, EAGER, FAST, FAST_COMPILED, FOLDED, OPTIMIZED
from hrnet_fast.cli.common import DTYPES, check_checkpoint, check_least, find_device
from hrnet_fast.cli.verify import forced_backend
from hrnet_fast.models import TASKS, configs
from hrnet_fast.ops import backends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``bench``; the defaults take about two minutes on two cores."""
    add = parser.add_argument
    models = ", ".join(f"{task}: {model}" for task, (model, _) in network.DEFAULTS.items())
    sizes = ", ".join(f"{task}: {size[0]}x{size[1]}" for task, (_, size) in network.DEFAULTS.items() if size)
    add("--model", default=None, metavar="NAME", help=f"default, by task: {models}")
    add("--timm", default=None, metavar="NAME", help="instead: timm's network of that name, patched, at 224x224")
    add("--task", default="segmentation", choices=TASKS, help="default: segmentation")
    add("--image", default=None, metavar="FILE", help="default: a photograph that scikit-learn brings along, 427x640")
    add("--size", default=None, metavar="HxW", help=f"resize the image (default, by task: {sizes}; else its own)")
    add("--dtype", default="float32", choices=list(DTYPES), help="default: float32")
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
    setup, device = _setup(arguments)
    # timm's networks classify
    _, official = network.DEFAULTS["classification" if arguments.timm else arguments.task]
    size = images.parse_size(arguments.size) if arguments.size else official
    image = images.load(arguments.image, size).to(device)
    for path in (arguments.json, arguments.plot):
        _check_writable(path)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    case = _measure(setup, image, arguments)

    shown = report.console()
    shown.print(report.table(case, EAGER))
    for line in report.notes(case):
        shown.print(line)
    if arguments.checkpoint is None:
        shown.print("random weights, with which outputs vary from pixel to pixel: the agreement is that of the "
                    "computations, the outputs mean nothing")  # fmt: skip
    ran_on = report.Report([case])
    shown.print(f"measured on: {machine.summary(ran_on.machine)}")
    if arguments.json is not None:
        ran_on.save(arguments.json)
        shown.print(f"results: {arguments.json}")
    if arguments.plot is not None and any(entry.seconds for entry in case.entries):
        _plot(case, ran_on.machine, arguments.plot)
        shown.print(f"plot: {arguments.plot}")
    return 0 if case.agrees else 1


def _setup(arguments: argparse.Namespace) -> tuple[network.Setup | drop_in.Setup, torch.device]:
    try:
        model, _ = configs.find(arguments.model or network.DEFAULTS[arguments.task][0])
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
    dtype, compiled = DTYPES[arguments.dtype], [FOLDED, COMPILED] if arguments.compile else []
    if arguments.timm is not None:
        if arguments.checkpoint is not None:
            raise BadInput("checkpoint: --timm measures random weights only")
        contenders = [EAGER, CHANNELS_LAST, *compiled, FAST, OPTIMIZED]
        setup = drop_in.Setup(arguments.timm, dtype, arguments.batch, contenders)
    else:
        contenders = [EAGER, CHANNELS_LAST, *compiled, *([FAST_COMPILED] if compiled else []), FAST, OPTIMIZED]
        setup = network.Setup(model, arguments.task, dtype, arguments.batch, arguments.checkpoint, contenders)
    return setup, find_device(arguments.device)


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


def _measure(setup: network.Setup | drop_in.Setup, image: torch.Tensor, arguments: argparse.Namespace) -> report.Case:
    dtype = str(setup.dtype).removeprefix("torch.")
    height, width = image.shape[2:]
    module, name, task = (network, setup.model, arguments.task) if arguments.timm is None else (
        drop_in, arguments.timm, "patched")  # fmt: skip
    description = f"{task}, {height}x{width}, batch {setup.batch}, {dtype}"
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        row = progress.add_task("creating the network", total=1.0)
        with forced_backend(arguments.backend):
            return module.measure(
                setup, image, budget=arguments.budget, name=name, description=description,
                progress=lambda doing, done: progress.update(row, description=doing, completed=done),
            )  # fmt: skip


def _plot(case: report.Case, ran_on: dict, path: str) -> None:
    try:
        from hrnet_fast.bench.plot import plot

        plot([case], path, baseline=EAGER, title=f"{case.name} on a photograph", footnote=machine.summary(ran_on))
    except ImportError as error:
        raise BadInput(f"--plot needs matplotlib, which cannot be imported ({error}): pip install matplotlib") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"plot {path}: cannot be written ({error})") from None
