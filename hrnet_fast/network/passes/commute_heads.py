"""HRNet's heads: their 1x1 convolution comes before the upsampling, and another one joins behind it."""

from dataclasses import replace

import torch

from hrnet_fast.network.nodes import Node, Value
from hrnet_fast.network.passes.drop_unread import drop_unread
from hrnet_fast.network.sums import MAX_UPS, Call, Conv, Step, Sum, makers, users

aten = torch.ops.aten


def commute_heads(steps: list[Step], outputs: list[Value]) -> list[Step]:
    """HRNet's heads: a 1x1 convolution of images of different sizes, side by side in their channels.

    Interpolation acts on each channel alone and a 1x1 convolution on each pixel alone: the convolution runs at each
    image's own resolution and the concatenated tensor is never made. A 1x1 convolution behind it joins the same step.
    """
    for _ in range(2):
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
                _split_concatenation(step, calls[conv.value], made, gone, count)
            elif before is not None and _can_project(before) and not step.relu:
                _project(step, before, gone)
        steps = drop_unread([s for s in steps if s.outputs()[0] not in gone], outputs)
    return steps


def _split_concatenation(step: Sum, cat: Node, made: dict[Value, Sum], gone: set[Value], count: dict) -> None:
    args = cat.arguments()[0]
    if cat.operator is not aten.cat.default or len(args) != 2 or args[1] not in (1, -3):
        return
    parts = args[0]
    if any(not isinstance(p, Value) or len(p.shape) != 4 for p in parts) or len(parts) > MAX_UPS:
        return
    if any(p.dtype != step.output.dtype or 0 in p.shape for p in parts):
        return
    ups = [(made[p].ups[0] if p in made and _is_upsampled(made[p]) else None) for p in parts]
    if len({(u.mode, u.align_corners) for u in ups if u is not None}) != 1:
        return  # without upsampled parts a convolution of the whole is as good
    conv, first = step.convs[0], 0
    convs, terms = [], []
    for part, up in zip(parts, ups, strict=True):
        weight = replace(conv.weight, inputs=(first, first + part.shape[1]), with_bias=first == 0)
        first += part.shape[1]
        if up is None:
            convs.append(Conv(part, weight, 1))
        else:
            terms.append(replace(up, weight=weight))
            if count[part] == 1:
                gone.add(part)
    step.convs, step.ups = convs, terms
    gone.add(cat.outputs[0])


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
