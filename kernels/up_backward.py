"""The transposed interpolation of all inputs in one launch: ``dx_j = up_j^T(g)``, g the gradient behind the ReLU.

A gather: every low-resolution pixel sums over its own window of the gradient, in a fixed order and in float32, so that
there are no atomics and every run gives the same bits. Programs of all inputs run side by side and share the gradient
in the cache. The mask of the ReLU is taken from the saved output, as a select: where the output is NaN, gradients pass.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from hrnet_fast.kernels import configurations, taps


@triton.jit(do_not_specialize=["low_heights", "low_widths", "row_steps", "column_steps", "row_windows",
                               "column_windows", "height", "width", "tiles", "starts"])  # fmt: skip
def up_backward_kernel(
    grad,  # [N, C, height, width]; all tensors are dense, channels innermost where CHANNELS_LAST
    output,  # like grad, or None: there was no ReLU
    same,  # like grad, or None: gets the masked gradient
    lows,  # a tuple: [N, C, h, w]
    low_heights,
    low_widths,
    row_steps,  # source pixels per output pixel
    column_steps,
    row_windows,  # the most output rows that one source row can reach
    column_windows,
    height,
    width,
    tiles,  # of each of lows, then of same: tiles along y, along x, in all images
    starts,  # the first program of each, and the number of all
    C: tl.constexpr,
    MODE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    program = tl.program_id(0)
    for j in tl.static_range(len(lows)):
        if (program >= starts[j]) & (program < starts[j + 1]):
            _gather(program - starts[j], grad, output, lows[j], low_heights[j], low_widths[j], row_steps[j],
                    column_steps[j], row_windows[j], column_windows[j], height, width, tiles[j], C, MODE,
                    CHANNELS_LAST, WIDE, TILE_H, TILE_W, BLOCK_C * CHUNKS)  # fmt: skip
    if same is not None:
        last: tl.constexpr = len(lows)
        if program >= starts[last]:
            _copy(program - starts[last], grad, output, same, height, width, tiles[last], C, CHANNELS_LAST, WIDE,
                  TILE_H, TILE_W, BLOCK_C * CHUNKS)  # fmt: skip


@triton.jit
def _gather(program, grad, output, low, h, w, row_step, column_step, row_window, column_window, height, width, tiles,
            C: tl.constexpr, MODE: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
            TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    n, y, x = taps.pixels(program % tiles[2], tiles[0], tiles[1], TILE_H, TILE_W, CHANNELS_LAST)
    c = taps.channels(program // tiles[2] * BLOCK_C, BLOCK_C, CHANNELS_LAST)
    first_y, first_x = _first(y, row_step, MODE), _first(x, column_step, MODE)
    image = n * C * height * width
    if CHANNELS_LAST:
        acc = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
    else:
        acc = tl.zeros((BLOCK_C, TILE_H * TILE_W), tl.float32)
    for dy in range(row_window):
        out_y = first_y + dy
        v = _weight(out_y, y, row_step, h, height, MODE)
        for dx in range(column_window):
            out_x = first_x + dx
            weight = v * _weight(out_x, x, column_step, w, width, MODE)
            at = image + taps.offset(c, out_y, out_x, height, width, C, CHANNELS_LAST, WIDE)
            # not only for speed: an infinite gradient beside the window must not become NaN by a weight of 0
            mask = (weight > 0) & (c < C)
            acc += weight * _masked(grad, output, at, mask)
    at = low + n * C * h * w + taps.offset(c, y, x, h, w, C, CHANNELS_LAST, WIDE)
    tl.store(at, acc.to(low.dtype.element_ty), mask=(y < h) & (x < w) & (c < C))


@triton.jit
def _first(position, step, MODE: tl.constexpr):
    """The first output position whose source can be ``position``; at a step of 0 all of them are."""
    i = position.to(tl.float32)
    safe = tl.maximum(step, 1e-30)
    if MODE == 0:
        first = i / safe
    elif MODE == 1:
        first = (i - 0.5) / safe - 0.5
    else:
        first = (i - 1.0) / safe
    return tl.maximum(tl.floor(first), 0.0).to(tl.int32)


@triton.jit
def _weight(out, position, step, size, full, MODE: tl.constexpr):
    """With which weight output positions read the source ``position``; 0 for those outside of the output."""
    low, high, u = taps.source(out, step, size, MODE)
    if MODE == 0:
        weight = tl.where(low == position, 1.0, 0.0)
    else:
        weight = tl.where(low == position, 1 - u, 0.0) + tl.where(high == position, u, 0.0)
    return tl.where(out < full, weight, 0.0)


@triton.jit
def _masked(grad, output, at, mask):
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    if output is not None:
        y = tl.load(output + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.where(y <= 0, 0.0, g)
    return g


@triton.jit
def _copy(program, grad, output, same, height, width, tiles, C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
          WIDE: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    n, y, x = taps.pixels(program % tiles[2], tiles[0], tiles[1], TILE_H, TILE_W, CHANNELS_LAST)
    c = taps.channels(program // tiles[2] * BLOCK_C, BLOCK_C, CHANNELS_LAST)
    at = n * C * height * width + taps.offset(c, y, x, height, width, C, CHANNELS_LAST, WIDE)
    mask = (y < height) & (x < width) & (c < C)
    tl.store(same + at, _masked(grad, output, at, mask).to(same.dtype.element_ty), mask=mask)


def up_backward(
    grad: Tensor, output: Tensor | None, lows: list[Tensor], same: Tensor | None, *, mode: str, align_corners: bool
) -> None:
    """Fills ``lows`` and ``same`` in one launch.

    Args:
        grad: [N, C, H, W] float16, bfloat16 or float32, dense and contiguous or channels_last, as all tensors are.
        output: the output of the exchange, where it ended in a ReLU.
        lows: each [N, C, H_j, W_j], gets the gradient of an input without a weight.
        same: [N, C, H, W], gets the gradient of full-size inputs, or None.
        mode: of the upsampling.
        align_corners: of the upsampling.
    """
    if grad.numel() == 0:
        return
    positional, constants = arguments(grad, output, lows, same, mode, align_corners)
    if positional[-1][-1]:
        up_backward_kernel[(positional[-1][-1],)](*positional, **constants)


def arguments(grad, output, lows, same, mode, align_corners) -> tuple[list, dict]:
    """The kernel's arguments, and its constants with ``num_warps``."""
    n, channels, height, width = grad.shape
    number, channels_last = taps.mode_number(mode, align_corners), not grad.is_contiguous()
    constants = configurations.constants(configurations.UP_BACKWARD[channels_last, grad.element_size()], channels)
    blocks = triton.cdiv(channels, constants["BLOCK_C"] * constants["CHUNKS"])
    tiles, starts = [], [0]
    for target in (*lows, *([] if same is None else [same])):
        down = triton.cdiv(target.shape[2], constants["TILE_H"])
        across = triton.cdiv(target.shape[3], constants["TILE_W"])
        tiles.append((down, across, n * down * across))
        starts.append(starts[-1] + n * down * across * blocks)
    row_steps = tuple(taps.scale(x.shape[2], height, number) for x in lows)
    column_steps = tuple(taps.scale(x.shape[3], width, number) for x in lows)
    positional = [
        grad, output, same, tuple(lows), tuple(x.shape[2] for x in lows), tuple(x.shape[3] for x in lows), row_steps,
        column_steps, tuple(_window(s, height) for s in row_steps), tuple(_window(s, width) for s in column_steps),
        height, width, tuple(tiles), tuple(starts),
    ]  # fmt: skip
    wide = grad[0].numel() >= 1 << 31
    constants |= {"C": channels, "MODE": number, "CHANNELS_LAST": channels_last, "WIDE": wide}
    return positional, constants


def _window(step: float, full: int) -> int:
    # a source pixel reaches less than 2 / step outputs; one more because the first is rounded down, one for rounding
    return full if step == 0 else min(full, math.ceil(2 / step) + 2)
