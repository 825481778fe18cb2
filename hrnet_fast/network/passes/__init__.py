"""From operators to steps: each pass is a function of its own, in the order in which they run here."""

from collections.abc import Callable

from hrnet_fast.network.nodes import Graph, Value
from hrnet_fast.network.passes.commute_heads import Choice, all_streams, commute_heads, no_streams
from hrnet_fast.network.passes.drop_unread import drop_unread
from hrnet_fast.network.passes.fuse_sums import fuse_sums
from hrnet_fast.network.passes.recognize_sums import recognize_sums
from hrnet_fast.network.sums import Step

__all__ = ["PASSES", "Choice", "all_streams", "no_streams", "steps_of"]

# in this order, each given all steps and the values that the network returns
PASSES: tuple[Callable[[list[Step], list[Value]], list[Step]], ...] = (drop_unread, fuse_sums)


def steps_of(graph: Graph, choose: Choice = all_streams) -> list[Step]:
    """A recorded network as steps in an order in which they can run; ``choose``: see ``commute_heads``."""
    outputs = graph.outputs()
    steps = recognize_sums(graph)
    for rewrite in PASSES:
        steps = rewrite(steps, outputs)
    return commute_heads(steps, outputs, choose)
