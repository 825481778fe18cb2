"""The results of ``benchmarks.rivals`` as a table, as Markdown and as a picture, all from what was stored."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rival_networks import ALIKE, NETWORKS, SOURCE, Count, Network, is_published, why_not_published
from hrnet_fast.bench.contenders import CHANNELS_LAST, FAST, OPTIMIZED
from hrnet_fast.bench.machine import summary
from hrnet_fast.bench.record import Entry, Record, Report
from hrnet_fast.bench.report import Table, milliseconds

COLUMNS = (
    "network",
    "form",
    "parameters",
    "GFLOPs at 1024x2048",
    "latency",
    "ms per GFLOP",
    "peak memory",
    "published mIoU",
)
COLOURS = {CHANNELS_LAST: "#4c84b6", FAST: "#e8a33d", OPTIMIZED: "#d9542b"}
PREFIX = "rivals-"


def network_of(case: Record) -> Network:
    """The network of a stored case."""
    return next(network for network in NETWORKS if PREFIX + network.name == case.name)


def counted(case: Record) -> Count | None:
    """Parameters and multiply-adds at 1024x2048; None where the network could not be made."""
    return None if case.params is None else Count(case.params, round(case.gflops_published * 2**30))


def gflops(entry: Entry) -> float:
    """Multiply-adds / 10^9 of the network at the measured size, in the order of the publications."""
    return entry.gflops * 2**30 / 1e9


def rows(cases: Sequence[Record]) -> list[list[str]]:
    """The cells of all forms that were timed, in COLUMNS' order."""
    found = []
    for case in cases:
        network, count = network_of(case), counted(case)
        for entry in case.entries:
            if entry.seconds is None:
                continue
            peak = entry.resident_peak_bytes or entry.peak_memory_bytes
            published = f"{network.published.miou:.1f}" if is_published(network, count) else "-"
            found.append(
                [
                    network.title,
                    entry.name,
                    f"{count.params / 1e6:.1f}M",
                    f"{count.gflops:.1f}",
                    milliseconds(entry.seconds.median),
                    f"{entry.seconds.median * 1e3 / gflops(entry):.2f}",
                    f"{peak / 2**20:.0f} MiB" if peak else "-",
                    published,
                ]
            )
    return found


def notes(cases: Sequence[Record]) -> list[str]:
    """What the columns are, what differs from the published networks, and why something was not timed."""
    lines = [
        "GFLOPs: multiply-adds / 10^9 of the network as published, whatever order its form computes in; ms per GFLOP "
        "at the measured size.",
        f"mIoU: {SOURCE}; only where parameters and GFLOPs are within {100 * ALIKE:.0f} % of the published ones.",
    ]
    for case in cases:
        network, count = network_of(case), counted(case)
        if count is not None and (reason := why_not_published(network, count)):
            lines.append(f"{network.title}: {reason}.")
    for case in cases:
        title = network_of(case).title
        lines += [f"{title}, {entry.name}, did not run: {entry.failure}" for entry in case.entries if entry.failure]
        lines += [
            f"{title}, {entry.name}, is off by {entry.error:.1e}, more than {case.tolerance:.0e}: "
            + ("not timed" if entry.seconds is None else "timed all the same")
            for entry in case.entries
            if not entry.agrees and not entry.failure and entry.error is not None
        ]
    if any(case.disturbed for case in cases):
        lines.append("Other processes kept the cores busy meanwhile.")
    return lines


def table(cases: Sequence[Record]) -> Table:
    """For the terminal."""
    return Table(COLUMNS, rows(cases), cases[0].description.split(", ", 1)[1] if cases else "", left=2)


def markdown(reports: dict[str, Report]) -> str:
    """For docs/results.md, from all stored results by the cases' names."""
    own = [reports[PREFIX + network.name] for network in NETWORKS if PREFIX + network.name in reports]
    stored = Report([report.cases[0] for report in own], own[0].machine) if own else None
    if stored is None or not rows(stored.cases):
        return "No results are stored yet: `python -m benchmarks.rivals` measures them.\n"
    size = stored.cases[0].description.split(", ", 1)[1]
    lines = Table([*COLUMNS[:4], f"latency, {size}", *COLUMNS[5:]], rows(stored.cases), left=2).markdown()
    lines += [
        "",
        *notes(stored.cases),
        f"Measured on: {summary(stored.machine)}.",
        "Measure again: `python -m benchmarks.rivals`, then `python -m benchmarks.readme_table`.",
        "",
        "![GFLOPs against measured time](../benchmarks/results/rivals.png)",
        "",
    ]
    return "\n".join(lines)


