"""The 4-tap kernel: ``y = act(bias + sum_j up_size(x_j))`` of several outputs in one launch.

Full-size inputs are read once, of smaller ones four taps a pixel are gathered (they lie in the caches), and the sum is
kept in float32 and rounded once at the store. Any size, mode and layout.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hrnet_fast.kernels import configurations, taps

# The autotuner keeps one choice for each combination of these arguments and of the dtypes.
AUTOTUNE_KEY = ["heights", "widths", "CHANNELS", "SAME", "MODE", "CHANNELS_LAST"]


@triton.jit(
    do_not_specialize=["low_heights", "low_widths", "row_steps", "column_steps", "heights", "widths", "tiles", "starts"]
)
def up_sum_relu_kernel(
    outs,  # tuple over outputs: [N, C, heights[i], widths[i]]
    biases,  # of each output: [C] or None
    inputs,  # of each output a tuple: [N, C, h, w]; all tensors are dense, channels innermost where CHANNELS_LAST
    low_heights,
    low_widths,
    row_steps,  # source pixels per output pixel
    column_steps,
    heights,
    widths,
    tiles,  # of each output: tiles along y, along x, in all images
    starts,  # the first program of each output, and the number of all
    CHANNELS: tl.constexpr,
    SAME: tl.constexpr,  # of each output: bit j is set where inputs[i][j] is full-size
    MODE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    RELU: tl.constexpr,
    WIDE: tl.constexpr,  # an image has more than 2^31 elements
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,  # of each output
    CHUNKS: tl.constexpr,
):
    program = tl.program_id(0)
    for i in tl.static_range(len(outs)):
        if (program >= starts[i]) & (program < starts[i + 1]):
            _one(program - starts[i], outs[i], biases[i], inputs[i], low_heights[i], low_widths[i], row_steps[i],
                 column_steps[i], heights[i], widths[i], tiles[i], CHANNELS[i], SAME[i], MODE, CHANNELS_LAST, RELU,
                 WIDE, TILE_H, TILE_W, BLOCK_C[i], CHUNKS[i])  # fmt: skip


@triton.jit
def _one(program, out, bias, inputs, low_heights, low_widths, row_steps, column_steps, height, width, tiles,
         C: tl.constexpr, SAME: tl.constexpr, MODE: tl.constexpr, CHANNELS_LAST: tl.constexpr, RELU: tl.constexpr,
         WIDE: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr,
         CHUNKS: tl.constexpr):  # fmt: skip
    n, y, x = taps.pixels(program % tiles[2], tiles[0], tiles[1], TILE_H, TILE_W, CHANNELS_LAST)
    inside = (y < height) & (x < width)
    first = program // tiles[2] * (BLOCK_C * CHUNKS)
    for chunk in tl.static_range(CHUNKS):
        c = taps.channels(first + chunk * BLOCK_C, BLOCK_C, CHANNELS_LAST)
        full = taps.offset(c, y, x, height, width, C, CHANNELS_LAST, WIDE)
        mask = inside & (c < C)
        if CHANNELS_LAST:
            acc = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
        else:
            acc = tl.zeros((BLOCK_C, TILE_H * TILE_W), tl.float32)
        if bias is not None:
            acc += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
        for j in tl.static_range(len(inputs)):
            h, w = low_heights[j], low_widths[j]
            if (SAME >> j) % 2 == 1:
                image = inputs[j] + n * C * height * width
                acc += tl.load(image + full, mask=mask, other=0.0).to(tl.float32)
            else:
                image = inputs[j] + n * C * h * w
                acc += taps.upsampled(image, c, y, x, row_steps[j], column_steps[j], h, w, C, MODE, CHANNELS_LAST, WIDE)
        if RELU:
            acc = tl.where(acc <= 0, 0.0, acc)  # keeps NaN, as torch does
        tl.store(out + n * C * height * width + full, acc.to(out.dtype.element_ty), mask=mask)


class Sum(NamedTuple):
    """One output of a launch: filled with ``act(bias + sum_j up(inputs[j]))``."""

    out: Tensor  # [N, C, H, W]
    inputs: list[Tensor]  # each [N, C, H_j, W_j], at most as large as ``out``
    bias: Tensor | None  # [C]


def up_sum_relu(sums: list[Sum], *, mode: str, align_corners: bool, relu: bool) -> None:
    """Fills the outputs of all sums in one launch.

    All tensors have one dtype (float16, bfloat16, float32) and one layout, dense and contiguous or channels_last.
    Launched on the current stream of the current device. Nothing is measured or synchronised, but where
    HRNET_FAST_AUTOTUNE=1 asks for it and no CUDA graph is being captured.
    """
    sums = [s for s in sums if s.out.numel() > 0]
    if not sums:
        return
    constant = constants(sums, mode, align_corners, relu)
    tile = tiling(sums, constant["CHANNELS_LAST"])
    if configurations.autotune_wanted() and len(sums) == 1 and not torch.cuda.is_current_stream_capturing():
        first = sums[0].out
        tuned = _autotuned(constant["CHANNELS_LAST"], first.element_size(), first.shape[1])
        positional = arguments(sums, constant["MODE"], tile)
        tuned[lambda meta: (launch(sums, meta)[1][-1],)](*positional, **constant)
        return
    positional = arguments(sums, constant["MODE"], tile)
    up_sum_relu_kernel[(positional[-1][-1],)](*positional, **constant, **tile)


def constants(sums: list[Sum], mode: str, align_corners: bool, relu: bool) -> dict:
    """The constants of the kernel that follow from the tensors."""
    number = taps.mode_number(mode, align_corners)
    full = [[x.shape[2:] == s.out.shape[2:] for x in s.inputs] for s in sums]
    return {
        "CHANNELS": tuple(s.out.shape[1] for s in sums),
        "SAME": tuple(sum(1 << j for j, same in enumerate(row) if same) for row in full),
        "MODE": number,
        "CHANNELS_LAST": not all(s.out.is_contiguous() for s in sums),
        "RELU": relu,
        "WIDE": any(s.out[0].numel() >= 1 << 31 for s in sums),
    }


def tiling(sums: list[Sum], channels_last: bool) -> dict:
    """The row of the table, its channels fitted to each output."""
    row = configurations.UP_SUM_RELU[channels_last, sums[0].out.element_size()]
    each = [configurations.constants(row, s.out.shape[1]) for s in sums]
    return {**each[0], "BLOCK_C": tuple(e["BLOCK_C"] for e in each), "CHUNKS": tuple(e["CHUNKS"] for e in each)}


def launch(sums: list[Sum], tile: dict) -> tuple[tuple, tuple]:
    """The arguments ``tiles`` and ``starts`` for a tiling."""
    tiles, starts = [], [0]
    for s, block, chunks in zip(sums, tile["BLOCK_C"], tile["CHUNKS"], strict=True):
        n, channels, height, width = s.out.shape
        down, across = triton.cdiv(height, tile["TILE_H"]), triton.cdiv(width, tile["TILE_W"])
        tiles.append((down, across, n * down * across))
        starts.append(starts[-1] + tiles[-1][2] * triton.cdiv(channels, block * chunks))
    return tuple(tiles), tuple(starts)


def arguments(sums: list[Sum], mode: int, tile: dict) -> list:
    """The kernel's arguments in front of its constants."""

    def each(function):
        return tuple(tuple(function(x, s.out) for x in s.inputs) for s in sums)

    return [
        tuple(s.out for s in sums),
        tuple(s.bias for s in sums),
        each(lambda x, out: x),
        each(lambda x, out: x.shape[2]),
        each(lambda x, out: x.shape[3]),
        each(lambda x, out: taps.scale(x.shape[2], out.shape[2], mode)),
        each(lambda x, out: taps.scale(x.shape[3], out.shape[3], mode)),
        tuple(s.out.shape[2] for s in sums),
        tuple(s.out.shape[3] for s in sums),
        *launch(sums, tile),
    ]


@functools.cache
def _autotuned(channels_last: bool, itemsize: int, channels: int):
    tried = configurations.candidates(channels_last, itemsize, channels)
    configs = [
        triton.Config({**tile, "BLOCK_C": (tile["BLOCK_C"],), "CHUNKS": (tile["CHUNKS"],)}, num_warps=warps)
        for tile, warps in (({k: v for k, v in t.items() if k != "num_warps"}, t["num_warps"]) for t in tried)
    ]
    return triton.autotune(configs, AUTOTUNE_KEY, cache_results=True)(up_sum_relu_kernel)
