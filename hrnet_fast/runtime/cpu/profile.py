"""What each operation of a planned network takes."""

import statistics
from typing import NamedTuple

from hrnet_fast.runtime.cpu.operations import (
    DIRECT,
    PAIRS,
    TILES,
    WINOGRAD2,
    WINOGRAD4,
    Convolution,
    Exchange,
    Image,
    Operation,
    TorchCall,
)

_ALGORITHMS = {
    DIRECT: "direct",
    WINOGRAD2: "Winograd 2x2",
    WINOGRAD4: "Winograd 4x4",
    DIRECT + PAIRS: "direct, pairs",
    WINOGRAD2 + PAIRS: "Winograd 2x2, pairs",
    WINOGRAD4 + PAIRS: "Winograd 4x4, pairs",
    TILES: "tiles",
}


class Timed(NamedTuple):
    """Operations that run together."""

    name: str
    shapes: str  # [channels, height, width] of the inputs and of the output
    algorithm: str
    milliseconds: float
    gflops: float  # billions of multiplications and additions of convolutions a second


class Profile(list[Timed]):
    """The operations of a network in their order; as text a table, the dearest first, equal ones together.

    Where threads run operations side by side, each counts with its share of the threads' time.
    """

    @classmethod
    def of(cls, samples: list[list[tuple[list[Operation], float]]]) -> "Profile":
        """Of some runs: what ran and the seconds that it took, each time in the same order."""
        medians = [statistics.median(seconds) for seconds in zip(*([s for _, s in run] for run in samples))]
        return cls(_timed(operations, seconds) for (operations, _), seconds in zip(samples[0], medians))

    def __str__(self) -> str:
        total = sum(row.milliseconds for row in self) or 1.0
        groups: dict[tuple[str, str, str], list[Timed]] = {}
        for row in self:
            groups.setdefault(row[:3], []).append(row)
        lines = [("ms", "%", "times", "GFLOP/s", "operation", "algorithm", "shapes")]
        for key, rows in sorted(groups.items(), key=lambda g: -sum(r.milliseconds for r in g[1])):
            ms = sum(r.milliseconds for r in rows)
            rate = sum(r.milliseconds * r.gflops for r in rows) / ms if ms else 0.0
            lines.append(
                (
                    f"{ms:.2f}",
                    f"{100 * ms / total:.0f}",
                    str(len(rows)),
                    f"{rate:.0f}" if rate else "-",
                    key[0],
                    key[2],
                    key[1],
                )
            )
        widths = [max(len(line[i]) for line in lines) for i in range(6)]
        cells = [[c.rjust(w) if i < 4 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))] for line in lines]
        return "\n".join("  ".join([*row, line[6]]).rstrip() for row, line in zip(cells, lines))


def _timed(operations: list[Operation], seconds: float) -> Timed:
    flop = sum(_flop(op) for op in operations)
    names, shapes, algorithms = zip(*(_described(op) for op in operations))
    return Timed(
        " | ".join(dict.fromkeys(names)),
        " | ".join(shapes),
        " | ".join(dict.fromkeys(algorithms)),
        1e3 * seconds,
        flop / seconds / 1e9 if seconds else 0.0,
    )


def _described(op: Operation) -> tuple[str, str, str]:
    if isinstance(op, TorchCall):
        return str(op.call.node.operator), "", "torch"
    inputs = " + ".join(_shape(image) for image in op.reads()[: len(getattr(op, "sources", op.reads()))])
    shapes = f"{inputs} -> {_shape(op.output)}" if inputs else _shape(op.output)
    if isinstance(op, Convolution):
        name = f"{op.kernel}x{op.kernel}, stride {op.stride}" + (", + residual" if op.residual is not None else "")
        return name, shapes, _ALGORITHMS[op.algorithm]
    if isinstance(op, Exchange):
        return "exchange" + (", projected" if op.projection is not None else ""), shapes, op.mode
    return "layout", shapes, ""


def _shape(image: Image) -> str:
    return f"[{image.channels}, {image.size[0]}, {image.size[1]}]"


def _flop(op: Operation) -> int:
    if isinstance(op, TorchCall) or not isinstance(op, (Convolution, Exchange)):
        return 0
    n, _, h, w = op.output.buffer.shape
    if isinstance(op, Convolution):
        return 2 * n * h * w * op.output.channels * op.kernel**2 * sum(s.channels for s in op.sources)
    products = sum(image.channels * image.size[0] * image.size[1] for image, weight in op.inputs if weight is not None)
    projection = 0 if op.projection is None else op.output.channels * h * w
    return 2 * n * op.channels * (products + projection)
