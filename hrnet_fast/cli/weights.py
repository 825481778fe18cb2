"""List the published weights that are known by name, or download some of them."""

import argparse
import json

from rich.markup import escape
from rich.table import Table

from hrnet_fast.bench import BadInput, report
from hrnet_fast.checkpoints import pretrained, zoo
from hrnet_fast.files import cache_folder
from hrnet_fast.models import TASKS, configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``weights``."""
    add = parser.add_argument
    add("--model", default=None, metavar="NAME", help="only those of this network")
    add("--task", default=None, choices=TASKS, help="only those for this task")
    add("--json", action="store_true", help="as JSON, with the addresses of the files")
    add(
        "--download",
        default=None,
        metavar="NAME",
        help="bring these of --model and --task here, for use offline",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the table, or the path of what was downloaded."""
    try:
        model = None if arguments.model is None else configs.find(arguments.model)[0]
    except ValueError as error:
        raise BadInput(str(error)) from None
    if arguments.download is not None:
        if model is None or arguments.task is None:
            raise BadInput("download: needs --model and --task beside it")
        try:
            path = pretrained.download_weights(model, arguments.task, arguments.download)
        except (ValueError, OSError) as error:
            raise BadInput(str(error)) from None
        report.console().print(escape(str(path)), soft_wrap=True)
        return 0
    found = zoo.list_weights(model, arguments.task)
    if arguments.json:
        print(json.dumps([_row(weights) for weights in found], indent=1))
        return 0
    table = Table(box=None, header_style="bold")
    for heading in ("model", "task", "weights", "data set", "classes", "size", "published", "licence", "here"):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("classes", "published") else "left")
    for weights in found:
        here = "yes" if pretrained.cached(weights).is_file() else ""
        size, value = "x".join(map(str, weights.size)), f"{weights.metric} {weights.value:.2f}"
        table.add_row(
            *(weights.model, weights.task, weights.name, weights.dataset, str(weights.num_classes), size, value),
            *(weights.licence, here),
        )
    shown = report.console()
    shown.print(table)
    for source in dict.fromkeys(weights.source for weights in found):
        shown.print(escape(f"from {source}"), soft_wrap=True)
    shown.print(escape(f"kept in {cache_folder()}"), soft_wrap=True)
    return 0


def _row(weights: zoo.Weights) -> dict:
    path = pretrained.cached(weights)
    return weights._asdict() | {"sha256": weights.sha256, "file": str(path) if path.is_file() else None}
