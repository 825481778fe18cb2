"""Bilinear interpolation of class scores and their argmax in one kernel: full-size scores are never in memory.

A program holds a tile of pixels and goes through the classes block by block. Value and class are packed into one
64-bit key whose order is that of torch.argmax: one maximum over the classes serves both, ties and NaN included.
"""

import triton
import triton.language as tl
from torch import Tensor

from hrnet_fast.kernels import configurations, taps


@triton.jit(do_not_specialize=["h", "w", "row_step", "column_step", "height", "width", "tiles_y", "tiles_x"])
def interpolate_argmax_kernel(
    out,  # [N, height, width], integers
    scores,  # [N, C, h, w], dense, channels innermost where CHANNELS_LAST
    h,
    w,
    row_step,  # source pixels per output pixel
    column_step,
    height,
    width,
    tiles_y,
    tiles_x,
    C: tl.constexpr,
    MODE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SAME: tl.constexpr,  # the scores have the size of the result
    WIDE: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n, y, x = taps.pixels(tl.program_id(0), tiles_y, tiles_x, TILE_H, TILE_W, CHANNELS_LAST)
    inside = (y < height) & (x < width)
    image = scores + n * C * h * w
    AXIS: tl.constexpr = 1 if CHANNELS_LAST else 0
    # smaller than the key of any value
    best = tl.full((TILE_H * TILE_W, 1) if CHANNELS_LAST else (1, TILE_H * TILE_W), -(2**62) * 2, tl.int64)
    for block in range(0, C, BLOCK_C):
        c = taps.channels(block, BLOCK_C, CHANNELS_LAST)
        if SAME:
            at = taps.offset(c, y, x, h, w, C, CHANNELS_LAST, WIDE)
            value = tl.load(image + at, mask=inside & (c < C), other=0.0).to(tl.float32)
        else:
            value = taps.upsampled(image, c, y, x, row_step, column_step, h, w, C, MODE, CHANNELS_LAST, WIDE)
        key = tl.where(c < C, _key(value, c), best)
        best = tl.maximum(best, tl.max(key, AXIS, keep_dims=True))
    label = 0xFFFFFFFF - (best & 0xFFFFFFFF)
    tl.store(out + n * height * width + y.to(tl.int64) * width + x, label.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _key(value, c):
    """The order of values in the upper half, NaN above all; the lower half is larger for earlier classes."""
    value += 0.0  # -0 becomes 0: they are equal
    bits = value.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    order = tl.where(value != value, 0x7FFFFFFF, order)
    return (order.to(tl.int64) << 32) | (0xFFFFFFFF - c.to(tl.int64))


def interpolate_argmax(out: Tensor, scores: Tensor, align_corners: bool) -> None:
    """Fills ``out`` with the class of every pixel.

    Args:
        out: [N, H, W], contiguous, of an integer dtype.
        scores: [N, C, h, w], dense and contiguous or channels_last; float16, bfloat16 or float32.
        align_corners: of the bilinear interpolation.
    """
    if out.numel() == 0:
        return
    positional, constants, grid = arguments(out, scores, align_corners)
    interpolate_argmax_kernel[grid](*positional, **constants)


def arguments(out: Tensor, scores: Tensor, align_corners: bool) -> tuple[list, dict, tuple]:
    """The kernel's arguments, its constants with ``num_warps``, and the grid."""
    n, height, width = out.shape
    channels, h, w = scores.shape[1:]
    mode = taps.mode_number("bilinear", align_corners)
    channels_last = not scores.is_contiguous()
    row = configurations.INTERPOLATE_ARGMAX[channels_last]
    down, across = triton.cdiv(height, row.rows), triton.cdiv(width, row.columns)
    positional = [
        out,
        scores,
        h,
        w,
        taps.scale(h, height, mode),
        taps.scale(w, width, mode),
        height,
        width,
        down,
        across,
    ]
    constants = {
        "C": channels,
        "MODE": mode,
        "CHANNELS_LAST": channels_last,
        "SAME": (h, w) == (height, width),
        "WIDE": scores[0].numel() >= 1 << 31,
        "TILE_H": row.rows,
        "TILE_W": row.columns,
        "BLOCK_C": configurations.channel_block(channels, row.channels),
        "num_warps": row.warps,
    }
    return positional, constants, (n * down * across,)
