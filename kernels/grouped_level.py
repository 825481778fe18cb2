"""One level of a network in one launch: convolutions and sums that do not depend on each other, of any sizes.

All images lie in one arena, channels innermost, their channels padded to a multiple of 8; all weights lie in one tensor
more. A table in memory says what each program computes: sizes are no constants of the kernel, so that a few compiled
variants serve every level of every network. A program finds its task by the number of the first program of each.

A task is a convolution (1x1 or 3x3, stride 1 or 2, of several sources that are added up, with bias, residual and ReLU)
or a sum (images of its own size and interpolated ones, with ReLU). Convolutions are implicit matrix products on the
tensor cores: pixels of a tile times output channels, over the taps and input channels of every source.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hrnet_fast.kernels import configurations, taps

PAD = 8  # channels of an image are a multiple of it, and all offsets into the arena and the weights are
MAX_TASKS = 32  # of a launch
NOWHERE = -1
# The numbers of a task, all int32, and of one of its terms: a convolution's source, or an image that a sum adds.
(
    FIRST,
    SHAPE,
    OUT,
    KEPT,
    CHANNELS,
    HEIGHT,
    WIDTH,
    ACROSS,
    TILES,
    BLOCKS,
    RELU,
    BIAS,
    RESIDUAL,
    KERNEL,
    STRIDE,
    TERMS,
    FIRST_TERM,
) = map(tl.constexpr, range(17))
IMAGE, DEPTH, HEIGHT_IN, WIDTH_IN, WEIGHT, ROW_STEP, COLUMN_STEP, SAME = map(tl.constexpr, range(8))
TASK_SIZE, TERM_SIZE, LOOKED_UP = tl.constexpr(17), tl.constexpr(8), tl.constexpr(MAX_TASKS)


def padded(channels: int) -> int:
    """Channels that an image takes in the arena."""
    return -(-channels // PAD) * PAD


@triton.jit(do_not_specialize=["count"])
def grouped_level_kernel(
    arena,  # images
    out,  # the arena; or a tensor of the caller's where EXTERNAL
    weights,  # of each source [K * K, C, N]
    biases,  # float32
    tasks,  # int32 [count, 17], see ``table``
    terms,  # int32 [..., 8]
    count,
    MODE: tl.constexpr,  # of all interpolated images
    EXTERNAL: tl.constexpr,
    PRECISION: tl.constexpr,  # of float32 products: "ieee" or "tf32"
    INTERPRETED: tl.constexpr,
    ROWS: tl.constexpr,  # of the tile of each shape of a convolution's program; the last is that of sums
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0)
    index = tl.arange(0, LOOKED_UP)
    firsts = tl.load(tasks + index * TASK_SIZE, mask=index < count, other=2147483647)
    task = tasks + (tl.sum((firsts <= program).to(tl.int32), 0) - 1) * TASK_SIZE
    program -= tl.load(task + FIRST)
    shape = tl.load(task + SHAPE)
    last: tl.constexpr = len(ROWS) - 1
    for s in tl.static_range(last):
        if shape == s:
            _convolution(
                program,
                task,
                arena,
                out,
                weights,
                biases,
                terms,
                EXTERNAL,
                PRECISION,
                INTERPRETED,
                ROWS[s],
                COLUMNS[s],
                BLOCK_N[s],
                BLOCK_K[s],
            )
    if shape == last:
        _sum(program, task, arena, out, terms, MODE, EXTERNAL, ROWS[last], COLUMNS[last], BLOCK_N[last])


@triton.jit
def _place(program, task, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Image, output rows and columns, and channels of a program."""
    tiles_x = tl.load(task + ACROSS)
    blocks = tl.load(task + BLOCKS)
    tile = program // blocks
    c = program % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = tl.load(task + TILES)  # of an image
    n = tile // tiles
    tile = tile % tiles
    pixel = tl.arange(0, ROWS * COLUMNS)
    y = tile // tiles_x * ROWS + pixel // COLUMNS
    x = tile % tiles_x * COLUMNS + pixel % COLUMNS
    return n, y, x, c


@triton.jit
def _image(arena, offset):
    """The pointer to an image, from its offset in units of 8 elements."""
    return arena + tl.multiple_of(offset.to(tl.int64) * 8, 8)


