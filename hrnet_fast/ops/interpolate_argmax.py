"""The last step of segmentation: scores interpolated to the size of the picture, and the class of every pixel.

One operator does both, so that the scores, 4 bytes a class and pixel, are never written at full size. As for the
exchange, the compiled extension has its schema and CPU kernel, and where that is missing it is defined here.
"""

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast.ops import library
from hrnet_fast.ops.backends import triton
from hrnet_fast.ops.exchange.call import FLOAT_DTYPES, BackendFailed
from hrnet_fast.ops.transforms import traced, transformed

SCHEMA = "(Tensor scores, SymInt height, SymInt width, bool align_corners, ScalarType dtype) -> Tensor"
LABEL_DTYPES = (torch.int64, torch.int32, torch.uint8)
MAX_CLASSES = 1 << 24  # classes are counted in float32


def interpolate_argmax(
    scores: Tensor,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    dtype: torch.dtype = torch.int64,
    backend: str = "auto",
) -> Tensor:
    """The class of every pixel, of scores at another size; equivalent to::

        F.interpolate(scores.float(), size, mode="bilinear", align_corners=align_corners).argmax(1).to(dtype)

    This is how the official code ends (HRNet-Semantic-Segmentation, ``lib/core/function.py``): the network's scores have
    a quarter of the picture's size. Scores are interpolated in float32 (float64 for float64) and not rounded: in
    half precision eager PyTorch rounds them, and may find ties where there are none.

    Args:
        scores: [N, classes, h, w], of any floating dtype and strides; logits or probabilities.
        size: (H, W) of the result in pixels, larger or smaller than (h, w).
        align_corners: as in torch.nn.functional.interpolate.
        dtype: of the result: torch.int64, as torch.argmax gives, torch.int32, or torch.uint8 for up to 256 classes.
        backend: "auto", "cpu", "triton" or "reference".

    Returns:
        [N, H, W], contiguous. Of equal scores the first class wins, and NaN counts as the largest, as in torch.argmax.
        It has no derivative.

    Raises:
        ValueError: a wrong shape or size, or more classes than ``dtype`` can name.
        TypeError: scores that are no tensor or not of a floating dtype, or another ``dtype``.
        RuntimeError: a backend was named that cannot serve the call; the message says why.
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores: expected a tensor, got {type(scores).__name__}")
    if scores.dtype not in FLOAT_DTYPES:
        raise TypeError(f"scores: expected one of {', '.join(map(str, FLOAT_DTYPES))}, got {scores.dtype}")
    if scores.dim() != 4 or 0 in scores.shape[1:]:
        raise ValueError(f"scores: expected [N, classes, h, w], none of them empty, got {list(scores.shape)}")
    try:
        height, width = size
    except (TypeError, ValueError):
        raise ValueError(f"size: expected (height, width), got {size!r}") from None
    if height < 1 or width < 1:
        raise ValueError(f"size: expected at least 1 pixel each way, got {(height, width)}")
    if dtype not in LABEL_DTYPES:
        raise TypeError(f"dtype: expected one of {', '.join(map(str, LABEL_DTYPES))}, got {dtype}")
    most = 256 if dtype == torch.uint8 else MAX_CLASSES
    if scores.shape[1] > most:
        raise ValueError(f"dtype: {dtype} can name {most} classes, scores have {scores.shape[1]}")
    return _choose(scores, backend)(scores, height, width, bool(align_corners), dtype)


def reference(scores: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """In standard operators; what the kernels are compared with."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if tuple(scores.shape[2:]) != (height, width):
        wide = F.interpolate(wide, (height, width), mode="bilinear", align_corners=align_corners)
    return wide.argmax(1).to(dtype)


def _why_not_cpu(scores: Tensor) -> str | None:
    if library.extension_error is not None:
        return library.extension_error
    return None if scores.is_cpu else f"it serves tensors on the CPU, these are on {scores.device.type}"


def _why_not_triton(scores: Tensor) -> str | None:
    if not scores.is_cuda:
        return f"it serves tensors on NVIDIA GPUs, these are on {scores.device.type}"
    return triton.why_not_tensor(scores)


_BACKENDS: dict[str, tuple[Callable, Callable]] = {
    "triton": (_why_not_triton, triton.interpolate_argmax),
    "cpu": (_why_not_cpu, lambda *arguments: torch.ops.hrnet_fast.interpolate_argmax(*arguments)),
    "reference": (lambda scores: None, reference),
}


def _choose(scores: Tensor, name: str) -> Callable:
    if name == "auto":
        # the variable may name a backend that this operator does not have
        name = os.environ.get("HRNET_FAST_BACKEND") if os.environ.get("HRNET_FAST_BACKEND") in _BACKENDS else "auto"
    if name == "auto" and (traced() or transformed()):
        return reference
    if name == "auto":
        return torch.ops.hrnet_fast.interpolate_argmax
    if name not in _BACKENDS:
        raise ValueError(f"backend: expected 'auto' or one of {', '.join(map(repr, _BACKENDS))}, got {name!r}")
    why_not, function = _BACKENDS[name]
    reason = why_not(scores)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot serve this call: {reason}")
    return function


def _on_gpu(scores: Tensor, *settings) -> Tensor:
    if _why_not_triton(scores) is None:
        try:
            return triton.interpolate_argmax(scores, *settings)
        except BackendFailed:
            pass  # Triton does not work here
    return reference(scores, *settings)


def _fake(scores: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    return scores.new_empty((scores.shape[0], height, width), dtype=dtype)


if library.extension_error is not None:
    library.define("interpolate_argmax" + SCHEMA)
library.implement("interpolate_argmax", reference, "CompositeExplicitAutograd")  # where there is no kernel
library.implement("interpolate_argmax", _on_gpu)
torch.library.register_fake("hrnet_fast::interpolate_argmax", _fake)
