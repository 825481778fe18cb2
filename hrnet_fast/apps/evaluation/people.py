"""Generated pictures of stick figures with COCO's annotations: a set of key points for trying things out."""

import json
import math
from pathlib import Path

import torch

from hrnet_fast.apps.boxes import PERSON
from hrnet_fast.apps.pictures import need_pillow
from hrnet_fast.apps.pose import KEY_POINTS
from hrnet_fast.apps.skeleton import LIMBS

# Where a standing person's key points are, in units of the body's height, from the top and the middle
_STANDING = ((0, 0.1), (0.03, 0.08), (-0.03, 0.08), (0.06, 0.1), (-0.06, 0.1), (0.13, 0.22), (-0.13, 0.22), (0.2, 0.36),
             (-0.2, 0.36), (0.22, 0.5), (-0.22, 0.5), (0.09, 0.52), (-0.09, 0.52), (0.1, 0.74), (-0.1, 0.74),
             (0.11, 0.95), (-0.11, 0.95))  # fmt: skip
ANNOTATIONS = "person_keypoints.json"


def generate(folder: Path, count: int, size: tuple[int, int] = (240, 320), seed: int = 0) -> Path:
    """Writes ``count`` pictures of ``size`` (height, width) and their annotations; the path of the latter.

    One to three figures a picture, each made from the seed and its place; a tenth of the key points are not labelled.

    Raises:
        ImportError: Pillow is missing.
        OSError: the folder cannot be written.
    """
    need_pillow()
    from PIL import Image, ImageDraw

    height, width = size
    images, annotations = [], []
    folder.mkdir(parents=True, exist_ok=True)
    g = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=g))

    for number in range(1, count + 1):
        picture = Image.new("RGB", (width, height), tuple(int(between(40, 120)) for _ in range(3)))
        pen = ImageDraw.Draw(picture)
        for _ in range(1 + int(between(0, 2.999))):
            tall, middle, top = between(0.5, 0.9) * height, between(0.2, 0.8) * width, between(0, 0.1) * height
            at = [(middle + x * tall + between(-2, 2), top + y * tall + between(-2, 2)) for x, y in _STANDING]
            for a, b in LIMBS:
                pen.line([at[a], at[b]], fill=(230, 230, 230), width=max(2, round(tall / 40)))
            for k, (x, y) in enumerate(at):
                radius = tall / 45
                colour = tuple(round(127 + 127 * math.cos(k * 2.4 + phase)) for phase in (0, 2.1, 4.2))
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
            seen = [0 <= x < width and 0 <= y < height and between(0, 1) < 0.9 for x, y in at]
            points = [v for (x, y), s in zip(at, seen, strict=True) for v in ((x, y, 2) if s else (0, 0, 0))]
            across, down = ([p[axis] for p in at] for axis in (0, 1))
            box = [min(across) - 8, min(down) - 8, max(across) - min(across) + 16, max(down) - min(down) + 16]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": PERSON, "iscrowd": 0, "bbox": box}
            annotations.append(entry | {"area": 0.6 * box[2] * box[3], "keypoints": points, "num_keypoints": sum(seen)})
        name = f"{number:012}.png"
        picture.save(folder / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    category = {"id": PERSON, "name": "person", "keypoints": list(KEY_POINTS), "skeleton": []}
    path = folder / ANNOTATIONS
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
    return path
