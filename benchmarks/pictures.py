"""What pictures cost beside the network: ``python -m benchmarks.pictures``.

1. ``hrnet-fast segment`` on a folder of 20 photographs, from the first one's reading to the last one's writing, against
   the sum of the 20 forward passes alone. Both begin with a network that has not run yet, and take turns.
2. ``interpolate_argmax`` against F.interpolate and argmax, 19 classes, 128x256 to 512x1024.

The photographs are crops, mirror images and other sizes of the two that scikit-learn brings along.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import re
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from rich.console import Console

import hrnet_fast as hf
from hrnet_fast import cli
from hrnet_fast.apps.pictures import reading
from hrnet_fast.bench import harness, images, machine, report
from hrnet_fast.bench.record import Record
from hrnet_fast.models import randomize

EAGER = "F.interpolate, argmax"
GOAL = 1.1  # of the command's time over the forward passes'
# of the two samples: fractions left, top, right, bottom of a crop, the result's longer side, and whether it is mirrored
VIEWS = [
    ((0, 0, 1, 1), 640, False),
    ((0, 0, 1, 1), 640, True),
    ((0, 0.1, 0.8, 1), 512, False),
    ((0.2, 0, 1, 0.9), 512, True),
    ((0.1, 0.1, 0.9, 0.9), 720, False),
    ((0, 0, 0.7, 1), 600, True),
    ((0.3, 0, 1, 1), 560, False),
    ((0, 0, 1, 0.7), 800, False),
    ((0, 0.3, 1, 1), 800, True),
    ((0.25, 0.25, 0.75, 0.75), 480, False),
]


def photographs(folder: Path) -> list[Path]:
    """Twenty JPEG files of different sizes."""
    written = []
    for name in images.SAMPLES:
        whole = reading.read(images.sample(name))
        for index, (part, side, mirrored) in enumerate(VIEWS):
            width, height = whole.size
            view = whole.crop(
                (round(part[0] * width), round(part[1] * height), round(part[2] * width), round(part[3] * height))
            )
            factor = side / max(view.size)
            view = view.resize((round(view.width * factor), round(view.height * factor)), Image.Resampling.LANCZOS)
            path = folder / f"{Path(name).stem}_{index}.jpg"
            (ImageOps.mirror(view) if mirrored else view).save(path, quality=92)
            written.append(path)
    return written


def forward_passes(model: str, paths: list[Path]) -> float:
    """Seconds of all images through the network as ``create_model`` makes it, with logits at the images' size."""
    network = randomize(hf.create_model(model, "segmentation").eval()).to(memory_format=torch.channels_last)
    pixels = (reading.to_tensor(reading.read(path)) for path in paths)
    inputs = [reading.normalize(p).unsqueeze(0).contiguous(memory_format=torch.channels_last) for p in pixels]
    with torch.inference_mode():
        began = time.perf_counter()
        for image in inputs:
            network(image)
        return time.perf_counter() - began


def command(model: str, folder: Path, out: Path) -> float:
    """Seconds that ``hrnet-fast segment`` reports for a folder."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        code = cli.main(["segment", str(folder), "--model", model, "--out", str(out), "--force"])
    found = re.search(r"20 of 20 pictures: ([\d.]+) s", " ".join(shown.getvalue().split()))
    if code != 0 or found is None:
        raise RuntimeError(f"hrnet-fast segment failed with {code}: {shown.getvalue()}")
    return float(found[1])


def folder_case(model: str, rounds: int, console: Console) -> dict:
    """The first measurement."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photographs"
        folder.mkdir()
        paths = photographs(folder)
        pairs = []
        for k in range(rounds + 1):
            pair = forward_passes(model, paths), command(model, folder, Path(temporary) / "out")
            console.print(
                f"{'warm-up' if k == 0 else f'round {k}'}: forward passes {pair[0]:.2f} s, command {pair[1]:.2f} s"
            )
            if k > 0:
                pairs.append(pair)
    ratios = [took / alone for alone, took in pairs]
    return {
        "model": model,
        "pictures": len(paths),
        "forward_seconds": [p[0] for p in pairs],
        "command_seconds": [p[1] for p in pairs],
        "ratio": statistics.median(ratios),
        "goal": GOAL,
    }


def argmax_case(dtype: torch.dtype, layout: str, budget: float) -> Record:
    """The second measurement. Scores are whole numbers, so that nothing is rounded and the classes must be the same."""
    generator, size = torch.Generator().manual_seed(0), (512, 1024)
    scores = torch.randint(-64, 64, (1, 19, 128, 256), generator=generator).to(dtype)
    scores = scores.contiguous(memory_format=getattr(torch, layout))
    calls = {
        EAGER: lambda: F.interpolate(scores, size, mode="bilinear").argmax(1),
        "interpolate_argmax": lambda: hf.interpolate_argmax(scores, size),
        "interpolate_argmax to uint8": lambda: hf.interpolate_argmax(scores, size, dtype=torch.uint8),
    }
    expected = F.interpolate(scores.double(), size, mode="bilinear").argmax(1)
    # eager bfloat16 rounds the scores and finds other classes here and there
    tolerance, name = 0.0 if dtype == torch.float32 else 0.1, str(dtype).removeprefix("torch.")
    entries = harness.compare([harness.Contender(*pair) for pair in calls.items()], expected, tolerance, budget=budget)
    return Record("classes of pixels", f"19 classes, 128x256 to 512x1024, {name}, {layout}", name, tolerance, entries)


def main(argv=None) -> int:
    """Measures, prints, and writes the results where asked to. 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="hrnet_w18")
    parser.add_argument("--rounds", type=int, default=5, help="of the folder; 0: leave it out")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for each case of the operator")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args(argv)
    console, neighbours = report.console(), machine.Neighbours()
    cases = [
        argmax_case(dtype, layout, arguments.budget)
        for dtype in (torch.float32, torch.bfloat16)
        for layout in ("channels_last", "contiguous_format")
    ]
    for case in cases:
        report.show(case, EAGER)
    results = {"operator": [dataclasses.asdict(case) for case in cases]}
    if arguments.rounds:
        folder = results["folder"] = folder_case(arguments.model, arguments.rounds, console)
        console.print(f"hrnet-fast segment over the forward passes: {folder['ratio']:.3f} (goal: {GOAL} at most)")
    results |= {"neighbours": neighbours.share(), "machine": machine.describe()}
    console.print(f"measured on: {machine.summary(results['machine'])}")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if arguments.rounds and results["folder"]["ratio"] > GOAL else 0


if __name__ == "__main__":
    raise SystemExit(main())
