"""What is measured on labelled images: mIoU of class maps, or AP of key points, with the time that it took."""

import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast.apps.evaluation import miou
from hrnet_fast.apps.evaluation.coco import People, Picture
from hrnet_fast.apps.evaluation.sets import Folder, Shapes
from hrnet_fast.apps.networks import Network
from hrnet_fast.apps.pictures import BadPicture, reading
from hrnet_fast.apps.pose import PoseEstimator, crop, regions
from hrnet_fast.apps.segment import Segmenter

Tick = Callable[[], None]


class Measured(NamedTuple):
    """One way of computing on all images."""

    metrics: dict[str, float]  # from 0 to 1
    each: list[float]  # IoU of each class, NaN where it does not occur; of key points none
    rate: float  # images or people a second, by the median
    agreement: float  # share of pixels, or key points within one pixel, that are as in the first measurement


@dataclass
class Segmentation:
    """Mean intersection over union of all images of a set together."""

    source: Folder | Shapes
    calibration: Folder | Shapes  # images to calibrate int8 with
    count: int  # images, the first ones
    classes: int
    size: tuple[int, int] | None = None  # (height, width) that images are resized to; None: their own
    window: tuple[int, int] | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    unit: str = "images/s"
    metrics: tuple[str, ...] = ("mIoU",)
    _first: list[bytes] | None = field(default=None, repr=False)  # class maps of the first measurement, compressed

    def examples(self, network: Network, count: int) -> list[Tensor]:
        """Images [1, 3, H, W] as the network gets them."""
        images = (self.calibration.load(k)[0] for k in range(min(count, len(self.calibration))))
        return [network.image(self._shown(image)) for image in images]

    def _shown(self, image: Tensor) -> Tensor:
        image = self._resized(image)
        return image if self.window is None else image[:, : self.window[0], : self.window[1]]

    def _resized(self, image: Tensor) -> Tensor:
        if self.size is None or self.size == tuple(image.shape[1:]):
            return image
        resized = F.interpolate(image[None].float(), self.size, mode="bilinear", antialias=True)[0]
        return resized.round().clamp(0, 255).to(torch.uint8)

    def measure(self, network: Network, tick: Tick) -> Measured:
        """The network on every image.

        Raises:
            ValueError: a mask that does not fit its image, or the classes; scores that are not finite.
        """
        segment = Segmenter(network, self.window, self.scales, self.flip)
        matrix = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        seconds, maps, same, pixels = [], [], 0, 0
        for index in range(self.count):
            image, mask = self.source.load(index)
            image = self._resized(image)
            began = time.perf_counter()
            try:
                found = segment(image, (mask.shape[0], mask.shape[1]))
            except BadPicture as error:
                raise ValueError(f"{self.source.name(index)}: {error}") from None
            seconds.append(time.perf_counter() - began)
            matrix += miou.confusion(found, mask, self.classes)
            if self._first is None:
                maps.append(zlib.compress(bytes(reading.to_bytes(found)), 1))
            else:
                first = torch.frombuffer(bytearray(zlib.decompress(self._first[index])), dtype=found.dtype)
                same, pixels = same + int((first == found.flatten()).sum()), pixels + found.numel()
            tick()
        if self._first is None:
            self._first, same, pixels = maps, 1, 1
        mean, each = miou.mean_iou(matrix)
        return Measured({"mIoU": mean}, each, 1 / statistics.median(seconds), same / pixels)


@dataclass
class KeyPoints:
    """Average precision of the key points of all people."""

    people: People
    size: tuple[int, int]  # (height, width) of crops
    flip: bool = True
    unit: str = "people/s"
    metrics: tuple[str, ...] = ("AP", "AP50", "AP75", "AR")
    results: list[dict[str, Any]] = field(default_factory=list)  # of the last measurement
    _first: list[Tensor] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """Pictures."""
        return len(self.people.pictures)

    def examples(self, network: Network, count: int) -> list[Tensor]:
        """Crops [1, 3, H, W] as the network gets them."""
        found: list[Tensor] = []
        for picture in self.people.pictures:
            if len(found) >= count:
                break
            pixels = self._pixels(picture)
            boxes = torch.tensor([box[:4] for box in picture.boxes], dtype=torch.float64).reshape(-1, 4)
            for region in regions(boxes, self.size).tolist():
                found.append(network.normalized(crop(pixels, region, self.size)).unsqueeze(0).to(network.dtype))
        return found[:count]

    def _pixels(self, picture: Picture) -> Tensor:
        try:
            return reading.to_tensor(reading.read(picture.path))
        except BadPicture as error:
            raise ValueError(f"{picture.path}: {error}") from None

    def measure(self, network: Network, tick: Tick) -> Measured:
        """The network on every person, one at a time: all calls have one shape.

        Raises:
            ValueError: a picture that cannot be read, or heat maps that are not finite.
        """
        estimate = PoseEstimator(network, self.size, self.flip, batch=1)
        self.results, seconds, points, near, total = [], [], [], 0, 0
        for index, picture in enumerate(self.people.pictures):
            pixels = self._pixels(picture)
            began = time.perf_counter()
            try:
                found = estimate(pixels, [box[:4] for box in picture.boxes])
            except BadPicture as error:
                raise ValueError(f"{picture.path}: {error}") from None
            if picture.boxes:
                seconds.append((time.perf_counter() - began) / len(picture.boxes))
            self.results += self.people.results(picture, found, self.size)
            points.append(found)
            if self._first is not None:
                apart = (found - self._first[index])[..., :2].square().sum(2).sqrt()
                near, total = near + int((apart < 1).sum()), total + apart.numel()
            tick()
        if self._first is None:
            self._first, near, total = points, 1, 1
        return Measured(self.people.precision(self.results), [], 1 / statistics.median(seconds), near / total)
