"""Runs changed programs: ``python tests/fuzz_programs.py SEED COUNT``; prints how many ran and how many were refused.

The programs come from the planner, for small networks, and from convolutions of random shape; each of their tensors is
as large as it must be, and no larger. A word becomes an extreme or a neighbour, two words change places, a program is
cut, a tensor is cut or of another dtype.
"""

import faulthandler
import random
import sys

import torch
from torch import nn

from hrnet_fast.network.integers import Factor, Rounding
from hrnet_fast.network.nodes import Constants
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.network.sums import Sum
from hrnet_fast.runtime.cpu import steps, tiled_steps
from hrnet_fast.runtime.cpu.encode import DTYPES, Program
from hrnet_fast.runtime.cpu.operations import WINOGRAD2, WINOGRAD4
from hrnet_fast.runtime.cpu.packed_weights import PackedWeights
from hrnet_fast.runtime.cpu.tiled_encode import TiledProgram

EXTREMES = [0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 64, 255, 1 << 16, 1 << 31, (1 << 31) - 1, (1 << 32) + 1, 1 << 33]
EXTREMES += [1 << 61, 1 << 62, (1 << 63) - 1, -1, -2, -(1 << 31), -(1 << 63)]
OTHER_DTYPES = [
    torch.int8,
    torch.bool,
    torch.int16,
    torch.float64,
    torch.uint8,
    torch.float16,
    torch.bfloat16,
    torch.float32,
]


class Branches(nn.Module):
    """Convolutions of both strides, side by side, added, concatenated, and an exchange of three sizes."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, 2, 1)
        self.same, self.down = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width + 1, 3, 2, 1)
        self.point, self.last = nn.Conv2d(width + 1, width, 1), nn.Conv2d(2 * width, 5, 1)

    def forward(self, image):
        x = self.first(image).relu()
        low = self.point(self.down(x).relu())
        up = nn.functional.interpolate(low, size=x.shape[2:], mode="bilinear")
        x = ((self.same(x) + x).relu() + up).relu()
        return self.last(torch.cat([x, up], 1)), low


def of_a_network(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, tiles: bool = False, integers=False):
    """The programs of a network that run one after the other, with one set of tensors."""
    graph = record(module.eval(), (torch.empty(shape),), constants=Constants())
    if tiles:
        found = steps_of(graph)
        terms = [t for s in found if isinstance(s, Sum) for t in (*s.convs, *s.ups) if t.weight is not None]
        factors = {t.weight: Factor(Rounding(0.02, 128), torch.zeros(t.value.shape[1])) for t in terms}
        lowered = tiled_steps.lower(graph, found, None, factors if integers else None)
        program = TiledProgram(lowered, PackedWeights(slab=0), dtype)
    else:
        program = Program(steps.lower(graph, steps_of(graph), True, False), PackedWeights(slab=0), dtype)
    external = [torch.rand(b.shape).to(b.dtype(dtype)) for b in program._external]
    return [
        (p.steps, program.arena_bytes, [*program._blobs, *external]) for p in program._pieces if p.steps is not None
    ]


def of_a_convolution(chance: random.Random):
    """One convolution of a random shape; its constants and images lie in tensors of their own."""
    number, dtypes = chance.randrange, list(DTYPES)
    algorithm = number(3)
    kernel, stride = (3, 1) if algorithm else (chance.choice([1, 1, 3, 3, 5, 7, 15]), chance.choice([1, 2]))
    n, h, w, c_out = number(1, 3), number(1, 40), number(1, 40), number(1, 30)
    sources = 1 if algorithm else number(1, 5)
    channels = [number(1, 20) for _ in range(sources)]
    packed = algorithm if algorithm != WINOGRAD2 or number(2) else WINOGRAD4
    size = torch.ops.hrnet_fast.packed_convolution_size(packed, c_out, sum(channels), kernel)
    others = [torch.rand(size), torch.rand(c_out), torch.rand(sum(channels))]
    words = [algorithm, packed, n, h, w, c_out, kernel, stride, number(c_out + 1), sources]

    def planes(c: int, height: int, width: int, dtype: torch.dtype) -> None:
        between = c * height * width + number(3)
        others.append(torch.rand((n - 1) * between + c * height * width).to(dtype))
        words.extend([DTYPES[dtype], c, between, len(others), 0])

    for c in channels:
        planes(c, h, w, chance.choice(dtypes))
    of_output = (c_out, -(-h // stride), -(-w // stride), chance.choice(dtypes))
    planes(*of_output)
    planes(*of_output)
    if number(2):
        words[-2:] = -1, 0
    words += [1, 0, 2, 0, *((3, 0) if algorithm == 0 and number(2) else (-1, 0))]
    return torch.tensor([1, len(words) + 1, 1, *words]), 0, others


def changed(words: torch.Tensor, arena: torch.Tensor, others: list, chance: random.Random):
    words, others = words.clone(), list(others)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        kind, at = chance.randrange(12), chance.randrange(len(words))
        if kind < 4:
            words[at] = chance.choice(EXTREMES)
        elif kind < 7:
            words[at] = max(
                -(1 << 63), min((1 << 63) - 1, int(words[at]) + chance.choice([-8, -4, -2, -1, 1, 2, 4, 8]))
            )
        elif kind == 7:
            other = chance.randrange(len(words))
            words[[at, other]] = words[[other, at]]
        elif kind == 8:
            words = words[: at + 1]
        else:
            k = chance.randrange(len(others))
            flat = others[k].flatten()
            if kind == 9:
                others[k] = flat[: chance.randrange(len(flat) + 1)].clone()
            elif kind == 10:
                others[k] = flat.to(chance.choice(OTHER_DTYPES))
            else:
                arena = arena[: chance.randrange(len(arena) + 1)].clone()
    return words, arena, others


def main(seed: int, count: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    chance = random.Random(seed)
    shape = (1, 3, 20, 28)
    networks = [p for width in (2, 7) for dtype in DTYPES for p in of_a_network(Branches(width), shape, dtype)]
    tiled = [
        p
        for width in (2, 7, 40)
        for dtype in (torch.bfloat16, torch.float32)  # of the images that come and go; tiles know no float16
        for integers in (False, True)
        for p in of_a_network(Branches(width), shape, dtype, True, integers)
    ]
    networks += -(-len(networks) // len(tiled)) * tiled
    ran = refused = 0
    faulthandler.enable()
    for case in range(count):
        words, bytes_of_arena, others = chance.choice(networks) if chance.randrange(2) else of_a_convolution(chance)
        if case % 8:
            words, arena, others = changed(words, torch.empty(bytes_of_arena, dtype=torch.uint8), others, chance)
        else:
            arena = torch.empty(bytes_of_arena, dtype=torch.uint8)
        print(f"seed {seed}, program {case}", end="\r", file=sys.stderr)  # what a signal leaves behind
        try:
            torch.ops.hrnet_fast.run_program(words, arena, others)
            ran += 1
        except RuntimeError:
            if not case % 8:
                raise  # it was not changed
            refused += 1
    print(ran, refused)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
