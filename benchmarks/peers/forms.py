"""The network as engines get it: an ONNX file, and the images that they are calibrated with."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from hrnet_fast.bench.contenders import Problem
from hrnet_fast.bench.plain_forms import commuted

OPSET = 18


@contextlib.contextmanager
def onnx_file(problem: Problem) -> Iterator[Path]:
    """The network as an ONNX file with the image's shape, in a temporary folder: float32, standard operators.

    The two exporters of torch give the same speed in both runtimes; this one needs nothing beyond torch and onnx.
    """
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "network.onnx"
        network = commuted(problem.plain)
        with quiet():  # of the exporter that it has a successor
            torch.onnx.export(network, (problem.image,), str(path), opset_version=OPSET, dynamo=False)
        yield path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of loggers, and without what is printed: NNCF draws bars of progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def calibration_batches(problem: Problem) -> Iterator[Tensor]:  # [N, 3, H, W] each
    """The images for calibration in pieces as large as the batch, which is the one that files are written for."""
    size = problem.batch
    return (part.contiguous() for part in problem.calibration.split(size) if len(part) == size)
