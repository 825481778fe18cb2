"""Draws docs/images/idea.png: both orders of a 1x1 convolution and an upsampling, computed, and what each costs.

``python docs/draw_idea.py [FILE]``, in the root of the tree. Needs matplotlib, Pillow and scikit-learn (its
photograph).
"""

import sys
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import hrnet_fast as hf
from hrnet_fast.bench import images
from hrnet_fast.models.configs import CONFIGS

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import ConnectionPatch

OUT = Path(__file__).parent / "images" / "idea.png"
SIZE = (256, 384)  # of the highest resolution, in pixels
COSTS_AT = (128, 256)  # of the highest resolution, for an image of 512x1024
WIDTHS = ("hrnet_w18", "hrnet_w32", "hrnet_w48")
USUAL, COMMUTED = "tab:gray", "tab:blue"


def streams() -> list[Tensor]:
    """A photograph [1, 3, H, W] float64 in four resolutions, in the place of an HRNet's four streams."""
    photograph = images.load(size=SIZE).double()
    return [F.avg_pool2d(photograph, 1 << k) for k in range(4)]


def weights() -> list[Tensor]:
    """1x1 convolutions [3, 3]: each mixes the colours in its own way."""
    generator = torch.Generator().manual_seed(1)
    return [torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))[0] / 2 for _ in range(4)]


def multiply_adds(name: str) -> tuple[int, int]:
    """Of the V2 head's first convolution: on the concatenation, and on each stream at its own resolution."""
    channels = CONFIGS[name].channels(4)
    total = sum(channels)
    sizes = [(COSTS_AT[0] >> k, COSTS_AT[1] >> k) for k in range(4)]

    def count(shapes: list[tuple[int, tuple[int, int]]]) -> int:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            for c, (h, w) in shapes:
                F.conv2d(torch.empty(1, c, h, w), torch.empty(total, c, 1, 1))
        return counter.get_total_flops() // 2

    return count([(total, COSTS_AT)]), count(list(zip(channels, sizes, strict=True)))


def draw(path: Path) -> float:
    """Draws, and returns the largest difference between the results of the two orders."""
    x, w = streams(), weights()
    up = [F.interpolate(z, SIZE, mode="bilinear") for z in x]
    usual = F.conv2d(torch.cat(up, 1), torch.cat(w, 1)[:, :, None, None])
    products = [F.conv2d(z, m[:, :, None, None]) for z, m in zip(x, w, strict=True)]
    commuted = hf.exchange(x, w, activation=None)
    difference = float((usual - commuted).abs().max())

    figure = plt.figure(figsize=(13, 8.4), dpi=110)
    high = (0.54, "concatenate at full size, then convolve", "up(x_j): 15 C channels at full size", up, usual)
    low = (0.06, "convolve each stream where it is, then upsample", "W_j x_j: each at its own size", products, commuted)
    for bottom, title, middle, between, result in (high, low):
        colour = USUAL if between is up else COMMUTED
        figure.text(0.02, bottom + 0.41, title, fontsize=13, fontweight="bold", color=colour)
        for left, text in ((0.02, "x_j: a photograph in 4 resolutions"), (0.25, middle), (0.47, "y")):
            figure.text(left, bottom + 0.365, text, fontsize=10)
        columns = [_column(figure, 0.02, bottom, x), _column(figure, 0.25, bottom, between)]
        end = _picture(figure, 0.47, bottom + 0.17, 0.15, result)
        for left, right in zip(*columns, strict=True):
            _arrow(figure, left, right, colour)
            _arrow(figure, right, end, colour)
    figure.text(0.47, 0.485, f"largest difference of the two: {difference:.0e}", fontsize=10)
    _bars(figure.add_axes((0.71, 0.12, 0.28, 0.74)))
    figure.savefig(path)
    plt.close(figure)
    return difference


def _column(figure: plt.Figure, left: float, bottom: float, pictures: list[Tensor]) -> list[plt.Axes]:
    """Pictures below each other, as large as their resolution says."""
    scale, pitch = 0.077 / SIZE[1], 0.09
    centres = [bottom + pitch * (3.5 - k) for k in range(len(pictures))]
    return [_picture(figure, left, y, scale * p.shape[3], p) for y, p in zip(centres, pictures, strict=True)]


def _picture(figure: plt.Figure, left: float, centre: float, width: float, picture: Tensor) -> plt.Axes:
    shape = figure.get_size_inches()
    height = width * shape[0] / shape[1] * picture.shape[2] / picture.shape[3]
    axes = figure.add_axes((left, centre - height / 2, width, height))
    # the same grey value for the same number in all pictures
    axes.imshow((picture[0].permute(1, 2, 0) / 4 + 0.5).clamp(0, 1), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _arrow(figure: plt.Figure, left: plt.Axes, right: plt.Axes, colour: str) -> None:
    figure.add_artist(
        ConnectionPatch(
            (1, 0.5),
            (0, 0.5),
            "axes fraction",
            "axes fraction",
            axesA=left,
            axesB=right,
            arrowstyle="-|>",
            color=colour,
            alpha=0.6,
            linewidth=0.8,
            zorder=10,
        )
    )


def _bars(axes: plt.Axes) -> None:
    costs = [multiply_adds(name) for name in WIDTHS]
    for shift, colour, label, values in (
        (-0.2, USUAL, "on the concatenation", [c[0] for c in costs]),
        (0.2, COMMUTED, "on each stream", [c[1] for c in costs]),
    ):
        places = [k + shift for k in range(len(WIDTHS))]
        drawn = axes.bar(places, [v / 1e9 for v in values], 0.38, color=colour, label=label)
        axes.bar_label(drawn, [f"{v / 1e9:.2f}" for v in values], fontsize=9)
    axes.set_xticks(range(len(WIDTHS)), [f"{n}\n{a / b:.1f} times fewer" for n, (a, b) in zip(WIDTHS, costs)])
    axes.set_ylabel("multiply-adds, 1e9")
    axes.set_title("1x1 convolution of the V2 head, image of 512x1024", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")


if __name__ == "__main__":
    print(f"largest difference: {draw(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT):.0e}")
