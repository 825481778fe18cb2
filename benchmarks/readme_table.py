"""Writes README.md's tables of results and its plot from the files in benchmarks/results/; nothing is typed by hand.

``python -m benchmarks.readme_table`` writes, ``--check`` exits with 1 where README.md says something else.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import engines_table, gpu_table, rival_report
from hrnet_fast.bench.contenders import CHANNELS_LAST, COMPILED, FAST, FOLDED
from hrnet_fast.bench.machine import summary
from hrnet_fast.bench.plot import plot
from hrnet_fast.bench.report import Case, Report, milliseconds

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
GPU_MARKERS = "<!-- gpu:begin -->", "<!-- gpu:end -->"
ROWS = (  # what the README shows, in this order, where it was measured
    "model-w48-512x512-float32", "model-w48-512x512-bfloat16", "model-w18-512x512-float32",
    "model-w18-512x512-bfloat16", "head-w48-128x128-float32", "head-w48-128x128-bfloat16",
    "unit-w48-stage4-float32", "unit-w48-stage4-bfloat16", "exchange-c48-128x128-float32",
    "exchange-c48-128x128-bfloat16", "exchange-c18-128x128-float32", "exchange-c18-128x128-bfloat16",
)  # fmt: skip
PLOTTED = ("model-w48-512x512-float32", "head-w48-128x128-float32", "exchange-c48-128x128-float32",
           "exchange-c18-128x128-float32")  # fmt: skip
PLOT = "benchmarks/results/speed.png"


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Regenerates the table and the plot under ``root``; with --check only compares the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_table", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit with 1 where the README is out of date"
    )
    arguments = parser.parse_args(argv)
    readme = root / "README.md"
    before = readme.read_text()
    if before.count(BEGIN) != 1 or before.count(END) != 1:
        print(f"README.md: expected the lines {BEGIN} and {END}, once each", file=sys.stderr)
        return 1
    reports = load(root / "benchmarks" / "results")
    after = insert(before, table(reports))
    if all(before.count(marker) == 1 for marker in GPU_MARKERS):
        after = insert(after, gpu_table.block(root / "benchmarks" / "results" / "gpu"), *GPU_MARKERS)
    for name, block in (("engines", engines_table.markdown), ("rivals", rival_report.markdown)):
        markers = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if all(before.count(marker) == 1 for marker in markers):
            after = insert(after, block(reports), *markers)
    if arguments.check:
        if after != before:
            print(
                "README.md is not what benchmarks/results/ says: run python -m benchmarks.readme_table", file=sys.stderr
            )
        return int(after != before)
    readme.write_text(after)
    plotted = [reports[name] for name in PLOTTED if name in reports]
    if plotted:
        plot([report.cases[0] for report in plotted], root / PLOT, baseline=CHANNELS_LAST,
             title="HRNet in PyTorch: latency, batch 1", footnote=summary(plotted[0].machine))  # fmt: skip
    return 0


def load(folder: Path) -> dict[str, Report]:
    """All stored results, one case each, by the case's name."""
    reports = {}
    for path in sorted(folder.glob("*.json")):
        stored = Report.load(path)
        for case in stored.cases:
            reports[case.name] = Report([case], stored.machine, stored.schema)
    return reports


def insert(readme: str, block: str, begin: str = BEGIN, end: str = END) -> str:
    """README.md with what stands between the markers replaced."""
    head, rest = readme.split(begin)
    return f"{head}{begin}\n{block}{end}{rest.split(end)[1]}"


def table(reports: dict[str, Report]) -> str:
    """Markdown: a row per case, a line per machine, and the command that measures them again."""
    rows = [name for name in ROWS if name in reports]
    if not rows:
        return "No results are stored yet: `python -m benchmarks.run` measures them.\n"
    lines = ["| | eager, channels_last | torch.compile | hrnet_fast | speedup over eager | over torch.compile |",
             "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    lines += [_row(reports[name].cases[0]) for name in rows]
    machines = list(dict.fromkeys(summary(reports[name].machine) for name in rows))
    lines += [
        "",
        "Medians of runs in turn, batch 1; eager is the faster of the forms with and without BatchNorm folded.",
    ]
    lines += [f"Measured on: {text}." for text in machines]
    if any(reports[name].cases[0].disturbed for name in rows):
        lines += ["Rows with * were measured while other processes kept the cores busy."]
    lines += ["Measure again: `python -m benchmarks.run`, then `python -m benchmarks.readme_table`.", ""]
    return "\n".join(lines)


def _row(case: Case) -> str:
    timed = {entry.name: entry for entry in case.entries if entry.seconds is not None}
    eager = [timed[name] for name in (CHANNELS_LAST, FOLDED) if name in timed]
    best = min(eager, key=lambda entry: entry.seconds.median) if eager else None
    ours = timed.get(FAST)
    cells = [milliseconds(entry.seconds.median) if entry else "-" for entry in (best, timed.get(COMPILED), ours)]
    for other in (best, timed.get(COMPILED)):
        ratio = ours.speedup_over.get(other.name) if ours and other else None
        cells.append("-" if ratio is None else f"{ratio.median:.2f}x")
    return f"| {case.description}{' *' if case.disturbed else ''} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
