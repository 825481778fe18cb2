"""What the kernels share: where a pixel comes from, where an element lies in memory, four taps of a smaller image.

The arithmetic of the source pixels is that of torch.nn.functional.interpolate in float32 (ATen/native/UpSample.h), so
that the same pixels are picked where a coordinate falls on a boundary.
"""

import triton
import triton.language as tl

NEAREST, HALF_PIXEL, ALIGN_CORNERS = 0, 1, 2


def mode_number(mode: str, align_corners: bool) -> int:
    """The mode as the kernels know it."""
    if mode == "nearest":
        return NEAREST
    return ALIGN_CORNERS if align_corners else HALF_PIXEL


def scale(low: int, full: int, mode: int) -> float:
    """Source pixels per output pixel. The kernels get it as float32, which is what torch's float division gives."""
    if mode == ALIGN_CORNERS:
        return (low - 1) / (full - 1) if full > 1 else 0.0
    return low / full


@triton.jit
def source(position, step, size, MODE: tl.constexpr):
    """The two source pixels of output positions along one axis, and the weight of the second."""
    if MODE == 1:
        x = tl.maximum((position.to(tl.float32) + 0.5) * step - 0.5, 0.0)
    else:
        x = position.to(tl.float32) * step
    low = tl.minimum(x.to(tl.int32), size - 1)
    high = tl.minimum(low + 1, size - 1)
    return low, high, tl.minimum(x - low.to(tl.float32), 1.0)


@triton.jit
def offset(c, y, x, h, w, C, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """Elements from the first one of an image [C, h, w]; WIDE where they are more than 2^31."""
    if WIDE:
        y = y.to(tl.int64)
        c = c.to(tl.int64)
    if CHANNELS_LAST:
        e = (y * w + x) * C + c
    else:
        e = (c * h + y) * w + x
    return e


@triton.jit
def tap(image, c, y, x, h, w, C, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """One source pixel a position. It lies in the image even for positions outside of the result."""
    at = image + offset(c, y, x, h, w, C, CHANNELS_LAST, WIDE)
    return tl.load(at, mask=c < C, other=0.0).to(tl.float32)


@triton.jit
def upsampled(
    image, c, y, x, row_step, column_step, h, w, C, MODE: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr
):
    """An image [C, h, w] interpolated at output rows y and columns x, in float32."""
    y0, y1, v = source(y, row_step, h, MODE)
    x0, x1, u = source(x, column_step, w, MODE)
    if MODE == 0:
        value = tap(image, c, y0, x0, h, w, C, CHANNELS_LAST, WIDE)
    else:
        # one weight a tap: interpolating along x and then y keeps more values alive, which sm_100 has no registers for
        value = (1 - v) * (1 - u) * tap(image, c, y0, x0, h, w, C, CHANNELS_LAST, WIDE)
        value += (1 - v) * u * tap(image, c, y0, x1, h, w, C, CHANNELS_LAST, WIDE)
        value += v * (1 - u) * tap(image, c, y1, x0, h, w, C, CHANNELS_LAST, WIDE)
        value += v * u * tap(image, c, y1, x1, h, w, C, CHANNELS_LAST, WIDE)
    return value


@triton.jit
def pixels(tile, tiles_y, tiles_x, TILE_H: tl.constexpr, TILE_W: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """The image, rows and columns of a tile; channels innermost in memory come last in its tensors, else first."""
    pixel = tl.arange(0, TILE_H * TILE_W)
    n = (tile // (tiles_y * tiles_x)).to(tl.int64)
    y = tile // tiles_x % tiles_y * TILE_H + pixel // TILE_W
    x = tile % tiles_x * TILE_W + pixel % TILE_W
    if CHANNELS_LAST:
        y, x = y[:, None], x[:, None]
    else:
        y, x = y[None, :], x[None, :]
    return n, y, x


@triton.jit
def channels(first, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """BLOCK_C channels from ``first`` on, along the axis that ``pixels`` leaves to them."""
    c = first + tl.arange(0, BLOCK_C)
    if CHANNELS_LAST:
        c = c[None, :]
    else:
        c = c[:, None]
    return c
