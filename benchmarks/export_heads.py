"""Where a head's 1x1 convolution belongs in an exported network: ``python -m benchmarks.export_heads``.

HRNetV2 for segmentation as ONNX, its head's convolution behind the upsampling as in the official code, and before it
for one, two or all three of the lower streams; each in the same runtime, in turn, after their outputs were compared
with float64. Results go to benchmarks/results/export/, and from there by hand into hrnet_fast/export/preferences.py (a
test compares the two). Files are exported once and kept in a folder, so that timing can begin on a quiet machine.
"""

import argparse
import functools
import importlib.metadata
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import hrnet_fast as hf
from benchmarks.run import RESULTS
from hrnet_fast import export
from hrnet_fast.bench import images, report
from hrnet_fast.bench.contenders import Problem
from hrnet_fast.bench.measure import Case, measure
from hrnet_fast.bench.record import Record, Report
from hrnet_fast.export import check
from hrnet_fast.export.record import record
from hrnet_fast.models import randomize

FOLDER = RESULTS / "export"
CONTENDERS = ("as in the official code", "lowest stream moved", "two lowest streams moved", "all streams moved")
WIDTHS = ("w18", "w32", "w48")


def network(width: str, fast: bool = False):
    """The network, always with the same random weights."""
    return randomize(hf.create_model(f"hrnet_{width}", fast=fast)).eval()


def write(width: str, folder: Path) -> None:
    """Exports every variant that the folder does not hold yet."""
    for streams, _ in enumerate(CONTENDERS):
        path = folder / f"{width}-{streams}.onnx"
        if not path.exists():
            model = network(width)
            recorded = record(model, lambda channels, n=streams: n)
            metadata = export.describe(model, recorded, export.MEAN, export.STD)
            export.save_recorded(model, recorded, path, "onnx", 18, metadata, force=False, check=False)


def openvino_runner(path: Path, shape: Sequence[int]) -> Callable[[Tensor], list[Tensor]]:
    """Runs a file of ONNX in OpenVINO on the CPU, in float32, compiled for one shape, as its guide recommends."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    network = core.read_model(str(path))
    network.reshape({"image": list(shape)})
    compiled = core.compile_model(network, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda image: [torch.from_numpy(y) for y in request.infer([image.numpy()]).values()]


RUNNERS = {"onnxruntime": lambda path, shape: check.onnx_runner(path), "openvino": openvino_runner}


def compare(width: str, runtime: str, size: tuple[int, int], folder: Path, budget: float) -> Record:
    """Compares the variants in one runtime."""

    def make(device) -> Problem:
        image = images.load(size=size)
        paths = {name: folder / f"{width}-{streams}.onnx" for streams, name in enumerate(CONTENDERS)}
        own = {name: functools.partial(lambda path: functools.partial(RUNNERS[runtime](path, image.shape), image), path)
               for name, path in paths.items()}  # fmt: skip
        return Problem(network(width), (image,), torch.float32, lambda plain: plain, own=own)

    at, version = f"{size[0]}x{size[1]}", importlib.metadata.version(runtime)
    what = f"HRNet-{width.upper()} segmentation as ONNX, {at}, {runtime} {version}"
    return measure(Case(f"export-{width}-{at}-{runtime}", what, torch.float32, make, CONTENDERS), budget=budget)


def main(arguments: list[str] | None = None) -> int:
    """Exports, measures, prints and stores; 1 if a variant is off."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_heads", description=__doc__.splitlines()[0])
    parser.add_argument("--widths", nargs="+", default=list(WIDTHS), metavar="WIDTH")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNNERS), choices=list(RUNNERS))
    parser.add_argument("--size", default="512x512", metavar="HxW")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of timing per case (default: 20)")
    parser.add_argument(
        "--folder", type=Path, default=None, help="keep exported files here, and use those that are there"
    )
    parser.add_argument("--only-write", action="store_true", help="export, and leave the timing for later")
    given = parser.parse_args(arguments)
    agrees = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        for width in given.widths:
            write(width, folder)
            for runtime in () if given.only_write else given.runtimes:
                case = compare(width, runtime, images.parse_size(given.size), folder, given.budget)
                Report([case]).save(FOLDER / f"{case.name}.json")
                report.show(case, CONTENDERS[0])
                agrees &= case.agrees
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
