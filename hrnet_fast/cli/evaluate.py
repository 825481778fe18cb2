"""Measure mIoU or AP, speed and memory of a network in every dtype, side by side."""

import argparse
import contextlib
import itertools
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from hrnet_fast.apps import networks
from hrnet_fast.apps.evaluation import coco, contenders, people, sets, tasks
from hrnet_fast.apps.pose import KEY_POINTS, SIZES
from hrnet_fast.bench import BadInput, images, memory, report
from hrnet_fast.checkpoints import zoo
from hrnet_fast.cli import evaluate_report
from hrnet_fast.cli.common import add_weights, check_least, checkpoint_of, find_device
from hrnet_fast.models import configs

TASKS = ("segmentation", "segmentation_ocr", "pose")
WINOGRAD = {"on": (True,), "off": (False,), "both": (True, False)}
GENERATED = (128, 128)  # (height, width) of generated shapes
SEED = 9_999  # of generated images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``evaluate``."""
    add = parser.add_argument
    add("--model", default="hrnet_w18", metavar="NAME", help="default: hrnet_w18")
    add("--task", default=TASKS[0], choices=TASKS, help=f"default: {TASKS[0]}")
    add_weights(parser)
    add("--classes", type=int, default=None, metavar="N", help="the checkpoint's, where it does not say it itself")
    add("--align-corners", action=argparse.BooleanOptionalAction, default=None, help="likewise")
    add(
        "--data",
        default=None,
        metavar="FOLDER",
        help="Cityscapes, Pascal VOC, or images/SPLIT and masks/SPLIT; for pose the folder of COCO's pictures "
        "(default: generated images)",
    )
    add("--split", default="val", metavar="NAME", help="of the folder (default: val)")
    add("--annotations", default=None, metavar="FILE", help="for pose: COCO's person_keypoints_*.json")
    add("--boxes", default=None, metavar="FILE", help="for pose: a detector's boxes (default: the annotations' own)")
    add("--images", type=int, default=None, metavar="N", help="only the first N (default: all; 32 generated ones)")
    add(
        "--size",
        default=None,
        metavar="HxW",
        help="resize images to this; for pose of crops (default: the weights' or 256x192)",
    )
    add("--window", default=None, metavar="HxW", help="slide a window of this size over them (default: whole)")
    add("--scales", type=float, nargs="+", default=[1.0], metavar="F", help="mean over these scales (default: 1)")
    add(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="mean with the mirror image (default: for pose, as in the official code)",
    )
    add(
        "--dtypes",
        nargs="*",
        default=["float32", "bfloat16", "int8"],
        choices=list(contenders.DTYPES),
        help="default: float32 bfloat16 int8",
    )
    add("--winograd", default="on", choices=list(WINOGRAD), help="Winograd's algorithm on CPUs (default: on)")
    add("--plain", action=argparse.BooleanOptionalAction, default=True, help="plain PyTorch comes first (default: yes)")
    add("--onnx", nargs="+", default=[], metavar="FILE", help="files of `hrnet-fast export`, in ONNX Runtime")
    add("--calibration", type=int, default=16, metavar="N", help="images to calibrate int8 with (default: 16)")
    add("--per-class", action="store_true", help="the IoU of every class as well")
    add("--json", default=None, metavar="FILE", help="write everything there")
    add("--device", default="cpu", metavar="DEVICE", help="cpu or cuda (default: cpu)")
    add("--threads", type=int, default=None, metavar="N", help="threads for torch (default: torch's own choice)")


def run(arguments: argparse.Namespace) -> int:
    """Measures every contender and prints the table; 1 where one did not run."""
    check_least(arguments, "classes", "images", "calibration", "threads")
    if not all(0 < scale < math.inf for scale in arguments.scales):
        raise BadInput(f"scales {' '.join(f'{s:g}' for s in arguments.scales)}: must be numbers above 0")
    ways = contenders.listed(
        arguments.dtypes, WINOGRAD[arguments.winograd], [Path(file) for file in arguments.onnx], arguments.plain
    )
    if not ways:
        raise BadInput("dtypes: none is left to be measured")
    for way in ways:
        if way.file is not None and not way.file.is_file():
            raise BadInput(f"onnx {way.file}: there is no such file")
    _check_task(arguments)
    device = find_device(arguments.device)
    if device.type == "cuda" and "int8" in arguments.dtypes:
        raise BadInput("dtypes: int8 runs on CPUs only; name the others for --device cuda")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with contextlib.ExitStack() as stack:
        try:
            published = _published(arguments)
            people_of = _key_points(arguments, published, stack) if arguments.task == "pose" else None
            base = _network(arguments, device)
            task = people_of or _segmentation(arguments, base)
            rows = _measure(ways, base, task, arguments.calibration)
        except (ValueError, ImportError, OSError) as error:
            raise BadInput(str(error)) from None
    if not any(row["failure"] is None for row in rows):
        raise BadInput(f"nothing could be measured: {rows[0]['name']}: {rows[0]['failure']}")
    evaluate_report.show(arguments, base, task, published, rows)
    if arguments.json is not None:
        evaluate_report.write(arguments, base, task, published, rows)
    return int(any(row["failure"] for row in rows))


