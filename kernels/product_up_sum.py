"""1x1 convolutions of full-size inputs inside the exchange, and the 1x1 convolution that follows it: the V2 head.

A program holds a tile of pixels. For one block of channels after the other it multiplies the full-size inputs by their
weights on the tensor cores, adds four taps of each smaller input (whose products were made at their own resolution),
bias and ReLU, and either stores the block or multiplies it by the projection at once: then the tensor of all channels
(15 C of them in HRNet's V2 head) is never in memory.
"""

import triton
import triton.language as tl
from torch import Tensor

from hrnet_fast.kernels import configurations, taps


@triton.jit(do_not_specialize="low_heights low_widths row_steps column_steps height width tiles_y tiles_x".split())
def product_up_sum_kernel(
    out,  # [N, C, height, width], or with a projection [N, P, height, width]; all images have channels innermost
    bias,  # [C] or None
    wholes,  # full-size inputs with a weight: [N, WIDTHS[k], height, width]
    weights,  # [C, WIDTHS[k]], dense
    inputs,  # inputs without one, full-size or smaller: [N, C, h, w]
    projection,  # [P, C], dense, or None
    projection_bias,  # [P] or None
    low_heights,
    low_widths,
    row_steps,
    column_steps,
    height,
    width,
    tiles_y,
    tiles_x,
    C: tl.constexpr,
    P: tl.constexpr,
    WIDTHS: tl.constexpr,
    SAME: tl.constexpr,  # bit j: inputs[j] is full-size
    MODE: tl.constexpr,
    RELU: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,  # of float32 products: "ieee" or "tf32"
    INTERPRETED: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    n, y, x = taps.pixels(tl.program_id(0), tiles_y, tiles_x, TILE_H, TILE_W, True)
    inside = (y < height) & (x < width)
    if projection is None:
        block = tl.program_id(1) * BLOCK_C
        acc = _block(block, bias, wholes, weights, inputs, low_heights, low_widths, row_steps, column_steps, n, y, x,
                     inside, height, width, C, WIDTHS, SAME, MODE, RELU, WIDE, PRECISION, INTERPRETED,
                     TILE_H * TILE_W, BLOCK_C, BLOCK_K)  # fmt: skip
        c = taps.channels(block, BLOCK_C, True)
        at = n * C * height * width + taps.offset(c, y, x, height, width, C, True, WIDE)
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside & (c < C))
    else:
        p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
        total = tl.zeros((TILE_H * TILE_W, BLOCK_P), tl.float32)
        if projection_bias is not None:
            total += tl.load(projection_bias + p, mask=p < P, other=0.0).to(tl.float32)[None, :]
        for block in range(0, C, BLOCK_C):
            acc = _block(block, bias, wholes, weights, inputs, low_heights, low_widths, row_steps, column_steps, n, y,
                         x, inside, height, width, C, WIDTHS, SAME, MODE, RELU, WIDE, PRECISION, INTERPRETED,
                         TILE_H * TILE_W, BLOCK_C, BLOCK_K)  # fmt: skip
            c = block + tl.arange(0, BLOCK_C)
            at = projection + p[None, :] * C + c[:, None]
            factor = tl.load(at, mask=(c[:, None] < C) & (p[None, :] < P), other=0.0)
            total = _dot(acc.to(out.dtype.element_ty), factor, total, PRECISION, INTERPRETED)
        at = n * P * height * width + taps.offset(p[None, :], y, x, height, width, P, True, WIDE)
        tl.store(out + at, total.to(out.dtype.element_ty), mask=inside & (p[None, :] < P))


