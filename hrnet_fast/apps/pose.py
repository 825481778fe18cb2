"""Key points of people in a picture, from boxes around them: crops, heat maps, coordinates.

The steps are those of the official code (deep-high-resolution-net.pytorch): ``lib/dataset/coco.py`` makes a crop of a box,
``lib/core/function.py`` averages with the mirror image, ``lib/core/inference.py`` reads coordinates off the heat maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast.apps.networks import Network
from hrnet_fast.apps.pictures import BadPicture

KEY_POINTS = ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
              "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee",
              "left_ankle", "right_ankle")  # fmt: skip
# Key points in the order of a mirror image: every left one changes places with the right one behind it.
MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
SIZES = ((256, 192), (384, 288))  # (height, width) of the official networks' inputs
PADDING = 1.25  # of a box, all in all
VISIBLE = 0.2  # the score of a key point that counts (TEST.IN_VIS_THRE)


def regions(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Centres and widths of what crops show: boxes with the crop's aspect ratio, and padding.

    Args:
        boxes: [K, 4] in float64: x, y, width, height in pixels.
        size: (height, width) of a crop.

    Returns:
        [K, 3]: x and y of the centre, and the width in pixels.
    """
    x, y, width, height = boxes.unbind(1)
    wide = torch.maximum(width, height * (size[1] / size[0])) * PADDING
    return torch.stack([x + width / 2, y + height / 2, wide], 1)


def crop(pixels: Tensor, region: Sequence[float], size: tuple[int, int]) -> Tensor:
    """What a region shows, bilinear, black outside of the picture: [3, height, width] in float32, from 0 to 255.

    Pixel (u, v) of the crop is the point (u - width / 2) * step + x of the picture, likewise for v, as in the official
    affine transform. Coordinates are not rounded to 1/32 of a pixel, as OpenCV rounds them.

    Args:
        pixels: [3, H, W] in uint8.
        region: a row of ``regions``.
        size: (height, width) of the crop.
    """
    centre_x, centre_y, wide = region
    step = wide / size[1]
    u = (torch.arange(size[1], dtype=torch.float64) - size[1] / 2) * step + centre_x
    v = (torch.arange(size[0], dtype=torch.float64) - size[0] / 2) * step + centre_y
    # only what is seen becomes floating point: pictures are large
    x0, x1 = _span(u, pixels.shape[2])
    y0, y1 = _span(v, pixels.shape[1])
    if x0 >= x1 or y0 >= y1:
        return torch.zeros(3, *size, device=pixels.device)
    part = pixels[:, y0:y1, x0:x1].float()
    u, v = (2 * (u - x0) + 1) / (x1 - x0) - 1, (2 * (v - y0) + 1) / (y1 - y0) - 1  # as grid_sample counts
    grid = torch.stack([u.expand(size), v.unsqueeze(1).expand(size)], 2).float().to(pixels.device)
    return F.grid_sample(part[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def _span(positions: Tensor, length: int) -> tuple[int, int]:
    first, last = float(positions[0]), float(positions[-1])
    return max(0, int(max(first, -1.0))), min(length, int(min(last, float(length))) + 2)


def locate(heat_maps: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates and values of the maxima (``get_final_preds``): [K, P, 2] as x, y in the heat maps' pixels, and [K, P].

    A maximum moves a quarter of a pixel towards the larger of its neighbours, each way, unless it lies at the border.
    Where no value is above 0, the coordinates are 0, 0.

    Args:
        heat_maps: [K, P, h, w] in float32.
    """
    height, width = heat_maps.shape[2:]
    values, at = heat_maps.flatten(2).max(2)
    x, y = at % width, at // width
    inner_x, inner_y = x.clamp(1, max(1, width - 2)), y.clamp(1, max(1, height - 2))
    points = torch.stack([x, y], 2).float() * (values > 0).unsqueeze(2)
    if width < 4 or height < 4:
        return points, values

    def value(dx: int, dy: int) -> Tensor:
        index = (inner_y + dy) * width + inner_x + dx
        return heat_maps.flatten(2).gather(2, index.unsqueeze(2)).squeeze(2)

    shift = torch.stack([value(1, 0) - value(-1, 0), value(0, 1) - value(0, -1)], 2).sign() * 0.25
    inside = (points[..., 0] > 1) & (points[..., 0] < width - 1) & (points[..., 1] > 1) & (points[..., 1] < height - 1)
    return points + shift * inside.unsqueeze(2), values


@dataclass(frozen=True)
class PoseEstimator:
    """How boxes become key points."""

    network: Network
    size: tuple[int, int] = SIZES[0]  # (height, width) of the network's input
    flip: bool = True  # mean with the mirror image
    batch: int = 16  # crops at a time

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, boxes: Sequence[Sequence[float]]) -> Tensor:
        """Key points [K, P, 3] in float64: x and y in the picture's pixels, and the score.

        Args:
            pixels: [3, H, W] in uint8.
            boxes: K times x, y, width, height in pixels.

        Raises:
            BadPicture: the network's heat maps are not finite.
        """
        where = regions(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), self.size)
        found = [self._batch(pixels, where[k : k + self.batch]) for k in range(0, len(where), self.batch)]
        return torch.cat(found) if found else torch.empty(0, self.network.num_classes, 3, dtype=torch.float64)

    def _batch(self, pixels: Tensor, where: Tensor) -> Tensor:
        network = self.network
        pixels = pixels.to(network.device)
        crops = torch.stack([network.normalized(crop(pixels, region, self.size)) for region in where.tolist()])
        crops = crops.to(network.dtype)
        maps = network(crops).float()
        if self.flip:
            mirrored = network(crops.flip(3)).float().flip(3)[:, MIRRORED]
            # a network with strides of 4 looks at other pixels of the mirror image (TEST.SHIFT_HEATMAP)
            mirrored[..., 1:] = mirrored[..., :-1].clone()
            maps = (maps + mirrored) * 0.5
        if not maps.isfinite().all():
            raise BadPicture("the network's heat maps are not finite; --dtype float32 may help")
        points, values = (t.double().cpu() for t in locate(maps))
        step = where[:, 2] / maps.shape[3]  # of the picture's pixels in one of the heat map's
        middle = torch.tensor([maps.shape[3] / 2, maps.shape[2] / 2], dtype=torch.float64)
        return torch.cat([(points - middle) * step[:, None, None] + where[:, None, :2], values.unsqueeze(2)], 2)


def person_score(scores: Sequence[float], box_score: float = 1.0) -> float:
    """Mean of the key points' scores that count, times the box's (``COCODataset.evaluate``)."""
    counted = [score for score in scores if score > VISIBLE]
    return box_score * sum(counted) / len(counted) if counted else 0.0
