"""HRNet's heads: their 1x1 convolution comes before the upsampling, and another one joins behind it."""

from collections.abc import Callable
from dataclasses import replace

import torch

from hrnet_fast.network.nodes import Node, Value
from hrnet_fast.network.passes.drop_unread import drop_unread
from hrnet_fast.network.sums import MAX_UPS, Call, Conv, Step, Sum, Weight, makers, users
from hrnet_fast.network.trees import flatten_arguments

aten = torch.ops.aten
Choice = Callable[[int], int]


def all_streams(channels: int) -> int:
    """Every stream's convolution comes before its upsampling."""
    return MAX_UPS


def no_streams(channels: int) -> int:
    """The convolution over the concatenation, as in the official code."""
    return 0


def commute_heads(steps: list[Step], outputs: list[Value], choose: Choice = all_streams) -> list[Step]:
    """HRNet's heads: a 1x1 convolution of images of different sizes, side by side in their channels.

    Interpolation acts on each channel alone and a 1x1 convolution on each pixel alone: the convolution runs at each
    image's own resolution and the concatenated tensor is never made. A 1x1 convolution behind it joins the same step.

    Args:
        steps: in an order in which they can run; changed.
        outputs: what somebody outside reads.
        choose: of the channels that the convolution makes, how many of the streams get it before their upsampling, the
            lowest resolutions first; the others stay a concatenation.
    """
    for _ in range(2):
        joined: dict[Value, Call] = {}
        count = users(steps, outputs)
        made = makers(steps)
        calls = {s.node.outputs[0]: s.node for s in steps if isinstance(s, Call)}
        gone: set[Value] = set()
        for step in steps:
            if not isinstance(step, Sum) or len(step.convs) != 1 or step.ups or step.identities or step.projection:
                continue
            conv = step.convs[0]
            if conv.weight.shape[2] != 1 or conv.stride != 1 or count[conv.value] != 1:
                continue
            before = made.get(conv.value)
            if conv.value in calls:
                rest = _split_concatenation(step, calls[conv.value], made, gone, count, choose)
                if rest is not None:
                    joined[conv.value] = rest  # in the place of the whole concatenation
            elif before is not None and _can_project(before) and not step.relu:
                _project(step, before, gone)
        replaced = [joined.get(s.outputs()[0], s) for s in steps]
        steps = drop_unread([s for s in replaced if s.outputs()[0] not in gone], outputs)
    return steps


def _split_concatenation(
    step: Sum, cat: Node, made: dict[Value, Sum], gone: set[Value], count: dict, choose: Choice
) -> Call | None:
    """Takes the step apart; the concatenation of the streams that are not moved, where they are upsampled ones."""
    args = cat.arguments()[0]
    if cat.operator is not aten.cat.default or len(args) != 2 or args[1] not in (1, -3):
        return None
    parts = args[0]
    if any(not isinstance(p, Value) or len(p.shape) != 4 for p in parts) or len(parts) > MAX_UPS:
        return None
    if any(p.dtype != step.output.dtype or 0 in p.shape for p in parts):
        return None
    ups = [(made[p].ups[0] if p in made and _is_upsampled(made[p]) else None) for p in parts]
    if len({(u.mode, u.align_corners) for u in ups if u is not None}) != 1:
        return None  # without upsampled parts a convolution of the whole is as good
    upsampled = [k for k, up in enumerate(ups) if up is not None]
    # the streams follow each other from the highest resolution to the lowest
    moved = upsampled[max(0, len(upsampled) - choose(step.convs[0].weight.shape[0])) :]
    stay = [k for k in range(len(parts)) if k not in moved]
    together = len(moved) < len(upsampled)
    if not moved or (together and stay != list(range(stay[0], stay[-1] + 1))):
        return None
    weight, firsts = step.convs[0].weight, [0]
    for part in parts:
        firsts.append(firsts[-1] + part.shape[1])

    def columns(first: int, last: int) -> Weight:
        return replace(weight, inputs=(firsts[first], firsts[last]), with_bias=first == 0)

    step.ups = [replace(ups[k], weight=columns(k, k + 1)) for k in moved]
    gone.update(parts[k] for k in moved if count[parts[k]] == 1)
    gone.add(cat.outputs[0])
    if not together:
        step.convs = [Conv(parts[k], columns(k, k + 1), 1) for k in stay]
        return None
    rest = [parts[k] for k in stay]
    value = rest[0] if len(rest) == 1 else _concatenated(rest)
    step.convs = [Conv(value, columns(stay[0], stay[-1] + 1), 1)]
    return None if len(rest) == 1 else Call(value.node)


def _concatenated(parts: list[Value]) -> Value:
    n, _, h, w = parts[0].shape
    leaves, build = flatten_arguments((parts, 1))
    node = Node(aten.cat.default, leaves, build)
    value = Value((n, sum(p.shape[1] for p in parts), h, w), parts[0].dtype, node)
    node.outputs = [value]
    return value


def _is_upsampled(step: Sum) -> bool:
    alone = not step.identities and not step.convs and len(step.ups) == 1
    return alone and step.ups[0].weight is None and not step.relu


def _can_project(before: Sum) -> bool:
    """Whether the kernel of an exchange can compute a sum and a 1x1 convolution behind it: it has 1x1 weights alone."""
    plain = all(c.weight.shape[2] == 1 and c.stride == 1 for c in before.convs)
    return bool(before.ups) and before.relu and before.projection is None and plain and len(before.inputs()) <= MAX_UPS


def _project(step: Sum, before: Sum, gone: set[Value]) -> None:
    step.projection = step.convs[0].weight
    step.identities, step.convs, step.ups, step.relu = before.identities, before.convs, before.ups, before.relu
    gone.add(before.output)