def plot(stored: Report, path: Path) -> None:
    """GFLOPs against time, both logarithmic: the rivals, the rate that they reach, and HRNet before and after.

    Raises:
        ValueError: nothing was timed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    timed = [(network_of(case), entry) for case in stored.cases for entry in case.entries if entry.seconds]
    if not timed:
        raise ValueError("nothing to plot: no network was timed")
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    points = [(gflops(entry), entry.seconds.median * 1e3) for _, entry in timed]
    _rate(axes, timed, points)
    for form, colour in COLOURS.items():
        own = [(network, entry) for network, entry in timed if network.is_hrnet and entry.name == form]
        if own:
            axes.scatter(
                [gflops(e) for _, e in own],
                [e.seconds.median * 1e3 for _, e in own],
                s=64,
                color=colour,
                zorder=3,
                label=f"HRNet: {form}",
            )
    others = [(network, entry) for network, entry in timed if not network.is_hrnet and entry.name == CHANNELS_LAST]
    if others:
        axes.scatter(
            [gflops(e) for _, e in others],
            [e.seconds.median * 1e3 for _, e in others],
            s=64,
            color="#8f8f8f",
            zorder=3,
            label=f"others: {CHANNELS_LAST}",
        )
    for network in {network.name: network for network, _ in timed if network.is_hrnet}.values():
        _arrow(axes, network, [entry for other, entry in timed if other is network])
    for index, (network, entry) in enumerate(sorted(others, key=lambda pair: pair[1].seconds.median)):
        left = index % 2  # neighbours that lie close together get their names on different sides
        axes.annotate(
            network.title,
            (gflops(entry), entry.seconds.median * 1e3),
            xytext=(-9 if left else 9, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=9.5,
        )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(lambda value, position: f"{value:g}")
        axis.set_minor_locator(NullLocator())
    for setter, values in ((axes.set_xlim, [x for x, _ in points]), (axes.set_ylim, [y for _, y in points])):
        setter(min(values) / 1.5, max(values) * 1.5)
    axes.set_xlabel("multiply-adds of the published network / 10$^9$, at the measured size")
    axes.set_ylabel("ms, median")
    axes.set_title(f"Time against arithmetic: {stored.cases[0].description.split(', ', 1)[1]}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.supxlabel(summary(stored.machine), fontsize=7.5, color="#555555", x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144)


def _rate(axes, timed: list, points: list[tuple[float, float]]) -> None:
    """A line of equal time for equal arithmetic, through the middle of the networks that are no HRNet."""
    rates = [e.seconds.median * 1e3 / gflops(e) for n, e in timed if not n.is_hrnet and e.name == CHANNELS_LAST]
    if not rates:
        return
    rate = statistics.median(rates)
    ends = [min(x for x, _ in points) / 1.5, max(x for x, _ in points) * 1.5]
    axes.plot(
        ends,
        [rate * x for x in ends],
        color="#c0c0c0",
        linewidth=1.2,
        linestyle="--",
        zorder=1,
        label=f"the others' median: {rate:.2f} ms per 10$^9$",
    )


def _arrow(axes, network: Network, entries: list[Entry]) -> None:
    """An HRNet's name over its slowest form, and an arrow from there to its fastest."""
    slow = max(entries, key=lambda entry: entry.seconds.median)
    quick = min(entries, key=lambda entry: entry.seconds.median)
    x, top, bottom = gflops(slow), slow.seconds.median * 1e3, quick.seconds.median * 1e3
    if math.log(top / bottom) > 0.05:
        axes.annotate("", (x, bottom), (x, top), arrowprops={"arrowstyle": "->", "color": "#777777"}, zorder=2)
    axes.annotate(network.title, (x, top), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9.5)
