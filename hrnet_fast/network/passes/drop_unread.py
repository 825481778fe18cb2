"""What nobody reads is not computed."""

from hrnet_fast.network.nodes import Value
from hrnet_fast.network.sums import Step


def drop_unread(steps: list[Step], outputs: list[Value]) -> list[Step]:
    """The steps that a result depends on."""
    kept: list[Step] = []
    read = set(outputs)
    for step in reversed(steps):
        if any(v in read for v in step.outputs()):
            kept.append(step)
            read.update(step.inputs())
    return kept[::-1]
