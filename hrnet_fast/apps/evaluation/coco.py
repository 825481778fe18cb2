"""COCO's key points: people of annotated pictures, results as COCO's server takes them, and their average precision.

The steps are those of the official code (deep-high-resolution-net.pytorch, ``lib/dataset/coco.py`` and
``lib/nms/nms.py``): boxes cut off at the picture, people without labelled key points left out, scores of key points
times that of the box, doubles removed by object key point similarity. pycocotools computes the average precision.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrnet_fast.apps.boxes import PERSON, Box, BoxFile
from hrnet_fast.apps.pose import KEY_POINTS, person_score, regions

# What pycocotools' COCOeval.stats holds for key points
STATISTICS = ("AP", "AP50", "AP75", "AP medium", "AP large", "AR", "AR50", "AR75", "AR medium", "AR large")
# A standard deviation for each key point, as a share of the person's size (COCO, key point evaluation)
SIGMAS = (0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087,
          0.089, 0.089)  # fmt: skip
SAME_PERSON = 0.9  # object key point similarity from which on two results are one person (TEST.OKS_THRE)


class Picture(NamedTuple):
    """A picture and the boxes of its people."""

    number: int  # COCO's image id
    path: Path
    boxes: list[Box]


class People:
    """The people of annotated pictures.

    Args:
        pictures: the folder of the picture files.
        annotations: person_keypoints_*.json.
        detections: boxes of a detector, in the layouts of ``BoxFile``; None: the annotations' own.
        limit: pictures that are taken, the first ones; None: all.

    Raises:
        ValueError: the files are not COCO's, or pictures are missing; the message names the first one.
        ImportError: pycocotools is missing.
    """

    def __init__(self, pictures: Path, annotations: Path, detections: Path | None = None, limit: int | None = None):
        self.truth = _read(annotations)
        boxes = None if detections is None else BoxFile(detections)
        self.pictures = []
        for number in sorted(self.truth.getImgIds())[:limit]:
            about = self.truth.imgs[number]
            path = Path(pictures) / Path(str(about["file_name"])).name
            self.pictures.append(Picture(number, path, self._annotated(number) if boxes is None else boxes.of(path)))
        missing = [str(picture.path) for picture in self.pictures if not picture.path.is_file()]
        if missing:
            raise ValueError(
                f"{annotations}: {len(missing)} of its {len(self.pictures)} pictures are not there, the first: "
                f"{missing[0]}"
            )
        if not any(picture.boxes for picture in self.pictures):
            raise ValueError(f"{detections or annotations}: no boxes of people in these {len(self.pictures)} pictures")

    def _annotated(self, number: int) -> list[Box]:
        return [self._clipped(entry) for entry in self.labelled(number)]

    def labelled(self, number: int) -> list[dict[str, Any]]:
        """The annotations of a picture's people who have key points, in the order of its boxes."""
        ids = self.truth.getAnnIds(imgIds=[number], catIds=[PERSON], iscrowd=False)
        sound = (e for e in self.truth.loadAnns(ids) if e["area"] > 0 and max(e["keypoints"]) > 0)
        return [e for e in sound if min(self._clipped(e)[2:4]) >= 0]

    def _clipped(self, entry: dict[str, Any]) -> Box:
        about = self.truth.imgs[entry["image_id"]]
        x, y, width, height = entry["bbox"]
        left, top = max(0.0, x), max(0.0, y)
        right = min(about["width"] - 1, left + max(0.0, width - 1))
        bottom = min(about["height"] - 1, top + max(0.0, height - 1))
        return Box(left, top, right - left, bottom - top)

    def results(self, picture: Picture, points: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
        """What a picture adds to COCO's results file.

        Args:
            picture: one of ``pictures``.
            points: [K, 17, 3] in float64: x, y in pixels and a score, for each of its boxes.
            size: (height, width) of the crops, which decide how large a person is.
        """
        scores = [person_score(p[:, 2].tolist(), box.score) for p, box in zip(points, picture.boxes, strict=True)]
        kept = without_doubles(points, scores, picture.boxes, size)
        return [
            {
                "image_id": picture.number,
                "category_id": PERSON,
                "keypoints": points[k].flatten().tolist(),
                "score": scores[k],
            }
            for k in kept
        ]

    def precision(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """COCO's ten numbers for key points, from 0 to 1 (-1: there is nothing of that size)."""
        from pycocotools.cocoeval import COCOeval

        if not results:
            return dict.fromkeys(STATISTICS, 0.0)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self.truth, self.truth.loadRes(results), "keypoints")
            evaluation.params.imgIds = [picture.number for picture in self.pictures]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return dict(zip(STATISTICS, evaluation.stats.tolist(), strict=True))


def without_doubles(
    points: Tensor, scores: Sequence[float], boxes: Sequence[Box], size: tuple[int, int], limit: float = SAME_PERSON
) -> list[int]:
    """Which people stay, best first: none that is more similar than ``limit`` to one with a higher score.

    Args:
        points: [K, 17, 3] in float64.
        scores: K of them.
        boxes: of each person.
        size: (height, width) of the crops.
        limit: of the object key point similarity.
    """
    where = regions(torch.tensor([box[:4] for box in boxes], dtype=torch.float64).reshape(-1, 4), size)
    areas = where[:, 2] ** 2 * (size[0] / size[1])
    variances = (2 * torch.tensor(SIGMAS, dtype=torch.float64)) ** 2
    left, kept = sorted(range(len(scores)), key=lambda k: -scores[k]), []
    while left:
        best, *rest = left
        kept.append(best)
        distances = (points[rest, :, :2] - points[best, :, :2]).square().sum(2)
        similarity = (-distances / variances / ((areas[best] + areas[rest]) / 2)[:, None] / 2).exp().mean(1)
        left = [k for k, alike in zip(rest, similarity.tolist(), strict=True) if alike <= limit]
    return kept


def _read(path: Path) -> Any:
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise ImportError(
            "COCO's average precision is computed by pycocotools, which is not installed: "
            "pip install 'hrnet_fast[evaluate]'"
        ) from None
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    truth = COCO()
    truth.dataset = content
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
        people = [entry for entry in content["annotations"] if entry["category_id"] == PERSON]
        sound = bool(truth.imgs) and all(
            {"bbox", "area", "iscrowd"} <= entry.keys() and len(entry["keypoints"]) == 3 * len(KEY_POINTS)
            for entry in people
        )
        sound = sound and all({"file_name", "width", "height"} <= about.keys() for about in truth.imgs.values())
    except (KeyError, TypeError, AttributeError):
        people, sound = [], False
    if not people or not sound:
        raise ValueError(f"{path}: expected COCO's annotations of people with {len(KEY_POINTS)} key points")
    return truth
