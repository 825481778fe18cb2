"""Plots of stored results: latency as bars, with the speedup over a baseline written on each."""

from collections.abc import Sequence
from pathlib import Path

from hrnet_fast.bench.record import Record
from hrnet_fast.bench.report import milliseconds

_COLOURS = {
    "eager": "#b8b8b8",
    "eager channels_last": "#8f8f8f",
    "eager folded": "#6b6b6b",
    "torch.compile": "#4c84b6",
    "hrnet_fast": "#e89a6c",
    "hrnet_fast.optimize": "#d9542b",
}


def plot(cases: Sequence[Record], path: str | Path, *, baseline: str, title: str = "", footnote: str = "") -> None:
    """Draws one panel per case, bars from the slowest contender to the fastest, and writes the picture to ``path``.

    Raises:
        ValueError: no case has a contender that was timed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = [case for case in cases if any(entry.seconds for entry in case.entries)]
    if not cases:
        raise ValueError("nothing to plot: no contender was timed")
    bars = [sum(entry.seconds is not None for entry in case.entries) for case in cases]
    figure = Figure(figsize=(9, 1.0 + sum(0.75 + 0.42 * n for n in bars)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(cases), squeeze=False, gridspec_kw={"height_ratios": [0.5 + n for n in bars]})
    for axes, case in zip(panels[:, 0], cases, strict=True):
        _panel(axes, case, baseline)
    panels[-1, 0].set_xlabel("latency in ms: median, whiskers at the 20th and 80th percentile; shorter is better")
    if title:
        figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    if footnote:
        figure.text(0.01, -0.01, footnote, fontsize=8, color="#555555", va="top", wrap=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144, bbox_inches="tight", pad_inches=0.15)


def _panel(axes, case: Record, baseline: str) -> None:
    timed = [entry for entry in case.entries if entry.seconds is not None]
    longest = max(entry.seconds.p80 for entry in timed) * 1e3
    for row, entry in enumerate(timed):
        s = entry.seconds
        median, low, high = s.median * 1e3, (s.median - s.p20) * 1e3, (s.p80 - s.median) * 1e3
        axes.barh(
            row,
            median,
            color=_COLOURS.get(entry.name, "#7a9e7e"),
            height=0.68,
            xerr=[[low], [high]],
            error_kw={"ecolor": "#333333", "elinewidth": 1, "capsize": 2},
        )
        ratio = entry.speedup_over.get(baseline)
        label = milliseconds(s.median) + (f"  ({ratio.median:.2f}x)" if ratio is not None else "")
        axes.text(
            s.p80 * 1e3 + 0.015 * longest,
            row,
            label,
            va="center",
            fontsize=10.5,
            fontweight="bold" if entry.name.startswith("hrnet_fast") else "normal",
        )
    axes.set_yticks(range(len(timed)), [entry.name for entry in timed], fontsize=10.5)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.28)  # room for the labels
    axes.set_title(case.description, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
