"""The fast computation of an exchange unit, whoever built it: BatchNorm folded where it can be, one exchange each.

A unit is given as its rows, as in the attribute ``fuse_layers`` of the official code: an nn.ModuleList of outputs I,
each an nn.ModuleList of paths J from the streams. Up paths (J > I) are nn.Sequential(1x1 convolution, norm[,
upsampling]), down paths (J < I) any module, folded where they are the official chains of strided convolutions, and the
diagonal is None, an nn.Identity or an empty nn.Sequential.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.nn.folds import FoldCache, fold_modules, why_not_fold, why_not_foldable
from hrnet_fast.nn.module_fingerprint import altered
from hrnet_fast.nn.prepared_conv import PreparedConv
from hrnet_fast.nn.side_by_side import Chains, Step, chains, may_join
from hrnet_fast.ops.exchange.api import exchange_group


class _Down(NamedTuple):
    """All strided chains that leave one stream, with BatchNorm folded; the biases of their last steps are elsewhere."""

    first: PreparedConv  # the first steps of all of them, side by side in the output channels
    apart: list[PreparedConv]  # the same steps, each by itself
    targets: list[int]  # the output that each chain leads to
    widths: list[int]  # channels of each chain in the result of ``first``
    rest: list[list[PreparedConv]]  # the further steps of each chain

    def starts(self, x: Tensor) -> list[Tensor]:
        """The results of the first steps.

        CPUs read the stream once for all of them. On GPUs each by itself has its ReLU in its epilogue, and is dense:
        slices of a result would be copied before they are read, and a ReLU on some channels is a launch of its own.
        """
        if x.is_cuda:
            return [conv(x) for conv in self.apart]
        return list(self.first(x).split(self.widths, dim=1))


class Plan(NamedTuple):
    """An exchange unit with BatchNorm folded."""

    down: list[_Down | None]  # per stream
    unfolded: list[tuple[int, int]]  # (output, stream) of the down paths that are called as they are
    up: list[tuple[list[Tensor], Tensor | None]]  # per output: weights [C_i, C_j, 1, 1] of lower streams; bias [C_i]
    # of these and of the last steps of the strided chains, which on GPUs would be a launch for each


def why_not_up(path: nn.Module | None) -> str | None:
    """Why a path is not a 1x1 convolution with a norm that can be folded; None where it is."""
    if not isinstance(path, nn.Sequential) or len(path) < 2:
        return f"it is {_names(path)}, not a convolution with a norm"
    return _why_not_conv(path[0], 1, 1, 0) or why_not_foldable(path[0], path[1])


def why_not_down(path: nn.Module | None) -> str | None:
    """Why a path is not the official chain of strided convolutions, norms and ReLUs; None where it is."""
    steps = list(path) if isinstance(path, nn.Sequential) else []
    for k, step in enumerate(steps):
        last = k == len(steps) - 1
        if not isinstance(step, nn.Sequential) or len(step) != (2 if last else 3):
            return f"step {k} is {_names(step)}"
        if not last and type(step[2]) is not nn.ReLU:
            return f"step {k} ends with {type(step[2]).__name__}"
        reason = _why_not_conv(step[0], 3, 2, 1) or why_not_foldable(step[0], step[1])
        if reason is not None:
            return f"step {k}: {reason}"
    return None if steps else f"it is {_names(path)}, not a chain of strided convolutions"


def is_identity(path: nn.Module | None) -> bool:
    """Whether a path on the diagonal leaves its stream as it is."""
    return path is None or type(path) is nn.Identity or (isinstance(path, nn.Sequential) and len(path) == 0)


def is_upsampling(module: nn.Module) -> bool:
    """Whether it has the settings of nn.Upsample (OpenMMLab has a class of its own)."""
    return hasattr(module, "scale_factor") and hasattr(module, "mode")


def current_plan(rows: nn.ModuleList, folds: FoldCache) -> Plan | None:
    """The folded unit, kept in ``folds``, whose ``tried`` was asked just before; None where it must run unfolded.

    That is so in training mode, where the parameters need gradients, where a norm uses the statistics of the batch, and
    where an inner module has hooks.
    """
    return folds.current(rows, lambda: _foldable(rows), lambda: _fold(rows), watched=True)


def exchange_streams(
    rows: nn.ModuleList,
    plan: Plan | None,
    folds: FoldCache,
    streams: list[Tensor],
    mode: str,
    align_corners: bool,
) -> list[Tensor]:
    """What the unit makes of its streams; with plan None, norms use their own statistics, or those of the batch.

    Args:
        rows: the unit.
        plan: from ``current_plan`` just now.
        folds: the unit's cache.
        streams: [N, C_j, H_j, W_j], highest resolution first.
        mode: of the upsampling, which always leads to the size of the higher stream.
        align_corners: of the upsampling.

    Returns:
        One stream per row, of the shape of streams[I].
    """
    weights: list = [None] * len(rows)
    biases: list = [None] * len(rows)
    if plan is None:
        inputs = _unfolded(rows, streams, folds)
    else:
        inputs = _down_streams(rows, plan, streams)
        for i, (up, bias) in enumerate(plan.up):
            weights[i], biases[i] = [None] * len(inputs[i]) + up, bias
            inputs[i] += streams[i + 1 :]
    group = [(inputs[i], weights[i], biases[i], tuple(streams[i].shape[2:])) for i in range(len(rows))]
    return exchange_group(group, mode, align_corners)


def _unfolded(rows: nn.ModuleList, streams: list[Tensor], folds: FoldCache) -> list[list[Tensor]]:
    # The stream's own branch comes first, because the result takes the layout of the first full-size input.
    inputs = [[x if row[i] is None else row[i](x)] for i, (row, x) in enumerate(zip(rows, streams))]
    joined: list[Chains | None] = [None] * len(streams)
    if all(map(may_join, streams)):
        joined = folds.structure.get(rows, lambda: _chains(rows))
    for j, (x, together) in enumerate(zip(streams, joined, strict=True)):
        found = together(x) if together is not None and together.serve() else {}
        for i, row in enumerate(rows):
            if i != j:
                inputs[i].append(found[i] if i in found else _called(row[j], x, j > i))
    return inputs


def _called(path: nn.Module, x: Tensor, up: bool) -> Tensor:
    if up and isinstance(path, nn.Sequential) and is_upsampling(path[-1]):  # which the exchange does
        return path[1](path[0](x))
    return path(x)


def _chains(rows: nn.ModuleList) -> list[Chains]:
    """Per stream, the paths to other outputs that can run side by side in training."""
    found = []
    for j in range(len(rows[0])):
        steps: dict[int, list[Step]] = {}
        for i, row in enumerate(rows):
            path = row[j]
            if i == j or altered(path.modules()):
                continue
            if i < j and why_not_up(path) is None and (len(path) == 2 or is_upsampling(path[-1])):
                steps[i] = [Step(path[0], path[1], False)]
            elif i > j and why_not_down(path) is None:
                steps[i] = [Step(step[0], step[1], len(step) > 2) for step in path]
        found.append(chains(steps))
    return found


def _down_streams(rows: nn.ModuleList, plan: Plan, streams: list[Tensor]) -> list[list[Tensor]]:
    inputs = [[streams[i]] for i in range(len(rows))]
    for x, down in zip(streams, plan.down, strict=True):
        if down is None:
            continue
        for part, target, rest in zip(down.starts(x), down.targets, down.rest, strict=True):
            for conv in rest:
                part = conv(part)
            inputs[target].append(part)
    for i, j in plan.unfolded:
        inputs[i].append(rows[i][j](streams[j]))
    return inputs


def _foldable(rows: nn.ModuleList) -> bool:
    if not all(is_identity(row[i]) for i, row in enumerate(rows)):
        return False
    ups = [path for i, row in enumerate(rows) for path in list(row)[i + 1 :]]
    downs = [path for i, row in enumerate(rows) for path in list(row)[:i] if why_not_down(path) is None]
    if any(why_not_up(path) is not None for path in ups):
        return False
    pairs = ups + [step for path in downs for step in path]
    return all(why_not_fold(pair[0], pair[1]) is None for pair in pairs)


def _fold(rows: nn.ModuleList) -> Plan:
    unfolded = [(i, j) for i, row in enumerate(rows) for j in range(i) if why_not_down(row[j]) is not None]
    down, biases = [], [[] for _ in rows]
    for j in range(len(rows[0])):
        targets = [i for i in range(j + 1, len(rows)) if (i, j) not in unfolded]
        chains = [[fold_modules(step[0], step[1]) for step in rows[i][j]] for i in targets]
        for i, chain in zip(targets, chains):
            biases[i].append(chain[-1][1])
        down.append(_fold_down(targets, chains) if targets else None)
    up = []
    for i, row in enumerate(rows):
        folds = [fold_modules(path[0], path[1]) for path in list(row)[i + 1 :]]
        biases[i] += [bias for _, bias in folds]
        up.append(([w for w, _ in folds], _total(biases[i]) if biases[i] else None))
    return Plan(down, unfolded, up)


def _total(biases: list[Tensor]) -> Tensor:
    # added up in float32: the sum is rounded once
    return sum(b.to(torch.promote_types(b.dtype, torch.float32)) for b in biases).to(biases[0].dtype)


def _fold_down(targets: list[int], chains: list[list[tuple[Tensor, Tensor]]]) -> _Down:
    # The chain without further steps comes first, because the ReLU covers all channels from some channel on.
    single = [len(chain) == 1 for chain in chains]  # has no ReLU behind it, whatever follows a step has one
    weight = torch.cat([chain[0][0] for chain in chains])
    bias = torch.cat([torch.zeros_like(c[0][1]) if alone else c[0][1] for c, alone in zip(chains, single)])
    widths = [chain[0][0].shape[0] for chain in chains]
    plain = widths[0] if single[0] else 0
    first = _strided(weight, bias, plain if plain < sum(widths) else None)
    apart = [
        _strided(w, None if alone else b, None if alone else 0)
        for w, b, alone in zip(weight.split(widths), bias.split(widths), single)
    ]
    rest = [
        [
            _strided(w, b, 0) if k < len(chain) - 1 else _strided(w, None, None)
            for k, (w, b) in enumerate(chain)
            if k > 0
        ]
        for chain in chains
    ]
    return _Down(first, apart, targets, widths, rest)


def _strided(weight: Tensor, bias: Tensor | None, relu_from: int | None) -> PreparedConv:
    return PreparedConv(weight, bias, (2, 2), (1, 1), relu_from=relu_from)


def _why_not_conv(conv: nn.Module, kernel: int, stride: int, padding: int) -> str | None:
    expected = {
        "kernel_size": (kernel,) * 2,
        "stride": (stride,) * 2,
        "padding": (padding,) * 2,
        "dilation": (1, 1),
        "groups": 1,
    }
    for name, value in expected.items():
        if getattr(conv, name, value) != value:
            return f"the convolution has {name} {getattr(conv, name)}, expected {value}"
    return None


def _names(path: nn.Module | None) -> str:
    return ", ".join(type(m).__name__ for m in path) if isinstance(path, nn.Sequential) else type(path).__name__
