"""A colour for every class."""

import colorsys

Colour = tuple[int, int, int]

# The 19 classes of Cityscapes by their train ids (cityscapesScripts, helpers/labels.py): road, sidewalk, building, wall,
# fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck, bus, train, motorcycle,
# bicycle.
CITYSCAPES: tuple[Colour, ...] = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
_GOLDEN = 0.618033988749895  # of the circle of hues: no two of any number of steps come close


def palette(classes: int) -> tuple[Colour, ...]:
    """Cityscapes' colours for 19 classes, else colours that are far from each other."""
    return CITYSCAPES if classes == len(CITYSCAPES) else tuple(map(_colour, range(classes)))


def _colour(index: int) -> Colour:
    saturation, value = ((0.85, 0.95), (0.55, 0.8), (0.9, 0.6))[index % 3]
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(index * _GOLDEN % 1, saturation, value))
