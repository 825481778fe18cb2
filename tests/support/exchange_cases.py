"""The shared list of exchanges that every backend is tested on, and the float64 truth that they are compared with."""

from dataclasses import dataclass, field

import torch

from hrnet_fast.bench import oracle
from hrnet_fast.ops.exchange.call import ExchangeCall, output_memory_format


@dataclass(frozen=True)
class Case:
    """One exchange: the shapes decide, the values are drawn from a fixed seed."""

    name: str
    shapes: tuple  # (channels, height, width) of each input
    weighted: str  # one letter an input: "w" with a weight, "-" without
    out: int  # channels of the result
    size: tuple | None = None
    bias: bool = True
    relu: bool = True
    batch: int = 1
    projection: int = 0  # channels of the projection that follows; 0: none
    layouts: tuple = field(default=("channels_last", "contiguous"))


STAGE4 = ((18, 32, 48), (36, 16, 24), (72, 8, 12), (144, 4, 6))
CASES = [
    Case("stage4", STAGE4, "-www", 18),
    Case("stage4-batch3", STAGE4, "-www", 18, batch=3),
    Case("stage4-36", ((36, 16, 24), (72, 8, 12), (144, 4, 6), (20, 2, 3)), "-www", 36),
    Case("top-34", ((34, 6, 16), (34, 6, 16), (68, 3, 8)), "--w", 34, relu=False, bias=False),
    Case("stage4-48", ((48, 32, 32), (96, 16, 16), (192, 8, 8), (384, 4, 4)), "-www", 48),
    Case("top-down", ((72, 8, 12), (72, 8, 12), (72, 8, 12), (144, 4, 6)), "---w", 72),
    Case("odd", ((17, 33, 45), (34, 17, 23), (5, 9, 12), (7, 5, 6)), "-www", 17),
    Case("one-to-many", ((3, 1, 1), (4, 2, 3), (4, 29, 31)), "ww-", 4),
    Case("single-up", ((8, 5, 7),), "w", 12, size=(11, 16)),
    Case("single-identity", ((5, 6, 7),), "-", 5, bias=False, relu=False),
    Case("single-product", ((40, 9, 20),), "w", 100, relu=False),
    Case("weightless", ((20, 24, 40), (20, 12, 20), (20, 6, 10), (20, 3, 5)), "----", 20, batch=2),
    Case("nearly-same-size", ((6, 19, 37), (6, 18, 36), (9, 19, 35)), "--w", 6),
    Case("one-way-only", ((6, 16, 40), (6, 16, 20), (9, 8, 40)), "--w", 6),
    Case("two-bases", ((10, 12, 18), (33, 12, 18), (7, 6, 9)), "www", 50),
    Case("eight", tuple((4, 16 >> (j % 3), 24 >> (j % 3)) for j in range(8)), "-w-w-w-w", 4),
    Case("head", ((18, 16, 24), (36, 8, 12), (72, 4, 6), (144, 2, 3)), "wwww", 270),
    Case("head-projected", ((18, 16, 24), (36, 8, 12), (72, 4, 6), (144, 2, 3)), "wwww", 270, projection=19),
    Case("projected-36", ((36, 6, 20), (20, 3, 10)), "-w", 36, projection=36),
    Case("projected-odd", ((5, 13, 21), (9, 7, 11)), "-w", 5, projection=67, batch=2),
    Case("projected-no-relu", ((16, 8, 8), (16, 4, 4)), "--", 16, projection=3, relu=False, bias=False),
    Case("wide-row", ((3, 4, 300), (2, 2, 77)), "-w", 3),
    Case("one-channel", ((1, 9, 17), (3, 5, 9)), "-w", 1),
    Case("larger-than-all", ((6, 10, 9), (5, 4, 3)), "-w", 6, size=(23, 31)),
]
MODES = {"bilinear": ("bilinear", False), "align_corners": ("bilinear", True), "nearest": ("nearest", False)}


def make(case: Case, dtype: torch.dtype, layout: str = "channels_last", seed: int = 0, device: str = "cpu"):
    """The arguments of hrnet_fast.exchange for a case: inputs, weights, and a dict of keywords."""
    generator = torch.Generator().manual_seed(seed)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def draw(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)

    inputs = [draw(case.batch, *shape).contiguous(memory_format=memory_format) for shape in case.shapes]
    weights = [draw(case.out, x.shape[1], 1, 1, scale=x.shape[1] ** -0.5) if letter == "w" else None
               for x, letter in zip(inputs, case.weighted, strict=True)]  # fmt: skip
    keywords = {"bias": draw(case.out) if case.bias else None, "size": case.size,
                "activation": "relu" if case.relu else None}  # fmt: skip
    if case.projection:
        weight = draw(case.projection, case.out, 1, 1, scale=case.out**-0.5)
        keywords["projection"] = (weight, draw(case.projection))
    return inputs, weights, keywords


def truth(inputs, weights=None, bias=None, *, size=None, mode="bilinear", align_corners=False, activation="relu",
          projection=None):  # fmt: skip
    """The exchange in float64 (hrnet_fast.bench.oracle), in the memory format that the operator promises."""
    height, width = size or (max(x.shape[2] for x in inputs), max(x.shape[3] for x in inputs))
    call = ExchangeCall(list(inputs), list(weights or [None] * len(inputs)), bias, *(projection or (None, None)), height,
                        width, mode, align_corners, activation == "relu", False)  # fmt: skip
    return oracle.exact(call).contiguous(memory_format=output_memory_format(inputs, height, width))
