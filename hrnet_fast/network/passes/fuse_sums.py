"""Sums of sums become one."""

from dataclasses import replace

from hrnet_fast.network.nodes import Value
from hrnet_fast.network.sums import MAX_UPS, Step, Sum, makers, users


def fuse_sums(steps: list[Step], outputs: list[Value]) -> list[Step]:
    """Sums of sums become one where nobody else reads what is between them; a ReLU ends a sum."""
    count = users(steps, outputs)
    made = makers(steps)
    gone: set[Value] = set()
    for step in steps:
        if not isinstance(step, Sum) or step.output in gone:
            continue
        changed = True
        while changed:
            changed = False
            for value in list(step.identities):
                inner = made.get(value)
                if inner is None or inner.relu or count[value] != 1 or not _agree(step, inner):
                    continue
                at = step.identities.index(value)
                step.identities[at : at + 1] = inner.identities
                step.convs += inner.convs
                step.ups += inner.ups
                gone.add(value)
                changed = True
            for k, up in enumerate(step.ups):
                inner = made.get(up.value)
                # alone, the convolution may belong to a head (_commute)
                alone = len(step.inputs()) == 1
                if up.weight is None and not alone and count[up.value] == 1 and _is_conv1x1(inner):
                    conv = inner.convs[0]
                    step.ups[k] = replace(up, value=conv.value, weight=conv.weight)
                    gone.add(up.value)
                    changed = True
    return [s for s in steps if not (isinstance(s, Sum) and s.output in gone)]


def _agree(outer: Sum, inner: Sum) -> bool:
    kinds = {(up.mode, up.align_corners) for up in (*outer.ups, *inner.ups)}
    return len(kinds) <= 1 and len(outer.ups) + len(inner.ups) <= MAX_UPS


def _is_conv1x1(step: Sum | None) -> bool:
    if step is None:
        return False
    alone = not step.identities and not step.ups and len(step.convs) == 1 and not step.relu
    return alone and step.projection is None and step.convs[0].weight.shape[2] == 1 and step.convs[0].stride == 1
