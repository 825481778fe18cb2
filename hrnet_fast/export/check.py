"""An exported file, run again in its own runtime and compared with the network that it was made from."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from hrnet_fast.export.packages import needed
from hrnet_fast.export.record import MULTIPLE, Recorded
from hrnet_fast.tolerances import MODEL, relative_error

TOLERANCE = MODEL[torch.float32]
# Beside the same roundings in PyTorch: a sum between two steps becomes either, and what follows differs (w18: 2.5e-2).
TOLERANCE_OF_INTEGERS = 5e-2
# (batch, height, width); the last is no multiple of anything
_CASES = ((1, 64, 96), (3, 96, 64), (2, 75, 109))
_CASES_OF_MULTIPLES = ((1, 64, 96), (3, 96, 64), (2, 128, 160))


def cases(recorded: Recorded) -> list[tuple[int, int, int]]:
    """Batch, height and width of the images that a file is tried on: three, and sizes that differ where they may."""
    if recorded.size is not None:
        return [(batch, *recorded.size) for batch in (1, 2, 3)]
    return list(_CASES if recorded.multiple < MULTIPLE else _CASES_OF_MULTIPLES)


def errors(model: nn.Module, recorded: Recorded, path: Path, file_format: str) -> dict[str, float]:
    """The largest relative error of an exported file's outputs for each of the cases, as "2x3x75x109".

    Args:
        model: in evaluation.
        recorded: what the file was written from.
        path: the file.
        file_format: "onnx", "pt2" or "aoti".

    Raises:
        ImportError: ONNX Runtime is missing.
    """
    run = _RUNNERS[file_format](path)
    found = {}
    for batch, height, width in cases(recorded):
        shape = (batch, recorded.example.shape[1], height, width)
        image = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(recorded.example.device)
        with torch.no_grad():
            expected, outputs = tensors(model(image)), tensors(run(image))
        same = len(expected) == len(outputs)
        found["x".join(map(str, shape))] = (
            max(relative_error(y, reference) for y, reference in zip(outputs, expected)) if same else float("inf")
        )
    return found


def tensors(outputs: Tensor | list | tuple) -> list[Tensor]:
    """An output as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def onnx_runner(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """Runs a file of ONNX in ONNX Runtime, on the CPU."""
    runtime = needed("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(y) for y in session.run(None, {"image": image.cpu().numpy()})]


def _program_runner(path: Path) -> Callable:
    return torch.export.load(path).module()


def _package_runner(path: Path) -> Callable:
    return torch._inductor.aoti_load_package(str(path))


_RUNNERS: dict[str, Callable[[Path], Callable]] = {
    "onnx": onnx_runner,
    "pt2": _program_runner,
    "aoti": functools.partial(_package_runner),
}
