"""Launch configurations: how many pixels, channels and warps a program of each kernel gets.

A row says on which GPU it was measured; ``None`` says that nobody has measured it on a GPU: it was chosen by counting
registers and bytes, and compiles without spills for sm_80, sm_90 and sm_100 (tests/kernels/test_compiles.py).

HRNET_FAST_AUTOTUNE=1 makes Triton's autotuner choose among ``candidates`` at the first call of every (channels, modes,
layout, element size, output sizes); its choices are kept on disk beside Triton's compiled kernels. Without it nothing
is ever measured, and a first call takes the seconds that Triton needs to compile one configuration.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """What one program computes."""

    rows: int  # pixels; all numbers are powers of two
    columns: int  # pixels
    channels: int  # at once, at most
    chunks: int  # of channels, one after the other with the same source pixels, at most
    warps: int
    measured: str | None  # the GPU


# (channels innermost, bytes of an element)
UP_SUM_RELU = {
    (True, 2): Tile(4, 16, 64, 4, 8, None),
    (True, 4): Tile(4, 16, 16, 2, 4, None),
    (False, 2): Tile(2, 64, 4, 1, 4, None),
    (False, 4): Tile(2, 64, 4, 1, 4, None),
}
UP_BACKWARD = {
    (True, 2): Tile(4, 8, 64, 1, 4, None),
    (True, 4): Tile(4, 8, 32, 1, 4, None),
    (False, 2): Tile(4, 32, 4, 1, 4, None),
    (False, 4): Tile(4, 32, 4, 1, 4, None),
}
# channels innermost; channels: classes in one step
INTERPOLATE_ARGMAX = {True: Tile(4, 16, 32, 1, 4, None), False: Tile(2, 64, 8, 1, 4, None)}


class ProductTile(NamedTuple):
    """What one program of ``product_up_sum`` computes, and in which steps."""

    rows: int
    columns: int
    channels: int  # of the exchange, in one step
    products: int  # input channels that a step of a product adds up
    warps: int
    stages: int
    measured: str | None


PRODUCT_UP_SUM = ProductTile(8, 8, 64, 32, 8, 2, None)


class GroupedTile(NamedTuple):
    """What one program of ``grouped_level`` computes of a convolution, or of a sum."""

    rows: int
    columns: int
    channels: int  # of the output
    products: int  # input channels that one step multiplies; of a sum: unused


class GroupedLevel(NamedTuple):
    """The tiles of convolutions, of which each takes the one that pads its channels least; the last is for sums."""

    tiles: tuple[GroupedTile, ...]
    warps: int
    stages: int
    measured: str | None


# by what the products are: of 16-bit numbers, of float32 rounded to TF32, of float32
GROUPED_LEVEL = {
    "half": GroupedLevel(
        (GroupedTile(8, 16, 32, 32), GroupedTile(8, 16, 64, 64), GroupedTile(8, 8, 64, 16)), 4, 4, None
    ),
    "tf32": GroupedLevel(
        (GroupedTile(8, 16, 32, 32), GroupedTile(8, 16, 64, 32), GroupedTile(8, 8, 32, 16)), 4, 3, None
    ),
    "ieee": GroupedLevel((GroupedTile(8, 8, 32, 16), GroupedTile(8, 8, 32, 16)), 4, 2, None),
}


def products(dtype: torch.dtype, tf32: bool) -> str:
    """The key of GROUPED_LEVEL."""
    return "half" if dtype.itemsize == 2 else "tf32" if tf32 else "ieee"


def grouped_shape(tiles: Sequence[GroupedTile], channels: int) -> int:
    """The number of the tile that a convolution with so many output channels takes."""
    return min(range(len(tiles) - 1), key=lambda k: (-(-channels // tiles[k].channels) * tiles[k].channels, -k))


def autotune_wanted() -> bool:
    """Whether the environment asks for measuring."""
    return os.environ.get("HRNET_FAST_AUTOTUNE") == "1"


def constants(tile: Tile, channels: int) -> dict[str, int]:
    """The constants of a kernel for tensors of so many channels, and ``num_warps``."""
    block = channel_block(channels, tile.channels)
    blocks = -(-channels // block)
    chunks = min(range(1, tile.chunks + 1), key=lambda n: (-(-blocks // n) * n, -n))
    return {"TILE_H": tile.rows, "TILE_W": tile.columns, "BLOCK_C": block, "CHUNKS": chunks, "num_warps": tile.warps}


def candidates(channels_last: bool, itemsize: int, channels: int) -> list[dict[str, int]]:
    """What the autotuner tries for ``up_sum_relu``, the row of the table first."""
    row = UP_SUM_RELU[channels_last, itemsize]
    shapes = ((8, 16), (4, 16), (4, 32), (1, 64)) if channels_last else ((2, 64), (1, 256), (1, 128), (4, 32))
    tried = [row]
    for rows, columns in shapes:
        for warps in (4, 8):
            tried += [row._replace(rows=rows, columns=columns, chunks=n, warps=warps) for n in (1, row.chunks)]
    unique = {tuple(c.items()): c for c in (constants(tile, channels) for tile in tried)}
    return list(unique.values())


def channel_block(channels: int, limit: int, least: int = 8) -> int:
    """The power of two up to ``limit`` that pads ``channels`` least; among equals the largest.

    HRNet's widths (18, 36, 48, 72, 144, ...) are none; 48 becomes 3 x 16, 18 becomes 3 x 8.
    """
    least = min(least, limit, 1 << (channels - 1).bit_length())
    blocks = [least << k for k in range(limit.bit_length()) if least << k <= limit]
    return min(blocks, key=lambda b: (-(-channels // b) * b, -b))
