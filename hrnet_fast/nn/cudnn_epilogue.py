"""cuDNN's convolution with bias, ReLU and residual sum in its epilogue: one launch where conv2d and relu take three.

PyTorch's conv2d adds a bias in a kernel of its own on GPUs, and ReLU and a residual sum are one more each. The operators
used here are those that torch's own optimizer of frozen graphs uses.
"""

import contextlib
import functools
import os

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from hrnet_fast.ops.backends import gpu, preferences
from hrnet_fast.ops.exchange.call import is_channels_last

VARIABLE = "HRNET_FAST_CUDNN_EPILOGUE"  # "1": wherever it can; "0": never; else as backends/preferences.py says
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def why_not(x: Tensor, weight: Tensor, groups: int) -> str | None:
    """Why conv2d and relu serve this input on a GPU instead; None where the epilogue does."""
    wanted = os.environ.get(VARIABLE)
    if wanted == "0":
        return f"{VARIABLE}=0"
    if torch.is_autocast_enabled("cuda"):
        return "autocast casts in front of standard operators only"
    if x.dtype not in DTYPES or weight.dtype != x.dtype:
        return f"there is none for {x.dtype} with a weight of {weight.dtype}"
    if groups != 1:
        return f"the convolution has {groups} groups"
    if x.dim() != 4 or x.numel() == 0 or not is_channels_last(x):
        return "the input is not a channels_last image"
    if x.shape[1] != weight.shape[1]:
        return f"the input has {x.shape[1]} channels"
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return "a gradient is wanted"
    if not torch.backends.cudnn.enabled:
        return "torch.backends.cudnn.enabled is False"
    index = gpu.index_of(x.device)
    if wanted != "1" and preferences.convolution(gpu.capability(index)) != preferences.EPILOGUE:
        return f"{preferences.CONV2D} is preferred on this GPU; {VARIABLE}=1 asks for it all the same"
    if (index, x.dtype) not in _tried and torch.cuda.is_current_stream_capturing():
        return "it was not tried before this capture"
    return _why_not_here(index, x.dtype)


def convolve_relu(x, weight, bias, stride, padding, dilation, groups) -> Tensor:
    """relu(convolution(x) + bias)."""
    return torch.ops.aten.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)


def convolve_add_relu(x, other, weight, bias, stride, padding, dilation, groups) -> Tensor:
    """relu(convolution(x) + bias + other)."""
    op = torch.ops.aten.cudnn_convolution_add_relu
    return op(x, weight, other, 1.0, bias, stride, padding, dilation, groups)


def _register_flops() -> None:
    """Lets FlopCounterMode see them."""

    def formula(x, weight, *arguments, out_shape=None, **kwargs) -> int:
        return conv_flop_count(x, weight, out_shape, transposed=False)

    for name in ("cudnn_convolution_relu", "cudnn_convolution_add_relu"):
        # this PyTorch may have no such operator, or somebody else may have registered a formula
        with contextlib.suppress(AttributeError, RuntimeError):
            register_flop_formula(getattr(torch.ops.aten, name))(formula)


_register_flops()
_tried: set[tuple[int, torch.dtype]] = set()


@functools.cache
def _why_not_here(index: int, dtype: torch.dtype) -> str | None:
    """Tries both operators on a small image: they are private, and must keep NaN as PyTorch's ReLU does."""
    _tried.add((index, dtype))
    try:
        with torch.inference_mode(False), torch.no_grad():
            return _compare(torch.device("cuda", index), dtype)
    except Exception as error:  # an older cuDNN, another schema: conv2d always works
        return f"cuDNN's epilogue cannot be used here ({type(error).__name__}: {gpu.first_line(error)})"


def _compare(device: torch.device, dtype: torch.dtype) -> str | None:
    generator = torch.Generator().manual_seed(0)
    x, weight, other = (
        torch.randint(-2, 3, shape, generator=generator).to(device, dtype).contiguous(memory_format=torch.channels_last)
        for shape in ((1, 16, 8, 8), (16, 16, 3, 3), (1, 16, 4, 4))
    )
    bias = torch.arange(16, device=device).to(dtype) - 8
    geometry = (2, 2), (1, 1), (1, 1), 1
    for poisoned in (False, True):
        if poisoned:
            x[0, 3, 5, 5] = float("nan")
        y = F.conv2d(x, weight, bias, *geometry)  # of small integers: exact in every dtype
        for found, expected in (
            (convolve_relu(x, weight, bias, *geometry), F.relu(y)),
            (convolve_add_relu(x, other, weight, bias, *geometry), F.relu(y + other)),
        ):
            if not torch.equal(found.isnan(), expected.isnan()):
                return "cuDNN's ReLU does not keep NaN as PyTorch's does"
            if not torch.equal(found.nan_to_num(), expected.nan_to_num()):
                return "cuDNN's epilogue computes something else than conv2d and relu"
    return None