@triton.jit
def _block(block, bias, wholes, weights, inputs, low_heights, low_widths, row_steps, column_steps, n, y, x, inside,
           height, width, C: tl.constexpr, WIDTHS: tl.constexpr, SAME: tl.constexpr, MODE: tl.constexpr,
           RELU: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
           PIXELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """BLOCK_C channels of the exchange at the tile's pixels, in float32."""
    c = block + tl.arange(0, BLOCK_C)
    acc = tl.zeros((PIXELS, BLOCK_C), tl.float32)
    for k in tl.static_range(len(wholes)):
        image = wholes[k] + n * WIDTHS[k] * height * width
        for first in range(0, WIDTHS[k], BLOCK_K):
            i = first + tl.arange(0, BLOCK_K)
            at = image + taps.offset(i[None, :], y, x, height, width, WIDTHS[k], True, WIDE)
            values = tl.load(at, mask=inside & (i[None, :] < WIDTHS[k]), other=0.0)
            mask = (i[:, None] < WIDTHS[k]) & (c[None, :] < C)
            factor = tl.load(weights[k] + c[None, :] * WIDTHS[k] + i[:, None], mask=mask, other=0.0)
            acc = _dot(values, factor, acc, PRECISION, INTERPRETED)
    c = c[None, :]
    if bias is not None:
        acc += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    for j in tl.static_range(len(inputs)):
        h, w = low_heights[j], low_widths[j]
        if (SAME >> j) % 2 == 1:
            at = inputs[j] + n * C * height * width + taps.offset(c, y, x, height, width, C, True, WIDE)
            acc += tl.load(at, mask=inside & (c < C), other=0.0).to(tl.float32)
        else:
            acc += taps.upsampled(
                inputs[j] + n * C * h * w, c, y, x, row_steps[j], column_steps[j], h, w, C, MODE, True, WIDE
            )
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)
    return acc


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    if INTERPRETED:  # the interpreter's products of bfloat16 are wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


def product_up_sum(
    out: Tensor,
    wholes: list[Tensor],
    weights: list[Tensor],
    inputs: list[Tensor],
    bias: Tensor | None,
    projection: Tensor | None,
    projection_bias: Tensor | None,
    **settings,
) -> None:
    """Fills ``out`` with ``act(bias + sum_k W_k wholes[k] + sum_j up(inputs[j]))``, or with the projection of that.

    Args:
        out: [N, C, H, W], with a projection [N, P, H, W], channels_last as all images are; float16, bfloat16, float32.
        wholes: each [N, C_k, H, W].
        weights: each [C, C_k], dense.
        inputs: each [N, C, H_j, W_j], at most as large as ``out``.
        bias: [C].
        projection: [P, C], dense.
        projection_bias: [P].
        settings: mode, align_corners, relu, and tf32, whether float32 products may be rounded to TF32.
    """
    if out.numel() == 0:
        return
    positional, constants, grid = arguments(out, wholes, weights, inputs, bias, projection, projection_bias, **settings)
    product_up_sum_kernel[grid](*positional, **constants)


def arguments(out, wholes, weights, inputs, bias, projection, projection_bias, *, mode, align_corners, relu, tf32,
              interpreted=False) -> tuple[list, dict, tuple]:  # fmt: skip
    """The kernel's arguments, its constants with ``num_warps`` and ``num_stages``, and the grid."""
    n, _, height, width = out.shape
    channels = projection.shape[1] if projection is not None else out.shape[1]
    projected = 0 if projection is None else out.shape[1]
    row, number = configurations.PRODUCT_UP_SUM, taps.mode_number(mode, align_corners)
    block_c = configurations.channel_block(channels, row.channels, 16)
    block_p = max(16, configurations.channel_block(max(projected, 1), 64, 16))
    down, across = triton.cdiv(height, row.rows), triton.cdiv(width, row.columns)
    positional = [
        out, bias, tuple(wholes), tuple(weights), tuple(inputs), projection, projection_bias,
        tuple(x.shape[2] for x in inputs), tuple(x.shape[3] for x in inputs),
        tuple(taps.scale(x.shape[2], height, number) for x in inputs),
        tuple(taps.scale(x.shape[3], width, number) for x in inputs), height, width, down, across,
    ]  # fmt: skip
    constants = {
        "C": channels,
        "P": projected,
        "WIDTHS": tuple(x.shape[1] for x in wholes),
        "SAME": sum(1 << j for j, x in enumerate(inputs) if x.shape[2:] == out.shape[2:]),
        "MODE": number,
        "RELU": relu,
        "WIDE": max(channels, *(x.shape[1] for x in (out, *wholes))) * height * width >= 1 << 31,
        "PRECISION": "tf32" if tf32 else "ieee",
        "INTERPRETED": interpreted,
        "TILE_H": row.rows,
        "TILE_W": row.columns,
        "BLOCK_C": block_c,
        "BLOCK_K": row.products,
        "BLOCK_P": block_p,
        "num_warps": row.warps,
        "num_stages": row.stages,
    }
    blocks = triton.cdiv(projected, block_p) if projected else triton.cdiv(channels, block_c)
    return positional, constants, (n * down * across, blocks)
