"""Boxes around people: from the command line, or from JSON files as COCO has them."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

PERSON = 1  # COCO's category


class Box(NamedTuple):
    """In pixels, from the upper left corner; as COCO writes boxes."""

    x: float
    y: float
    width: float
    height: float
    score: float = 1.0  # of the detector


def parse(text: str) -> Box:
    """The box of a text "X,Y,WIDTH,HEIGHT".

    Raises:
        ValueError: it does not read like that, or has no area.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise ValueError(f"box {text!r}: expected X,Y,WIDTH,HEIGHT in pixels, or a .json file")
    return _box(numbers, f"box {text!r}")


class BoxFile:
    """The boxes of a JSON file, picture by picture.

    - COCO's annotations: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "bbox"}]}``;
    - COCO's detections: ``[{"image_id", "bbox", "score"}]``, where a picture is named by the number in its file's name, or
      with ``"file_name"`` in place of ``"image_id"``, or with neither: boxes of every picture;
    - ``{"file name": [[x, y, width, height], ...]}``, or ``[[x, y, width, height], ...]`` for every picture.

    Only people count (``category_id`` 1, or none), and no crowds (``iscrowd``).

    Raises:
        ValueError: not a file of these, or a box that is none; the message names the place.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.every: list[Box] = []  # boxes of every picture
        self.named: dict[str | int, list[Box]] = {}  # of a picture, by its file name or its number
        self.left_out: list[str] = []  # boxes without area
        try:
            content = json.loads(self.path.read_bytes())
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON ({error})") from None
        self._fill(content)

    def of(self, picture: Path) -> list[Box]:
        """The boxes of a picture."""
        stem = picture.stem.rpartition("_")[2]  # COCO_val2014_000000000042
        keys = {str(picture), picture.as_posix(), picture.name, *([int(stem)] if stem.isdecimal() else [])}
        return self.every + [box for key, boxes in self.named.items() if key in keys for box in boxes]

    def _fill(self, content: Any) -> None:
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            images = content.get("images", [])
            names = {
                i["id"]: Path(str(i["file_name"])).name
                for i in images
                if isinstance(i, dict) and {"id", "file_name"} <= i.keys()
            }
            for k, entry in enumerate(content["annotations"]):
                place = f"{self.path}: annotations[{k}]"
                if not isinstance(entry, dict) or entry.get("image_id") not in names:
                    raise ValueError(f"{place}: expected an object with the image_id of one of the images")
                self._add(names[entry["image_id"]], entry, place)
        elif isinstance(content, dict):
            for name, boxes in content.items():
                if not isinstance(boxes, list):
                    raise ValueError(f"{self.path}: {name!r}: expected a list of boxes")
                for k, box in enumerate(boxes):
                    self._add(name, box, f"{self.path}: {name!r}[{k}]")
        elif isinstance(content, list):
            for k, entry in enumerate(content):
                key = entry.get("image_id", entry.get("file_name")) if isinstance(entry, dict) else None
                self._add(key, entry, f"{self.path}: [{k}]")
        else:
            raise ValueError(f"{self.path}: expected boxes in COCO's layout, found {type(content).__name__}")

    def _add(self, key: str | int | None, entry: Any, place: str) -> None:
        score = 1.0
        if isinstance(entry, dict):
            if entry.get("category_id", PERSON) != PERSON or entry.get("iscrowd"):
                return
            score, entry = entry.get("score", 1.0), entry.get("bbox")
        numbers = entry if isinstance(entry, list) else []
        if len(numbers) != 4 or not all(_is_number(n) for n in (*numbers, score)):
            raise ValueError(f"{place}: expected a box of 4 numbers, and a number as its score if it has one")
        try:
            box = _box(numbers, place)._replace(score=float(score))
        except ValueError as error:
            self.left_out.append(str(error))
            return
        (self.every if key is None else self.named.setdefault(key, [])).append(box)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _box(numbers: list[float], place: str) -> Box:
    if not all(map(math.isfinite, numbers)) or numbers[2] <= 0 or numbers[3] <= 0:
        raise ValueError(f"{place}: width and height must be above 0, all numbers finite")
    return Box(*map(float, numbers))
