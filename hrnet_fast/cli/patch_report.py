"""Show what the drop-in makes of one of timm's HRNets: every module, and the difference of outputs."""

import argparse

import torch
from rich import box
from rich.table import Table

from hrnet_fast.bench import BadInput, images, report, timm_models
from hrnet_fast.models import randomize
from hrnet_fast.patching import PatchReport, patch
from hrnet_fast.tolerances import MODEL, relative_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``patch-report``."""
    add = parser.add_argument
    add("--timm", required=True, metavar="NAME", help="timm's name of the network, such as hrnet_w18")
    add("--size", default="224x224", metavar="HxW", help="of the photograph to compare on (default: 224x224)")
    add("--all", action="store_true", help="one line for every module, none summed up")


def run(arguments: argparse.Namespace) -> int:
    """Patches, prints the report, compares. 1 where the outputs do not agree or nothing was patched."""
    image = images.load(None, images.parse_size(arguments.size))
    model = randomize(timm_models.create(arguments.timm))
    shown = report.console()
    with torch.inference_mode():
        try:
            expected = model(image)
        except RuntimeError as error:
            raise BadInput(f"size {arguments.size}: {arguments.timm} cannot take it ({error})") from None
        done = patch(model)
        error = relative_error(model(image), expected)
    shown.print(_table(arguments.timm, done, arguments.all))
    shown.print(done.summary)
    limit = MODEL[image.dtype]
    shown.print(
        f"largest relative difference of the outputs on a photograph of {arguments.size}: {error:.1e} "
        f"(allowed: {limit:.0e}; random weights)"
    )
    return 0 if done.patched and error <= limit else 1


def _table(name: str, done: PatchReport, every: bool) -> Table:
    table = Table(title=f"hrnet_fast.patch on timm's {name}", box=box.SIMPLE_HEAD)
    for heading in ("module", "taken for", "", "what it became, or why it was left alone"):
        table.add_column(heading, overflow="fold")
    rows = [(row.name or "(model)", row) for row in done.rows] if every else done.groups()
    for names, row in rows:
        table.add_row(names, row.kind, "patched" if row.patched else "left alone", row.detail)
    return table
