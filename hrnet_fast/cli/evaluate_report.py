"""What ``evaluate`` prints and writes: a table with a row for each contender, the IoU of classes, JSON."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from hrnet_fast.apps import networks
from hrnet_fast.bench import BadInput, machine, report
from hrnet_fast.files import save


def show(arguments: argparse.Namespace, base: networks.Network, task: Any, published: Any, rows: list[dict]) -> None:
    """Prints what was measured, beside what was published."""
    shown = report.console()
    where = f"{arguments.data}, {arguments.split}" if arguments.data and arguments.task != "pose" else arguments.data
    shown.print(
        escape(f"{arguments.model}, {arguments.task}: {task.count} images, {where or 'generated'}"), soft_wrap=True
    )
    if base.random:
        shown.print(
            "no --checkpoint or --weights: the weights are random; the metric means nothing, the agreement does",
            style="yellow",
            soft_wrap=True,
        )
    table = Table(box=None, header_style="bold")
    for heading in ("", "engine", *task.metrics, "lost", "as first", task.unit, "MiB"):
        table.add_column(heading, justify="left" if heading in ("", "engine") else "right")
    if published is not None:
        values = [f"{published.value:.2f}" if name == published.metric else "" for name in task.metrics]
        table.add_row("published", "", *values, "", "", "", "")
    first = next(row for row in rows if row["failure"] is None)
    for row in rows:
        if row["failure"] is not None:
            table.add_row(escape(row["name"]), "did not run", *[""] * (len(task.metrics) + 4))
            continue
        values = [f"{100 * row['metrics'][name]:.2f}" for name in task.metrics]
        main = task.metrics[0]
        lost = f"{100 * (first['metrics'][main] - row['metrics'][main]) + 0:.2f}"
        used = "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**20:.0f}"
        compared = ("", "") if row is first else (lost, f"{100 * row['agreement']:.2f} %")
        table.add_row(escape(row["name"]), row["engine"], *values, *compared, f"{row['rate']:.2f}", used)
    shown.print(table)
    for row in rows:
        if row["failure"] or row["note"]:
            shown.print(escape(f"{row['name']}: {row['failure'] or row['note']}"), soft_wrap=True)
    if published is not None:
        shown.print(escape(f"published: on {published.dataset}, {published.source}"), soft_wrap=True)
    if arguments.per_class and arguments.task != "pose":
        _show_classes(shown, base, rows)


def _show_classes(shown: Any, base: networks.Network, rows: list[dict]) -> None:
    header = base.model.header
    names = header.class_names if header is not None and header.class_names else range(base.num_classes)
    ran = [row for row in rows if row["failure"] is None]
    table = Table(box=None, header_style="bold")
    table.add_column("IoU of class")
    for row in ran:
        table.add_column(escape(row["name"]), justify="right")
    for k, name in enumerate(names):
        values = [row["per_class"][k] for row in ran]
        table.add_row(escape(str(name)), *("" if v is None else f"{100 * v:.2f}" for v in values))
    shown.print(table)


def write(arguments: argparse.Namespace, base: networks.Network, task: Any, published: Any, rows: list[dict]) -> None:
    """Writes all of it to the file that ``--json`` names; BadInput where it cannot."""
    settings = {k: v for k, v in vars(arguments).items() if k not in ("command", "json")}
    content = {
        "machine": machine.describe(),
        "settings": settings,
        "images": task.count,
        "random_weights": base.random,
        "unit": task.unit,
        "published": None if published is None else published._asdict(),
        "rows": rows,
    }
    path = Path(arguments.json)
    try:
        save({path: (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()}, overwrite=True)
    except OSError as error:
        raise BadInput(f"json {path}: cannot be written ({error.strerror or error})") from None
