"""Write a checkpoint of the official repositories, timm or OpenMMLab as safetensors that say what they hold."""

import argparse
from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from hrnet_fast.bench import BadInput, report
from hrnet_fast.checkpoints.convert import Conversion, convert_checkpoint
from hrnet_fast.checkpoints.reading import listed
from hrnet_fast.ops.exchange.call import MODES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``convert``."""
    add = parser.add_argument
    add("file", metavar="FILE", help="the checkpoint: a file of torch.save or of safetensors; no code of it is run")
    add("--out", required=True, metavar="X.safetensors", help="the file to write")
    add("--model", default=None, metavar="NAME", help="refuse the file unless it holds this network")
    add("--task", default=None, metavar="TASK", help="refuse the file unless it is for this task; features: leave out "
        "the head")  # fmt: skip
    add("--num-classes", type=int, default=None, metavar="N", help="refuse the file unless it has so many classes")
    add("--align-corners", choices=["true", "false"], default=None, help="of the training (default: what the file's "
        "configuration says, or the family's own code does)")  # fmt: skip
    add("--upsample", choices=MODES, default=None, help="of the exchange units (default: likewise)")
    for name in ("mean", "std"):
        add(f"--{name}", nargs="+", type=float, default=None, metavar="X",
            help=f"{name} of each channel of images from 0 to 1 (default: likewise, or ImageNet's)")  # fmt: skip
    add("--average", action="store_true", help="take the exponential average (EMA) that lies beside the weights")
    add("--inplace-abn", action="store_true", help="the norms were InPlaceABN's, which use the absolute value of their "
        "weights")  # fmt: skip
    add("--drop-unexpected", action="store_true", help="leave out weights that the network has no place for")
    add("--force", action="store_true", help="replace X.safetensors where it is there already")


def run(arguments: argparse.Namespace) -> int:
    """Converts and prints what was recognised, where each value of the header is from, and what was left out."""
    asked = {k: getattr(arguments, k) for k in ("model", "task", "num_classes", "upsample", "mean", "std", "average", "inplace_abn",
                                                "drop_unexpected")}  # fmt: skip
    aligned = None if arguments.align_corners is None else arguments.align_corners == "true"
    try:
        done = convert_checkpoint(arguments.file, arguments.out, align_corners=aligned, overwrite=arguments.force,
                                  **asked)  # fmt: skip
    except FileExistsError as error:
        raise BadInput(f"{error}; --force replaces it") from None
    except OSError as error:
        reason = error.strerror and f"{arguments.out}: cannot be written ({error.strerror})"
        raise BadInput(reason or str(error)) from None
    except (ValueError, ImportError) as error:
        raise BadInput(str(error)) from None
    _show(done, arguments.out)
    return 0


def _show(done: Conversion, out: str) -> None:
    shown = report.console()
    header = done.header
    taken = f' under "{done.place}"' if done.place else ""
    shown.print(escape(f"recognised{taken}: {header.source}: {header.description}"))
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("header", "value", "from"):
        table.add_column(heading, overflow="fold")
    for field, whence in done.whence.items():
        value = getattr(header, field)
        if field == "class_names":
            value = _summed(value) if value else None
        if value is not None:
            table.add_row(field, escape(str(list(value) if isinstance(value, tuple) else value)), whence)
    shown.print(table)
    if done.averaged:
        shown.print(f'an exponential average lies under "{done.averaged}" and was not taken: --average takes it')
    if done.filled:
        shown.print(escape(f"zeros where the family has no bias or counter: {_summed(done.filled)}"))
    if done.left_out:
        shown.print(escape(f"left out, no weights of this network: {_summed(done.left_out)}"))
    for note in done.notes:
        shown.print(escape(f"note: {note}"))
    shown.print(escape(f"written: {out}"))


def _summed(keys: Sequence[str]) -> str:
    return f"{len(keys)}: {listed(keys)}"