def _network(arguments: argparse.Namespace, device: torch.device) -> networks.Network:
    name, _ = configs.find(arguments.model)
    checkpoint = checkpoint_of(arguments, arguments.task)
    classes = len(KEY_POINTS) if arguments.task == "pose" else arguments.classes
    if classes is None and checkpoint is None and arguments.data is None:
        classes = sets.Shapes.CLASSES
    corners = arguments.align_corners
    try:
        return networks.load(
            name, arguments.task, checkpoint=checkpoint, num_classes=classes, align_corners=corners, device=device
        )
    except (ValueError, ImportError, OSError) as error:
        raise BadInput(f"checkpoint {checkpoint}: {str(error).removeprefix('path: ')}") from None


def _segmentation(arguments: argparse.Namespace, base: networks.Network) -> tasks.Segmentation:
    size, window = (None if text is None else images.parse_size(text) for text in (arguments.size, arguments.window))
    source: sets.Folder | sets.Shapes
    calibration: sets.Folder | sets.Shapes
    if arguments.data is None:
        if base.num_classes != sets.Shapes.CLASSES:
            raise BadInput(
                f"data: the generated images have {sets.Shapes.CLASSES} classes and the network {base.num_classes}; "
                "name a folder of labelled images"
            )
        source = sets.Shapes(arguments.images or 32, GENERATED, SEED)
        calibration = sets.Shapes(arguments.calibration, GENERATED, SEED - 1)
    else:
        source = sets.Folder(arguments.data, arguments.split, base.num_classes)
        source.check()
        calibration = source
        with contextlib.suppress(ValueError):
            calibration = sets.Folder(arguments.data, "train", base.num_classes)
    count = min(arguments.images or len(source), len(source))
    shown = size, window, arguments.scales, bool(arguments.flip)
    return tasks.Segmentation(source, calibration, count, base.num_classes, *shown)


def _check_task(arguments: argparse.Namespace) -> None:
    """BadInput for options of the other task, before anything is made."""
    pose = arguments.task == "pose"
    of_the_other = {"window": None, "scales": [1.0], "classes": None} if pose else {"annotations": None, "boxes": None}
    for name, default in of_the_other.items():
        if getattr(arguments, name) != default:
            raise BadInput(f"{name}: {'not' if pose else 'only'} for --task pose")
    for text in (arguments.size, arguments.window):
        if text is not None:
            images.parse_size(text)


def _key_points(
    arguments: argparse.Namespace, published: zoo.Weights | None, stack: contextlib.ExitStack
) -> tasks.KeyPoints:
    if (arguments.data is None) != (arguments.annotations is None):
        raise BadInput("annotations: --data and --annotations belong together for --task pose")
    if arguments.data is None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        annotations = people.generate(folder, arguments.images or 32, seed=SEED)
    else:
        folder, annotations = Path(arguments.data), Path(arguments.annotations)
    boxes = None if arguments.boxes is None else Path(arguments.boxes)
    usual = SIZES[0] if published is None else published.size
    size = usual if arguments.size is None else images.parse_size(arguments.size)
    flip = arguments.flip is None or arguments.flip
    return tasks.KeyPoints(coco.People(folder, annotations, boxes, arguments.images), size, flip)


def _published(arguments: argparse.Namespace) -> zoo.Weights | None:
    if arguments.weights is None:
        return None
    return zoo.find(configs.find(arguments.model)[0], arguments.task, arguments.weights)


def _measure(
    ways: list[contenders.Contender],
    base: networks.Network,
    task: tasks.Segmentation | tasks.KeyPoints,
    calibration: int,
) -> list[dict[str, Any]]:
    """A row for each contender; what it is compared with is the first one that ran."""
    examples = task.examples(base, calibration)
    if not examples:
        raise BadInput("data: there is no image to begin with")
    steps = itertools.count(1)
    with report.progress_bar(len(ways) * task.count) as progress:
        return [_row(way, base, task, examples, lambda: progress("measuring", next(steps))) for way in ways]


def _row(
    way: contenders.Contender,
    base: networks.Network,
    task: tasks.Segmentation | tasks.KeyPoints,
    examples: list[torch.Tensor],
    tick: tasks.Tick,
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("engine", "metrics", "per_class", "rate", "agreement", "memory_bytes"))
    row = {"name": way.name, **row, "note": "", "failure": None}
    before = _memory(base.device)
    try:
        ready = contenders.prepare(way, base, examples[0], examples)
        _memory(base.device)
        measured = task.measure(ready.network, tick)
    except (ValueError, ImportError) as error:
        return row | {"failure": " ".join(str(error).split())}
    most = _most_memory(base.device)
    return row | {
        "engine": ready.engine,
        "metrics": measured.metrics,
        "per_class": [None if math.isnan(value) else value for value in measured.each],
        "rate": measured.rate,
        "agreement": measured.agreement,
        "memory_bytes": None if before is None or most is None else max(0, most - before),
        "note": " ".join(ready.note.split()),
    }


def _memory(device: torch.device) -> int | None:
    """What is taken up now, from which on the most is counted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return memory.resident_bytes() if memory.begin_anew() else None


def _most_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory.most_resident_bytes()
