"""Find key points of people in pictures, from boxes around them: drawn on the photograph, and as JSON."""

import argparse
import json
import math
from pathlib import Path

from hrnet_fast.apps import boxes
from hrnet_fast.apps.pictures import BadPicture, files, reading
from hrnet_fast.apps.pictures.overlay import png
from hrnet_fast.apps.pose import KEY_POINTS, SIZES, VISIBLE, PoseEstimator, person_score
from hrnet_fast.apps.skeleton import draw
from hrnet_fast.bench import BadInput
from hrnet_fast.cli import pictures
from hrnet_fast.cli.common import check_least
from hrnet_fast.files import save as save_files

_SIZES = {f"{height}x{width}": (height, width) for height, width in SIZES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pose``."""
    pictures.add_arguments(parser, model="hrnet_w32", out="poses")
    add = parser.add_argument
    add(
        "--boxes",
        nargs="+",
        default=None,
        metavar="BOX",
        help="X,Y,WIDTH,HEIGHT in pixels (--boxes=-5,... where X is negative), or one .json file with COCO's "
        "annotations or detections, or {file name: [[x, y, width, height], ...]} "
        "(default: the whole picture is one box)",
    )
    add("--size", default=next(iter(_SIZES)), choices=_SIZES, help="HxW of the network's input (default: 256x192)")
    add("--flip", action=argparse.BooleanOptionalAction, default=True, help="mean with the mirror image (default: yes)")
    add("--batch", type=int, default=16, metavar="N", help="boxes at a time (default: 16)")
    add("--threshold", type=float, default=VISIBLE, metavar="F", help="least score that is drawn (default: 0.2)")


def run(arguments: argparse.Namespace) -> int:
    """Finds the key points of all pictures. 1 where a picture or a box was skipped."""
    check_least(arguments, "batch")
    if math.isnan(arguments.threshold):
        raise BadInput("threshold nan: must be a number")
    given = _boxes(arguments.boxes)
    found, network = pictures.prepare(arguments, "pose", len(KEY_POINTS), None)
    if isinstance(given, list) and len(found) > 1:
        raise BadInput(f"boxes: given for one picture, and there are {len(found)}; name their pictures in a .json file")
    estimate = PoseEstimator(network, _SIZES[arguments.size], arguments.flip, arguments.batch)
    out, weights = Path(arguments.out), arguments.weights or (arguments.checkpoint and Path(arguments.checkpoint).name)

    def load(item: files.Found):
        photograph = reading.read(item.path)
        people = [boxes.Box(0, 0, photograph.width, photograph.height)] if given is None else given
        people = people.of(item.path) if isinstance(people, boxes.BoxFile) else people
        if not people:
            raise BadPicture(f"{given.path} has no box of it")
        outside = [box for box in people if not _touches(box, photograph)]
        if outside:
            raise BadPicture(
                f"the box {','.join(f'{n:g}' for n in outside[0][:4])} does not touch its "
                f"{photograph.width}x{photograph.height} pixels"
            )
        return photograph, reading.to_tensor(photograph), people

    def compute(item: files.Found, loaded):
        photograph, pixels, people = loaded
        return photograph, people, estimate(pixels, [box[:4] for box in people]).tolist()

    def save(item: files.Found, result) -> None:
        photograph, people, points = result
        picture = {
            "file_name": item.path.name,
            "width": photograph.width,
            "height": photograph.height,
            "model": arguments.model,
            "weights": weights or "random: the key points mean nothing",
            "keypoint_names": KEY_POINTS,
            "people": [_person(box, each) for box, each in zip(people, points, strict=True)],
        }
        drawn = draw(photograph, points, people, arguments.threshold)
        contents = {
            out / f"{item.name}_pose.png": png(drawn),
            out / f"{item.name}_pose.json": json.dumps(picture, indent=1, allow_nan=False).encode(),
        }
        save_files(contents, arguments.force)

    flipped = ", flipped too" if arguments.flip else ""
    pictures.announce(
        network,
        f"{arguments.model}, pose: crops of {arguments.size}{flipped}, {arguments.dtype} on {network.device.type}",
    )
    code = pictures.run(found, load, compute, save, f"{out / '*_pose.png'}, {out / '*_pose.json'}")
    return pictures.left_out(given.left_out if isinstance(given, boxes.BoxFile) else []) or code


def _boxes(given: list[str] | None) -> list[boxes.Box] | boxes.BoxFile | None:
    if given is None:
        return None
    named = [text for text in given if text.endswith(".json") or Path(text).is_file()]
    if named and len(given) > 1:
        raise BadInput(f"boxes: expected boxes, or one file; got {len(given)} arguments with {named[0]} among them")
    try:
        return boxes.BoxFile(named[0]) if named else [boxes.parse(text) for text in given]
    except ValueError as error:
        raise BadInput(str(error)) from None


def _touches(box: boxes.Box, photograph) -> bool:
    across = box.x < photograph.width and box.x + box.width > 0
    return across and box.y < photograph.height and box.y + box.height > 0


def _person(box: boxes.Box, points: list[list[float]]) -> dict:
    """As an entry of COCO's results files."""
    return {
        "category_id": boxes.PERSON,
        "bbox": list(box[:4]),
        "score": person_score([score for _, _, score in points], box.score),
        "keypoints": [round(value, 3) for point in points for value in point],
    }
