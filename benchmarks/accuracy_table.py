"""The results of ``benchmarks.accuracy`` as a table for the terminal and as Markdown, from what was stored."""

import json
import statistics
from pathlib import Path
from typing import NamedTuple

from hrnet_fast.bench.machine import summary
from hrnet_fast.bench.report import Table

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
    """Of what a file of one network holds; contenders that ran with no seed are left out."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for run in measured["runs"]:
        (reference,) = (row["miou"] for row in run["rows"] if row["name"] == REFERENCE)
        for row in run["rows"]:
            if row["failure"] is None:
                values = row["miou"], 100 * (reference - row["miou"]), row["agreement"]
                found.setdefault(row["name"], []).append(values)
    made = []
    for name, values in found.items():
        mious, lost, agreement = zip(*values, strict=True)
        made.append(
            Line(
                measured["network"],
                name,
                statistics.fmean(mious),
                statistics.fmean(lost),
                max(lost),
                statistics.fmean(agreement),
                len(values),
            )
        )
    return made


def cells(line: Line) -> list[str]:
    """Of one row, in COLUMNS' order. A loss below zero is a gain."""
    start = [_title(line.network), line.name, f"{100 * line.miou:.2f}"]
    if line.name == REFERENCE:
        return [*start, "", "", ""]
    return [*start, _points(line.lost), _points(line.most), f"{100 * line.agreement:.2f} %"]


def _points(value: float) -> str:
    return f"{round(value, 2) + 0:.2f}"  # adding 0 makes 0 of -0


def notes(measured: dict) -> list[str]:
    """What was measured on one network, whether int8 is as good as it has to be, and what did not run."""
    options, runs = measured["options"], measured["runs"]
    height, width = options["size"]
    found = [
        f"{_title(measured['network'])}: means over {len(runs)} network{'s' * (len(runs) > 1)}, trained for "
        f"{options['steps']} steps of {options['batch']} images; {options['images']} other images of {height}x{width}; "
        f"int8 calibrated with {options['calibration_images']} training images."
    ]
    by_name = {line.name: line for line in lines(measured)}
    if INT8 in by_name:
        found.append(_verdict(by_name))
    rows = [row for run in runs for row in run["rows"]]
    failures = sorted({(row["name"], row["failure"]) for row in rows if row["failure"] is not None})
    found += [f"{name} did not run: {why}" for name, why in failures]
    engines = sorted({(row["name"], row["engine"]) for row in rows if row["engine"] in ("torch", "model")})
    return found + [f"{name} was run by the engine {engine!r}." for name, engine in engines]


def _verdict(by_name: dict[str, Line]) -> str:
    ours, peers = by_name[INT8], [by_name[name] for name in PEERS if name in by_name]
    parts = [f"Points lost by int8: {_points(ours.lost)}, at most {LIMIT} is the goal: {_reached(ours.lost <= LIMIT)}"]
    for peer in peers:
        parts.append(f"by {peer.name}: {_points(peer.lost)}, not more is the goal: {_reached(ours.lost <= peer.lost)}")
    return f"{'; '.join(parts)}."


def _title(network: str) -> str:
    return f"HRNet-{network[:1].upper()}{network[1:].replace('_', '-')}"


def _reached(yes: bool) -> str:
    return "reached" if yes else "missed"


def table(measured: list[dict]) -> Table:
    """For the terminal, of several networks."""
    return Table(COLUMNS, [cells(line) for one in measured for line in lines(one)], "Accuracy by dtype", left=2)


def markdown(folder: Path) -> str:
    """For docs/accuracy.md, of all files in a folder, by their names."""
    stored = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not stored:
        return "No results are stored yet: `python -m benchmarks.accuracy` measures them.\n"
    made = [*table(stored).markdown(), "", *(f"- {note}" for one in stored for note in notes(one))]
    made += [f"- Measured on: {text}." for text in dict.fromkeys(summary(one["machine"]) for one in stored)]
    made += ["", "Measure again: `python -m benchmarks.accuracy`, then `python -m benchmarks.readme_table`.", ""]
    return "\n".join(made)