@triton.jit
def _store(acc, task, arena, out, n, y, x, c, EXTERNAL: tl.constexpr):
    """Stores a tile behind its ReLU, with the residual image if there is one."""
    height, width = tl.load(task + HEIGHT), tl.load(task + WIDTH)
    channels = tl.multiple_of(tl.load(task + CHANNELS), 8)
    inside = ((y < height) & (x < width))[:, None]
    pixel = ((n * height + y) * width + x)[:, None]
    residual = tl.load(task + RESIDUAL)
    if residual >= 0:
        at = pixel * channels + c[None, :]
        acc += tl.load(_image(arena, residual) + at, mask=inside & (c < channels)[None, :], other=0.0).to(tl.float32)
    relu = tl.load(task + RELU)
    acc = tl.where((acc <= 0) & (relu == 1), 0.0, acc)  # keeps NaN, as torch does
    if EXTERNAL:
        kept = tl.load(task + KEPT)
        tl.store(
            out + pixel.to(tl.int64) * kept + c[None, :],
            acc.to(out.dtype.element_ty),
            mask=inside & (c < kept)[None, :],
        )
    else:
        to = _image(out, tl.load(task + OUT)) + pixel * channels + c[None, :]
        tl.store(to, acc.to(out.dtype.element_ty), mask=inside & (c < channels)[None, :])


