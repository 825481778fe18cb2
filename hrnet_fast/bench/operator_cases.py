"""Exchanges that ask for everything the operator promises: odd sizes, holes in the weights, slices, empty batches."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.ops.exchange.call import ExchangeCall

MODES = (("nearest", False), ("bilinear", False), ("bilinear", True))
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True)
class Shape:
    """The sizes of one exchange, and which of its optional parts are there."""

    name: str
    inputs: tuple[tuple[int, int, int], ...]  # (C_j, H_j, W_j)
    channels: int  # C_out
    size: tuple[int, int]
    weighted: tuple[int, ...] | None = None  # which inputs have a weight; None: all but the first
    batch: int = 1
    bias: bool = True
    relu: bool = True
    projection: int = 0  # C_p; 0: none
    projection_bias: bool = True
    sliced: bool = False  # inputs are slices of larger tensors


def _streams(c: int, h: int, w: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((c << j, h >> j, w >> j) for j in range(4))


SHAPES = (
    Shape("stage-4 c=18", _streams(18, 32, 48), 18, (32, 48)),
    Shape("stage-4 c=48", _streams(48, 16, 24), 48, (16, 24)),
    Shape("batch of 3, c=32", _streams(32, 16, 16), 32, (16, 16), batch=3),
    Shape("V2 head", _streams(18, 24, 40), 270, (24, 40), weighted=(0, 1, 2, 3), projection=19),
    Shape(
        "V2 head, no biases",
        _streams(16, 8, 16),
        240,
        (8, 16),
        weighted=(0, 1, 2, 3),
        bias=False,
        projection=7,
        projection_bias=False,
    ),
    Shape("odd sizes", ((5, 33, 45), (7, 17, 23), (9, 5, 7)), 5, (33, 45)),
    Shape("photograph's streams", ((18, 107, 160), (36, 54, 80), (72, 27, 40), (144, 14, 20)), 18, (107, 160)),
    Shape("one pixel", ((6, 13, 9), (11, 1, 1)), 6, (13, 9)),
    Shape("only smaller inputs", ((4, 7, 26), (9, 3, 21)), 12, (46, 46), weighted=(0, 1)),
    Shape("no weights", ((17, 12, 20), (17, 6, 10), (17, 3, 5)), 17, (12, 20), weighted=()),
    Shape("every other weight", ((8, 12, 20), (8, 6, 10), (8, 12, 20), (3, 4, 5)), 8, (12, 20), weighted=(1, 3)),
    Shape("8 inputs", tuple((3 + j, 9, 11 - j) for j in range(8)), 10, (9, 11), weighted=tuple(range(8))),
    Shape("one 1x1 convolution", ((31, 19, 21),), 33, (19, 21), weighted=(0,)),
    Shape("no bias, no ReLU", _streams(18, 16, 8), 18, (16, 8), bias=False, relu=False),
    Shape("sliced inputs", ((18, 15, 22), (36, 8, 11)), 18, (15, 22), sliced=True, batch=2),
    Shape("empty batch", _streams(18, 8, 8), 18, (8, 8), batch=0),
)


def calls(dtype: torch.dtype, device: str = "cpu") -> Iterator[tuple[str, ExchangeCall]]:
    """Every shape in every mode and layout, with a name each. The values depend on the shape alone."""
    for index, shape in enumerate(SHAPES):
        for (mode, corners), layout in itertools.product(MODES, LAYOUTS):
            name = f"{shape.name}, {mode}{' align_corners' if corners else ''}"
            name += ", channels_last" if layout == torch.channels_last else ", contiguous"
            yield name, _call(shape, index, mode, corners, layout, dtype, device)


def _call(shape: Shape, seed: int, mode: str, corners: bool, layout, dtype, device: str) -> ExchangeCall:
    generator = torch.Generator().manual_seed(seed)

    def random(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=generator) * scale).to(device, dtype)

    def image(c: int, h: int, w: int) -> Tensor:
        if shape.sliced:
            return random(shape.batch, c + 2, h + 1, w + 3).contiguous(memory_format=layout)[:, 1:-1, 1:, 2:-1]
        return random(shape.batch, c, h, w).contiguous(memory_format=layout)

    weighted = range(1, len(shape.inputs)) if shape.weighted is None else shape.weighted
    return ExchangeCall(
        inputs=[image(*sizes) for sizes in shape.inputs],
        weights=[
            random(shape.channels, c, scale=c**-0.5) if j in weighted else None
            for j, (c, _, _) in enumerate(shape.inputs)
        ],
        bias=random(shape.channels) if shape.bias else None,
        projection=random(shape.projection, shape.channels, scale=shape.channels**-0.5) if shape.projection else None,
        projection_bias=random(shape.projection) if shape.projection and shape.projection_bias else None,
        height=shape.size[0],
        width=shape.size[1],
        mode=mode,
        align_corners=corners,
        relu=shape.relu,
        allow_tf32=False,
    )
