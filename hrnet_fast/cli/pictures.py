"""What ``segment`` and ``pose`` have in common: options, the network, the run over all pictures and its summary."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hrnet_fast.apps import networks, pipeline
from hrnet_fast.apps.pictures import files, need_pillow
from hrnet_fast.bench import BadInput, report
from hrnet_fast.cli.common import DTYPES, add_weights, check_least, checkpoint_of, find_device
from hrnet_fast.models import configs


def add_arguments(parser: argparse.ArgumentParser, *, model: str, out: str) -> None:
    """The options of both commands."""
    add = parser.add_argument
    add(
        "pictures",
        nargs="+",
        metavar="IMAGE",
        help="picture files, folders, or quoted glob patterns such as 'a/**/*.jpg'",
    )
    add("--model", default=model, metavar="NAME", help=f"default: {model}")
    add_weights(parser)
    add("--out", default=out, metavar="FOLDER", help=f"where the results go (default: {out})")
    add("--force", action="store_true", help="overwrite results that are there already")
    add("--dtype", default="float32", choices=list(DTYPES), help="default: float32")
    add("--device", default="cpu", metavar="DEVICE", help="cpu or cuda (default: cpu)")
    add("--threads", type=int, default=None, metavar="N", help="threads for torch (default: torch's own choice)")


def prepare(
    arguments: argparse.Namespace, task: str, num_classes: int | None, align_corners: bool | None
) -> tuple[list[files.Found], networks.Network]:
    """The pictures and the network; BadInput if there are none, it cannot be made, or Pillow is missing."""
    check_least(arguments, "threads")
    device = find_device(arguments.device)
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise BadInput(f"out {out}: is there already, and no folder")
    try:
        need_pillow()
        name, _ = configs.find(arguments.model)
        found = files.find(arguments.pictures, leave_out=out)
    except (ValueError, ImportError) as error:
        raise BadInput(str(error)) from None
    checkpoint = checkpoint_of(arguments, task)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        network = networks.build(
            name,
            task,
            checkpoint=checkpoint,
            num_classes=num_classes,
            align_corners=align_corners,
            dtype=DTYPES[arguments.dtype],
            device=device,
        )
    except (ValueError, ImportError, OSError) as error:
        raise BadInput(f"checkpoint {checkpoint}: {str(error).removeprefix('path: ')}") from None
    return found, network


def announce(network: networks.Network, description: str) -> None:
    """Says what will run, and plainly where its weights are random."""
    shown = report.console()
    shown.print(description, markup=False, soft_wrap=True)
    if network.random:
        shown.print(
            "no --checkpoint or --weights: the weights are random, and so are the results; they mean nothing",
            style="yellow",
            soft_wrap=True,
        )


def run(
    found: list[files.Found],
    load: Callable[[files.Found], Any],
    compute: Callable[[files.Found, Any], Any],
    save: Callable[[files.Found, Any], None],
    results: str,
) -> int:
    """All pictures; names those that have no result and why, and returns the exit code: 1 where there are such."""
    began, seconds, done, missed = time.perf_counter(), 0.0, 0, 0

    def timed(item, loaded):
        nonlocal seconds
        start = time.perf_counter()
        try:
            return compute(item, loaded)
        finally:
            seconds += time.perf_counter() - start

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("pictures", total=len(found))
        for outcome in pipeline.run(found, load, timed, save):
            progress.update(bar, advance=1)
            if outcome.problem is None:
                done += 1
                continue
            missed += 1
            _complain(progress, f"skipped {outcome.item.path}: {outcome.problem}")
            if outcome.disk_full:
                _complain(progress, f"stopped: {len(found) - done - missed} more pictures have no result")
                break
    wall = time.perf_counter() - began
    skipped = f", {len(found) - done} skipped" if done < len(found) else ""
    report.console().print(
        f"{done} of {len(found)} pictures{skipped}: {wall:.2f} s, of which {seconds:.2f} s computing; {results}",
        markup=False,
        soft_wrap=True,
    )
    return 0 if done == len(found) else 1


def left_out(reasons: list[str]) -> int:
    """Names boxes that were left out; the exit code."""
    for reason in reasons:
        print(f"left out {reason}", file=sys.stderr)
    return 1 if reasons else 0


def _complain(progress: Progress, line: str) -> None:
    if progress.disable:
        print(line, file=sys.stderr)
    else:
        progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