@triton.jit
def _convolution(
    program,
    task,
    arena,
    out,
    weights,
    biases,
    terms,
    EXTERNAL: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n, y, x, c = _place(program, task, ROWS, COLUMNS, BLOCK_N)
    channels = tl.multiple_of(tl.load(task + CHANNELS), 8)
    size, stride = tl.load(task + KERNEL), tl.load(task + STRIDE)
    first, sources = tl.load(task + FIRST_TERM), tl.load(task + TERMS)
    acc = tl.zeros((ROWS * COLUMNS, BLOCK_N), tl.float32)
    acc += tl.load(biases + tl.load(task + BIAS) + c, mask=c < channels, other=0.0)[None, :]
    for j in range(sources):
        term = terms + (first + j) * TERM_SIZE
        width_in = tl.multiple_of(tl.load(term + DEPTH), 8)
        h, w = tl.load(term + HEIGHT_IN), tl.load(term + WIDTH_IN)
        source = _image(arena, tl.load(term + IMAGE))
        weight = _image(weights, tl.load(term + WEIGHT))
        steps = tl.cdiv(width_in, BLOCK_K)
        for step in range(0, size * size * steps):
            tap = step // steps
            k = (step - tap * steps) * BLOCK_K + tl.arange(0, BLOCK_K)
            row = y * stride + tap // size - size // 2
            column = x * stride + tap % size - size // 2
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            pixel = (n * h + row) * w + column
            a = tl.load(
                source + pixel[:, None] * width_in + k[None, :],
                mask=inside[:, None] & (k < width_in)[None, :],
                other=0.0,
            )
            b = tl.load(
                weight + (tap * width_in + k)[:, None] * channels + c[None, :],
                mask=(k < width_in)[:, None] & (c < channels)[None, :],
                other=0.0,
            )
            if INTERPRETED:  # the interpreter's products of bfloat16 are wrong
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    _store(acc, task, arena, out, n, y, x, c, EXTERNAL)


@triton.jit
def _sum(
    program,
    task,
    arena,
    out,
    terms,
    MODE: tl.constexpr,
    EXTERNAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    n, y, x, c = _place(program, task, ROWS, COLUMNS, BLOCK_N)
    height, width = tl.load(task + HEIGHT), tl.load(task + WIDTH)
    channels = tl.multiple_of(tl.load(task + CHANNELS), 8)
    inside = ((y < height) & (x < width))[:, None]
    first = tl.load(task + FIRST_TERM)
    acc = tl.zeros((ROWS * COLUMNS, BLOCK_N), tl.float32)
    for j in range(tl.load(task + TERMS)):
        term = terms + (first + j) * TERM_SIZE
        h, w = tl.load(term + HEIGHT_IN), tl.load(term + WIDTH_IN)
        image = _image(arena, tl.load(term + IMAGE)) + n * h * w * channels
        if tl.load(term + SAME) == 1:
            at = (y * width + x)[:, None] * channels + c[None, :]
            acc += tl.load(image + at, mask=inside & (c < channels)[None, :], other=0.0).to(tl.float32)
        else:
            row_step = tl.load(term + ROW_STEP).to(tl.float32, bitcast=True)
            column_step = tl.load(term + COLUMN_STEP).to(tl.float32, bitcast=True)
            acc += taps.upsampled(
                image, c[None, :], y[:, None], x[:, None], row_step, column_step, h, w, channels, MODE, True, False
            )
    _store(acc, task, arena, out, n, y, x, c, EXTERNAL)


class Picture(NamedTuple):
    """An image in the arena."""

    offset: int  # elements
    channels: int  # that are there, PAD included
    size: tuple[int, int]


class Term(NamedTuple):
    """What a task reads: a source of a convolution, or an image that a sum adds."""

    picture: Picture
    weight: int = NOWHERE  # of a source: where it begins in the weights, in elements


@dataclass
class Task:
    """One output."""

    out: Picture
    batch: int
    terms: list[Term]
    relu: bool
    kernel: int = 0  # of a convolution, 1 or 3; 0: a sum
    stride: int = 1
    bias: int = NOWHERE  # of a convolution: where it begins
    residual: Picture | None = None
    kept: int = 0  # channels that are stored into a tensor of the caller's

    def work(self) -> int:
        """Steps of one program, to begin with the longest."""
        return self.kernel**2 * sum(t.picture.channels for t in self.terms) if self.kernel else 0


def table(tasks: Sequence[Task], tiles: Sequence[configurations.GroupedTile], mode: int) -> tuple[list, list, int]:
    """The rows of a launch for some tasks, the longest first; the rows of its terms; the number of programs.

    Args:
        tasks: what is computed.
        tiles: of convolutions, and behind them that of sums.
        mode: of interpolation (``taps.mode_number``).

    Raises:
        ValueError: more tasks than a launch takes, or an image of 2^31 elements or more.
    """
    if len(tasks) > MAX_TASKS:
        raise ValueError(f"a launch takes {MAX_TASKS} tasks, not {len(tasks)}")
    rows, terms, programs = [], [], 0
    for task in sorted(tasks, key=Task.work, reverse=True):
        (h, w), channels = task.out.size, task.out.channels
        shape = configurations.grouped_shape(tiles, channels) if task.kernel else len(tiles) - 1
        pictures = [task.out, *(t.picture for t in task.terms)]
        if any(task.batch * p.channels * p.size[0] * p.size[1] >= 1 << 31 for p in pictures):
            raise ValueError("an image has 2^31 elements or more")
        tile = tiles[shape]
        down, across, blocks = (
            triton.cdiv(h, tile.rows),
            triton.cdiv(w, tile.columns),
            triton.cdiv(channels, tile.channels),
        )
        residual = NOWHERE if task.residual is None else task.residual.offset // PAD
        rows.append(
            [
                programs,
                shape,
                task.out.offset // PAD,
                task.kept,
                channels,
                h,
                w,
                across,
                down * across,
                blocks,
                int(task.relu),
                task.bias,
                residual,
                task.kernel,
                task.stride,
                len(task.terms),
                len(terms),
            ]
        )
        for term in task.terms:
            p = term.picture
            steps = [taps.scale(p.size[k], task.out.size[k], mode) for k in (0, 1)]
            terms.append(
                [
                    p.offset // PAD,
                    p.channels,
                    *p.size,
                    term.weight // PAD,
                    *map(_bits, steps),
                    int(p.size == task.out.size),
                ]
            )
        programs += task.batch * down * across * blocks
    return rows, terms, programs


def _bits(value: float) -> int:
    """A float32 as the int32 of the same bits."""
    return struct.unpack("<i", struct.pack("<f", value))[0]


def constants(dtype: torch.dtype, tf32: bool, mode: int, external: bool, interpreted: bool = False) -> dict:
    """The kernel's constants, with ``num_warps`` and ``num_stages``.

    Args:
        dtype: of images and weights: float16, bfloat16 or float32.
        tf32: whether float32 products may be rounded to TF32.
        mode: of interpolation.
        external: whether results go into a tensor of the caller's.
        interpreted: under TRITON_INTERPRET=1.
    """
    row = configurations.GROUPED_LEVEL[configurations.products(dtype, tf32)]
    return {
        "MODE": mode,
        "EXTERNAL": external,
        "PRECISION": "tf32" if tf32 else "ieee",
        "INTERPRETED": interpreted,
        "ROWS": tuple(t.rows for t in row.tiles),
        "COLUMNS": tuple(t.columns for t in row.tiles),
        "BLOCK_N": tuple(t.channels for t in row.tiles),
        "BLOCK_K": tuple(t.products for t in row.tiles),
        "num_warps": row.warps,
        "num_stages": row.stages,
    }


def grouped_level(
    arena: Tensor,
    out: Tensor,
    weights: Tensor,
    biases: Tensor,
    tasks: Tensor,
    terms: Tensor,
    programs: int,
    constants: dict,
) -> None:
    """Runs a level.

    Args:
        arena: images, 1-D, of the network's dtype.
        out: the arena; or where the constants say EXTERNAL a tensor of the caller's, [N, H, W, C] in memory.
        weights: 1-D, of the same dtype.
        biases: 1-D, float32.
        tasks: int32 [tasks, 17], on the same device, rows of ``table``.
        terms: int32 [terms, 8], likewise.
        programs: of all tasks.
        constants: of the kernel.
    """
    grouped_level_kernel[(programs,)](arena, out, weights, biases, tasks, terms, tasks.shape[0], **constants)
