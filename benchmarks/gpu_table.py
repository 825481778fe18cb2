"""The table of GPU results in docs/gpu.md, from the files that ``make gpu`` has stored; nothing is typed by hand."""

import json
import statistics
from pathlib import Path

from benchmarks.gpu_cases import EAGER, FAST
from benchmarks.gpu_goals import COMPILED, share_of_copy, speedup

NOTHING = "GPU: not yet measured.\n"
PARTS = {  # in the order of the table: what a row calls them, and whether the memory's bandwidth is their limit
    "model": ("HRNet segmentation", False),
    "head-classifier": ("V2 segmentation head with its classifier", False),
    "head": ("V2 segmentation head without its classifier", True),
    "unit": ("exchange unit of stage 4", False),
    "op": ("exchange, stage 4 output 0", True),
    "train": ("exchange without weights, forward and backward", True),
}
ORDER = ("w48", "w32", "w18")


def block(folder: Path) -> str:
    """Markdown: a row per case that was timed, a line per machine; or that nothing was measured yet."""
    rows, machines = [], []
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text())
        timed = [r for r in report.get("cases", ()) if _kind(r) is not None and r["contenders"][FAST]["seconds"]]
        rows += timed
        if timed and _machine(report) not in machines:
            machines.append(_machine(report))
    if not rows:
        return NOTHING
    lines = [
        "| on a GPU, under CUDA graphs | eager | torch.compile | hrnet_fast | over eager | over torch.compile "
        "| of the copy bandwidth |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *map(_row, sorted(rows, key=_place)),
        "",
        "Medians of runs in turn, batch 1, channels_last; eager has BatchNorm folded, torch.compile is the faster of its",
        "modes default and max-autotune.",
        *(f"Measured on: {machine}." for machine in machines),
        "Measure again: `make gpu`, then `python -m benchmarks.readme_table`.",
    ]
    return "\n".join(lines) + "\n"


def _kind(record: dict) -> str | None:
    """Which of PARTS a stored case belongs to."""
    if FAST not in record.get("contenders", {}):
        return None
    return next((kind for kind in PARTS if _rest(record, kind).startswith("w")), None)


def _rest(record: dict, kind: str) -> str:
    prefix = f"{kind}-"
    return record["name"].removeprefix(prefix) if record["name"].startswith(prefix) else ""


def _place(record: dict) -> tuple:
    kind = _kind(record)
    width, size, dtype = _rest(record, kind).split("-")
    return list(PARTS).index(kind), ORDER.index(width), -int(size.split("x")[0]), dtype != "float16"


def _row(record: dict) -> str:
    kind = _kind(record)
    title, bound = PARTS[kind]
    compiled = [name for name in record["contenders"] if name.startswith(COMPILED)]
    best = min((t for name in compiled if (t := _seconds(record, name)) is not None), default=None)
    share = share_of_copy(record, record.get("copy_bytes_per_second")) if bound else None
    cells = [_time(_seconds(record, EAGER)), _time(best), _time(_seconds(record, FAST))]
    cells += ["-" if r is None else f"{r:.2f}x" for r in (speedup(record, EAGER), speedup(record, COMPILED))]
    cells += ["-" if share is None else f"{share:.0%}"]
    return f"| {title}, {', '.join(_rest(record, kind).split('-'))} | {' | '.join(cells)} |"


def _seconds(record: dict, name: str) -> float | None:
    found = record["contenders"].get(name, {}).get("seconds")
    return statistics.median(found) if found else None


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    value, unit = (seconds * 1e3, "ms") if seconds >= 1e-3 else (seconds * 1e6, "us")
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"


def _machine(report: dict) -> str:
    machine, parts = report["machine"], []
    gpu = machine["gpu"] or {}
    if gpu:
        parts.append(f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}")
    parts.append(f"torch {machine['torch']}")
    if report.get("copy_bytes_per_second"):
        parts.append(f"copy {report['copy_bytes_per_second'] / 1e12:.2f} TB/s")
    if report.get("bfloat16_flops_per_second"):
        parts.append(f"bfloat16 products {report['bfloat16_flops_per_second'] / 1e12:.0f} TFLOP/s")
    if report.get("clocks"):
        parts.append(f"SM clock {report['clocks'].splitlines()[-1].split(',')[0].strip()}")
    if machine["commit"]:
        parts.append(f"commit {machine['commit']}")
    return "; ".join(parts)
