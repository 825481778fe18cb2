"""The table of GPU results in docs/gpu.md, from the files that ``make gpu`` has stored; nothing is typed by hand."""

from pathlib import Path

from benchmarks.goals import compiled, speedup
from hrnet_fast.bench.contenders import COMPILED, FAST, FOLDED
from hrnet_fast.bench.record import Entry, Record, Report
from hrnet_fast.bench.report import Table, share_of_copy, times

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


COLUMNS = (
    "on a GPU, under CUDA graphs",
    "eager",
    "torch.compile",
    "hrnet_fast",
    "over eager",
    "over torch.compile",
    "of the copy bandwidth",
)


def block(folder: Path) -> str:
    """Markdown: a row per case that was timed, a line per machine; each GPU may have a folder of its own."""
    found: list[tuple[Record, dict]] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            stored = Report.load(path)
        except (ValueError, KeyError, TypeError):  # of another kind
            continue
        found += [(record, stored.machine) for record in stored.cases if _kind(record) and record.timed(FAST)]
    if not found:
        return NOTHING
    rows = [_row(record, machine) for record, machine in sorted(found, key=lambda pair: _place(pair[0]))]
    lines = [
        *Table(COLUMNS, rows).markdown(),
        "",
        "Medians of runs in turn, batch 1, channels_last; eager has BatchNorm folded, torch.compile is the faster of",
        "its modes default and max-autotune.",
        *(f"Measured on: {text}." for text in dict.fromkeys(_machine(machine) for _, machine in found)),
        "Measure again: `make gpu`, then `python -m benchmarks.readme_table`.",
    ]
    return "\n".join(lines) + "\n"


def _kind(record: Record) -> str | None:
    """Which of PARTS a stored case belongs to."""
    return next((kind for kind in PARTS if _rest(record, kind).startswith("w")), None)


def _rest(record: Record, kind: str) -> str:
    return record.name.removeprefix(f"{kind}-") if record.name.startswith(f"{kind}-") else ""


def _place(record: Record) -> tuple:
    kind = _kind(record)
    width, size, dtype = _rest(record, kind).split("-")
    return list(PARTS).index(kind), ORDER.index(width), -int(size.split("x")[0]), dtype != "float16"


def _row(record: Record, machine: dict) -> list[str]:
    kind = _kind(record)
    title, bound = PARTS[kind]
    ours = record.entry(FAST)
    share = share_of_copy(record, ours, machine.get("copy_bytes_per_second")) if bound else None
    return [
        f"{title}, {', '.join(_rest(record, kind).split('-'))}",
        *(_time(entry) for entry in (record.best(FOLDED), record.best(*compiled(record)), ours)),
        times(speedup(record, FOLDED)),
        times(speedup(record, COMPILED)),
        "-" if share is None else f"{share:.0%}",
    ]


def _time(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    seconds = entry.seconds.median
    value, unit = (seconds * 1e3, "ms") if seconds >= 1e-3 else (seconds * 1e6, "us")
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"


def _machine(machine: dict) -> str:
    gpu, parts = machine["gpu"] or {}, []
    if gpu:
        parts.append(f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}")
    parts.append(f"torch {machine['torch']}")
    if machine.get("copy_bytes_per_second"):
        parts.append(f"copy {machine['copy_bytes_per_second'] / 1e12:.2f} TB/s")
    if machine.get("bfloat16_flops_per_second"):
        parts.append(f"bfloat16 products {machine['bfloat16_flops_per_second'] / 1e12:.0f} TFLOP/s")
    if machine.get("clocks"):
        parts.append(f"SM clock {machine['clocks'].splitlines()[-1].split(',')[0].strip()}")
    if machine["commit"]:
        parts.append(f"commit {machine['commit']}")
    return "; ".join(parts)
