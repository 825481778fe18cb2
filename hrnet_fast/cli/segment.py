"""Segment pictures: of each a PNG of its classes, and one with their colours over the photograph."""

import argparse
import math
from pathlib import Path

from hrnet_fast.apps.pictures import files, reading
from hrnet_fast.apps.pictures.overlay import class_image, overlay, png
from hrnet_fast.apps.pictures.palette import palette
from hrnet_fast.apps.segment import Segmenter
from hrnet_fast.bench import BadInput, images
from hrnet_fast.cli import pictures
from hrnet_fast.cli.common import check_least
from hrnet_fast.files import save as save_files

TASKS = ("segmentation", "segmentation_ocr")
MAX_CLASSES = 1 << 15  # a 16-bit picture's, by a wide margin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``segment``."""
    pictures.add_arguments(parser, model="hrnet_w48", out="segmented")
    add = parser.add_argument
    add("--task", default=TASKS[0], choices=TASKS, help=f"default: {TASKS[0]}")
    add("--classes", type=int, default=None, metavar="N",
        help="the checkpoint's (default: what a converted one says, else 19, Cityscapes')")  # fmt: skip
    add("--align-corners", action=argparse.BooleanOptionalAction, default=None,
        help="as the network was trained (default: what a converted checkpoint says, else as the official code)")  # fmt: skip
    add("--size", default=None, metavar="HxW", help="resize pictures to this for the network (default: their own size)")
    add("--window", default=None, metavar="HxW", help="slide a window of this size over them (default: whole)")
    add("--scales", type=float, nargs="+", default=[1.0], metavar="F", help="mean over these scales (default: 1)")
    add("--flip", action="store_true", help="mean with the mirror image")
    add("--opacity", type=float, default=0.6, metavar="F", help="of the colours, 0 to 1 (default: 0.6)")


def run(arguments: argparse.Namespace) -> int:
    """Segments all pictures. 1 where one was skipped."""
    size, window = (None if text is None else images.parse_size(text) for text in (arguments.size, arguments.window))
    check_least(arguments, "classes")
    if (arguments.classes or 0) > MAX_CLASSES:
        raise BadInput(f"classes {arguments.classes}: at most {MAX_CLASSES} fit into a PNG")
    if not all(0 < scale < math.inf for scale in arguments.scales):
        raise BadInput(f"scales {' '.join(f'{s:g}' for s in arguments.scales)}: must be numbers above 0")
    if not 0 <= arguments.opacity <= 1:
        raise BadInput(f"opacity {arguments.opacity:g}: must be from 0 to 1")
    found, network = pictures.prepare(arguments, arguments.task, arguments.classes, arguments.align_corners)
    segment = Segmenter(network, window, arguments.scales, arguments.flip)
    colours, out = palette(network.num_classes), Path(arguments.out)

    def load(item: files.Found):
        photograph = reading.read(item.path)
        return photograph, reading.to_tensor(photograph, size)

    def compute(item: files.Found, loaded):
        photograph, pixels = loaded
        return photograph, segment(pixels, (photograph.height, photograph.width))

    def save(item: files.Found, result) -> None:
        photograph, classes = result
        contents = {
            out / f"{item.name}_overlay.png": png(overlay(photograph, classes, colours, arguments.opacity)),
            out / f"{item.name}_classes.png": png(class_image(classes)),
        }
        save_files(contents, arguments.force)

    passes = [f"{network.num_classes} classes", f"align_corners={network.align_corners}",
              f"{arguments.dtype} on {network.device.type}"]  # fmt: skip
    passes += [f"size {arguments.size}"] if size else []
    passes += [f"windows of {arguments.window}"] if window else []
    passes += [f"scales {' '.join(f'{s:g}' for s in arguments.scales)}"] if arguments.scales != [1.0] else []
    passes += ["flipped too"] if arguments.flip else []
    pictures.announce(network, f"{arguments.model}, {arguments.task}: {', '.join(passes)}")
    return pictures.run(found, load, compute, save, f"{out / '*_overlay.png'}, {out / '*_classes.png'}")
