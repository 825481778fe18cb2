"""The results of ``benchmarks.accuracy`` as a table for the terminal and as Markdown, from what was stored."""

import json
import statistics
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from hrnet_fast.bench.machine import summary

REFERENCE = "float32, plain PyTorch"
INT8 = "int8"
PEERS = ("OpenVINO int8", "ONNX Runtime int8")
COLUMNS = ("network", "", "mIoU", "points lost", "most of a seed", "pixels as in float32")
LIMIT = 0.5  # points of mIoU that int8 may lose


class Line(NamedTuple):
    """A contender on one network: means over the seeds."""

    network: str
    name: str
    miou: float  # 0 to 1
    lost: float  # points of mIoU, of 100, against the reference of the same seed
    most: float  # that of the seed that loses most
    agreement: float  # 0 to 1: pixels with the reference's class
    seeds: int


def lines(measured: dict) -> list[Line]:
    """Of what ``accuracy.json`` holds; contenders that ran with no seed are left out."""
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for run in measured["runs"]:
        (reference,) = (row["miou"] for row in run["rows"] if row["name"] == REFERENCE)
        for row in run["rows"]:
            if row["failure"] is None:
                values = row["miou"], 100 * (reference - row["miou"]), row["agreement"]
                found.setdefault((run["network"], row["name"]), []).append(values)
    made = []
    for (network, name), values in found.items():
        mious, lost, agreement = zip(*values, strict=True)
        made.append(Line(network, name, statistics.fmean(mious), statistics.fmean(lost), max(lost),
                         statistics.fmean(agreement), len(values)))  # fmt: skip
    return made


def cells(line: Line) -> list[str]:
    """Of one row, in COLUMNS' order. A loss below zero is a gain."""
    start = [_title(line.network), line.name, f"{100 * line.miou:.2f}"]
    if line.name == REFERENCE:
        return [*start, "", "", ""]
    # adding 0 makes 0 of -0
    lost, most = (f"{round(value, 2) + 0:.2f}" for value in (line.lost, line.most))
    return [*start, lost, most, f"{100 * line.agreement:.2f} %"]


def notes(measured: dict) -> list[str]:
    """What was measured, whether int8 is as good as it has to be, and what did not run."""
    options, found = measured["options"], []
    height, width = options["size"]
    found.append(
        f"Means over networks of {options['seeds']} seed{'s' * (options['seeds'] > 1)}, trained for {options['steps']} steps of "
        f"{options['batch']} images; mIoU of {options['images']} images of {height}x{width} that they were not trained on, "
        f"in points of 100; int8 calibrated with {options['calibration_images']} training images."
    )
    by_network: dict[str, dict[str, Line]] = {}
    for line in lines(measured):
        by_network.setdefault(line.network, {})[line.name] = line
    for network, by_name in by_network.items():
        if INT8 in by_name:
            found.append(_verdict(network, by_name))
    failures = {(run["network"], row["name"], row["failure"]) for run in measured["runs"] for row in run["rows"]
                if row["failure"] is not None}  # fmt: skip
    found += [f"{network}, {name}, did not run: {why}" for network, name, why in sorted(failures)]
    engines = {(row["name"], row["engine"]) for run in measured["runs"] for row in run["rows"]
               if row["engine"] in ("torch", "model")}  # fmt: skip
    found += [f"{name} was run by the engine {engine!r}." for name, engine in sorted(engines)]
    return found


def _verdict(network: str, by_name: dict[str, Line]) -> str:
    ours, peers = by_name[INT8], [by_name[name] for name in PEERS if name in by_name]
    parts = [f"{ours.lost:.2f} points lost by int8, at most {LIMIT} is the goal: {_reached(ours.lost <= LIMIT)}"]
    for peer in peers:
        parts.append(f"{peer.lost:.2f} by {peer.name}, not more is the goal: {_reached(ours.lost <= peer.lost)}")
    return f"{_title(network)}: {'; '.join(parts)}."


def _title(network: str) -> str:
    return f"HRNet-{network[:1].upper()}{network[1:].replace('_', '-')}"


def _reached(yes: bool) -> str:
    return "reached" if yes else "missed"


def table(measured: dict) -> Table:
    """For the terminal."""
    out = Table(title="Accuracy by dtype", title_justify="left")
    for index, name in enumerate(COLUMNS):
        out.add_column(name, justify="right" if index > 1 else "left")
    for line in lines(measured):
        out.add_row(*cells(line))
    return out


def markdown(path: Path) -> str:
    """For docs/accuracy.md, of a stored file."""
    measured = json.loads(path.read_text()) if path.exists() else {"runs": []}
    if not measured["runs"]:
        return "No results are stored yet: `python -m benchmarks.accuracy` measures them.\n"
    made = [f"| {' | '.join(COLUMNS)} |", "|---|---" + "|--:" * (len(COLUMNS) - 2) + "|"]
    made += [f"| {' | '.join(cells(line))} |" for line in lines(measured)]
    made += ["", *(f"- {note}" for note in notes(measured)), f"- Measured on: {summary(measured['machine'])}.", "",
             "Measure again: `python -m benchmarks.accuracy`, then `python -m benchmarks.readme_table`.", ""]  # fmt: skip
    return "\n".join(made)
