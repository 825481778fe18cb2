"""Writes the tables of results in README.md and docs/, and README's picture, from the files in benchmarks/results/.

``python -m benchmarks.readme_table`` writes, ``--check`` exits with 1 if a page or the picture is out of date. No
figure is typed by hand. A table stands on whatever page has its two markers.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import accuracy_table, engines_table, gpu_table, overview, rival_report
from hrnet_fast.bench.contenders import CHANNELS_LAST, COMPILED, FAST, FOLDED, OPTIMIZED
from hrnet_fast.bench.machine import summary
from hrnet_fast.bench.record import Record, Report
from hrnet_fast.bench.report import milliseconds

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PAGES = ("README.md", "docs/accuracy.md", "docs/gpu.md", "docs/results.md")
ROWS = (  # the forms of this package, in this order, where they were measured
    "model-w48-512x512-float32",
    "model-w48-512x512-bfloat16",
    "model-w18-512x512-float32",
    "model-w18-512x512-bfloat16",
    "head-w48-128x128-float32",
    "head-w48-128x128-bfloat16",
    "unit-w48-stage4-float32",
    "unit-w48-stage4-bfloat16",
    "exchange-c48-128x128-float32",
    "exchange-c48-128x128-bfloat16",
    "exchange-c18-128x128-float32",
    "exchange-c18-128x128-bfloat16",
)
PLOT = "benchmarks/results/speed.png"


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Regenerates tables and plot under ``root``; with --check only compares the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_table", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if something is out of date")
    arguments = parser.parse_args(argv)
    before = {page: (root / page).read_text() for page in PAGES if (root / page).exists()}
    if any(before["README.md"].count(marker) != 1 for marker in (BEGIN, END)):
        print(f"README.md: expected the lines {BEGIN} and {END}, once each", file=sys.stderr)
        return 1
    results = root / "benchmarks" / "results"
    reports, machines = load(results), by_machine(results / "engines")
    made = blocks(reports, machines, root)
    after = {page: _filled(text, made) for page, text in before.items()}
    stale = [page for page in before if after[page] != before[page]]
    old = overview.main_machine(machines)[0] is not None and not _shows(root / PLOT, overview.digest(machines))
    if arguments.check:
        for page in [*stale, *([PLOT] if old else [])]:
            print(
                f"{page} is not what benchmarks/results/ says: run python -m benchmarks.readme_table", file=sys.stderr
            )
        return int(bool(stale) or old)
    for page in stale:
        (root / page).write_text(after[page])
    overview.picture(machines, root / PLOT)
    return 0


def _shows(picture: Path, digest: str) -> bool:
    """Whether the picture was drawn from the results with that digest."""
    return picture.exists() and digest.encode() in picture.read_bytes()


def by_machine(folder: Path) -> list[dict[str, Report]]:
    """The results of the suite or of ``benchmarks.engines``, a dict for each machine, by the names of their folders."""
    return [load(path) for path in sorted(folder.glob("*")) if path.is_dir()]


def blocks(
    reports: dict[str, Report], machines: Sequence[dict[str, Report]], root: Path = ROOT
) -> dict[str, Callable[[], str]]:
    """What writes the text between the markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``, by that name."""
    return {
        "results": lambda: overview.table(machines),
        "gpu": lambda: gpu_table.block(root / "benchmarks" / "results" / "gpu"),
        "forms": lambda: "\n".join(map(table, by_machine(root / "benchmarks" / "results" / "suite") or [{}])),
        "engines": lambda: engines_table.markdown(machines, overview.NAMES),
        "rivals": lambda: rival_report.markdown(reports),
        "accuracy": lambda: accuracy_table.markdown(root / "benchmarks" / "results" / "accuracy"),
    }


def _filled(text: str, made: dict[str, Callable[[], str]]) -> str:
    for name, block in made.items():
        markers = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        # on lines of their own: another page that includes the table names them in its directive
        if all(text.splitlines().count(marker) == 1 for marker in markers):
            text = insert(text, block(), *markers)
    return text


def load(folder: Path) -> dict[str, Report]:
    """All stored results, one case each, by the case's name."""
    reports = {}
    for path in sorted(folder.glob("*.json")):
        stored = Report.load(path)
        for case in stored.cases:
            reports[case.name] = Report([case], stored.machine, stored.schema)
    return reports


def insert(readme: str, block: str, begin: str = BEGIN, end: str = END) -> str:
    """A page with what stands between the markers replaced."""
    head, rest = readme.split(begin)
    return f"{head}{begin}\n{block}{end}{rest.split(end)[1]}"


def table(reports: dict[str, Report]) -> str:
    """The forms of this package: a row per case, a line per machine, and the command that measures them again."""
    rows = [name for name in ROWS if name in reports]
    if not rows:
        return "No results are stored yet: `python -m benchmarks.run` measures them.\n"
    optimized = any(entry.name == OPTIMIZED for name in rows for entry in reports[name].cases[0].entries)
    names = [
        "eager, channels_last",
        "torch.compile",
        "hrnet_fast",
        *([OPTIMIZED] if optimized else []),
        "speedup over eager",
        "over torch.compile",
    ]
    lines = [f"| | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    lines += [_row(reports[name].cases[0], optimized) for name in rows]
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


def _row(case: Record, with_optimized: bool) -> str:
    """``with_optimized``: there is a column for optimize. The ratios are those of the last form that was timed."""
    timed = {entry.name: entry for entry in case.entries if entry.seconds is not None}
    eager = [timed[name] for name in (CHANNELS_LAST, FOLDED) if name in timed]
    best = min(eager, key=lambda entry: entry.seconds.median) if eager else None
    forms = [timed.get(name) for name in (FAST, *([OPTIMIZED] if with_optimized else []))]
    ours = next((entry for entry in reversed(forms) if entry), None)
    cells = [milliseconds(entry.seconds.median) if entry else "-" for entry in (best, timed.get(COMPILED), *forms)]
    for other in (best, timed.get(COMPILED)):
        ratio = ours.speedup_over.get(other.name) if ours and other else None
        cells.append("-" if ratio is None else f"{ratio.median:.2f}x")
    return f"| {case.description}{' *' if case.disturbed else ''} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
