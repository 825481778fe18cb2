"""Key points and the lines between them, drawn on a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hrnet_fast.apps.boxes import Box
from hrnet_fast.apps.pose import KEY_POINTS

if TYPE_CHECKING:
    from PIL.Image import Image

# COCO's skeleton, as person_keypoints_*.json lists it, counted from 0
LIMBS = ((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
         (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6))  # fmt: skip
LEFT, RIGHT, MIDDLE, EDGE = (0, 200, 83), (255, 145, 0), (41, 121, 255), (255, 255, 255)
_SMOOTH = 2  # drawn so many times larger, and reduced


def draw(
    photograph: Image, people: Sequence[Sequence[Sequence[float]]], boxes: Sequence[Box], threshold: float
) -> Image:
    """The photograph with everybody's box, key points and limbs; left green, right orange, as the person sees it.

    Args:
        photograph: RGB.
        people: of each P key points x, y, score.
        boxes: beside each person the box.
        threshold: the least score of a key point that is drawn.
    """
    from PIL import Image, ImageDraw

    size = (photograph.width * _SMOOTH, photograph.height * _SMOOTH)
    layer, mask = Image.new("RGB", size), Image.new("L", size)
    pens = ((ImageDraw.Draw(layer), None), (ImageDraw.Draw(mask), 255))
    for points, box in zip(people, boxes, strict=True):
        unit = _SMOOTH * max(1.0, max(box.width, box.height) / 120)
        at = [((x + 0.5) * _SMOOTH, (y + 0.5) * _SMOOTH) for x, y, _ in points]
        seen = [score >= threshold for _, _, score in points]
        corners = [box.x * _SMOOTH, box.y * _SMOOTH, (box.x + box.width) * _SMOOTH, (box.y + box.height) * _SMOOTH]
        for pen, fill in pens:
            pen.rectangle(corners, outline=fill or EDGE, width=_SMOOTH)
            for a, b in LIMBS:
                if seen[a] and seen[b]:
                    pen.line([at[a], at[b]], fill=fill or _colour(a, b), width=round(2 * unit))
            for k, (x, y) in enumerate(at):
                if seen[k]:
                    for radius, colour in ((2.2 * unit, EDGE), (1.6 * unit, _colour(k, k))):
                        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill or colour)
    layer, mask = (image.resize(photograph.size, Image.Resampling.BOX) for image in (layer, mask))
    return Image.composite(layer, photograph, mask)


def _colour(a: int, b: int) -> tuple[int, int, int]:
    sides = {KEY_POINTS[k].partition("_")[0] for k in (a, b)}
    return LEFT if sides == {"left"} else RIGHT if sides == {"right"} else MIDDLE
