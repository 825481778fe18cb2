"""What README shows first: ``optimize`` beside the best other engine, as one table and one picture.

Both show the machine with the most results. The others get a line each; docs/results.md has all of them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import cases, engines_table
from benchmarks.engines_table import others
from hrnet_fast.bench.contenders import OPTIMIZED
from hrnet_fast.bench.record import Entry, Record, Report
from hrnet_fast.bench.report import milliseconds

NAMES = tuple(case.name for case in cases.cpu(cases.ENGINES))
OTHER, OURS = "#a3aab2", "#d9542b"


def pairs(reports: dict[str, Report]) -> list[tuple[Record, Entry, Entry]]:
    """Each case of the table with its best other engine and ``optimize``, where both were timed."""
    found = []
    for case in (reports[name].cases[0] for name in NAMES if name in reports):
        other, ours = case.best(*others(case)), case.entry(OPTIMIZED)
        if other is not None and ours is not None and ours.seconds is not None:
            found.append((case, other, ours))
    return found


def main_machine(machines: Sequence[dict[str, Report]]) -> tuple[dict[str, Report] | None, list[dict[str, Report]]]:
    """The machine with the most results, and the others; None without any."""
    there = sorted((reports for reports in machines if pairs(reports)), key=lambda reports: -len(pairs(reports)))
    return (there[0], there[1:]) if there else (None, [])


def network(case: Record) -> str:
    """Such as "HRNet-W48 segmentation, 512x512"."""
    return case.description.removesuffix(f", {case.dtype}")


def ratio(other: Entry, ours: Entry) -> str:
    """Such as "1.88x": the time of the other over ours, median of the rounds."""
    return f"{ours.speedup_over[other.name].median:.2f}x"


def processor(reports: dict[str, Report]) -> str:
    """Such as "AMD EPYC (avx512_bf16), 2 threads"."""
    cpu = next(iter(reports.values())).machine["cpu"]
    return f"{cpu['model']} ({cpu['kernel']}), {cpu['threads']} threads"


def table(machines: Sequence[dict[str, Report]]) -> str:
    """The table, and below it the machine and the marks."""
    reports, rest = main_machine(machines)
    if reports is None:
        return engines_table.NOTHING
    shown, named = pairs(reports), None
    lines = ["| network, image | dtype | best other engine | `hf.optimize` | speedup |", "|---|---|--:|--:|--:|"]
    for case, other, ours in shown:
        title = network(case) if network(case) != named else ""
        named = network(case)
        times = [milliseconds(entry.seconds.median) + ("" if entry.agrees else " †") for entry in (other, ours)]
        mark = " *" if case.disturbed else ""
        lines.append(
            f"| {title} | {case.dtype}{mark} | {other.name}, {times[0]} | **{times[1]}** | {ratio(other, ours)} |"
        )
    return "\n".join([*lines, "", *_wrapped(_notes(reports, rest)), ""])


def _notes(reports: dict[str, Report], rest: Sequence[dict[str, Report]]) -> Iterator[str]:
    shown = pairs(reports)
    versions = dict.fromkeys(reports[case.name].machine["torch"] for case, _, _ in shown)
    yield f"{processor(reports)}, torch {', '.join(versions)}, batch 1; medians of runs in turn."
    names = dict.fromkeys(name for case, _, _ in shown for name in others(case))
    yield f"The others are {', '.join(names)}, each in its best form, with the same weights and photograph."
    if any(not entry.agrees for _, *both in shown for entry in both):
        yield "†: off by more than the tolerance of its dtype."
    if any(case.disturbed for case, _, _ in shown):
        yield "*: other processes kept the cores busy."
    for other in rest:
        ratios = sorted(ours.speedup_over[best.name].median for _, best, ours in pairs(other))
        yield f"On {processor(other)}: {ratios[0]:.2f}x to {ratios[-1]:.2f}x."


def _wrapped(sentences: Iterator[str], width: int = 120) -> list[str]:
    lines = [""]
    for word in " ".join(sentences).split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def digest(machines: Sequence[dict[str, Report]]) -> str:
    """What the picture shows, as a key: it stands in the file, so that ``--check`` sees an old one."""
    reports, _ = main_machine(machines)
    shown = pairs(reports) if reports else []
    facts = [[case.name, e.name, e.seconds.median, e.seconds.p20, e.seconds.p80] for case, *both in shown for e in both]
    return "hrnet_fast results " + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def picture(machines: Sequence[dict[str, Report]], path: Path) -> None:
    """A panel for each network: for each dtype a bar for the best other engine and one for ``optimize``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reports, _ = main_machine(machines)
    if reports is None:
        return
    panels: dict[str, list] = {}
    for case, *both in pairs(reports):
        panels.setdefault(network(case), []).append((case, both))
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(10, 0.9 + 2.4 * rows), layout="constrained")
    figure.get_layout_engine().set(hspace=0.08)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 2, squeeze=False).flat
    for axes, (title, shown) in zip(grid, panels.items(), strict=False):
        _panel(axes, title, shown)
    for axes in list(grid)[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle("HRNet on a CPU: hrnet_fast.optimize and the best other engine", fontsize=14, fontweight="bold",
                    x=0.01, ha="left")  # fmt: skip
    figure.supxlabel(f"latency in ms, batch 1, shorter is better; whiskers: 20th and 80th percentile\n{processor(reports)}",
                     fontsize=8.5, color="#555555", x=0.01, ha="left")  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144, metadata={"Description": digest(machines)})


def _panel(axes, title: str, shown: Sequence[tuple[Record, tuple[Entry, Entry]]]) -> None:
    longest = max(entry.seconds.p80 for _, both in shown for entry in both) * 1e3
    for group, (_, both) in enumerate(shown):
        other, ours = both
        for shift, entry, colour in ((-0.2, other, OTHER), (0.2, ours, OURS)):
            s = entry.seconds
            median, low, high = s.median * 1e3, (s.median - s.p20) * 1e3, (s.p80 - s.median) * 1e3
            axes.barh(group + shift, median, 0.38, color=colour, xerr=[[low], [high]],
                      error_kw={"ecolor": "#333333", "elinewidth": 0.8})  # fmt: skip
            is_ours = entry is ours
            label = f"{entry.name} {milliseconds(s.median)}"
            if is_ours:
                faster = " faster" if ours.speedup_over[other.name].median > 1 else ""
                label = f"{milliseconds(s.median)}   {ratio(other, ours)}{faster}"
            axes.text(s.p80 * 1e3 + 0.015 * longest, group + shift, label, va="center", fontsize=9,
                      color=OURS if is_ours else "#444444", fontweight="bold" if is_ours else "normal")  # fmt: skip
    axes.set_yticks(range(len(shown)), [case.dtype for case, _ in shown], fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.42)  # room for the labels
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
