"""From operators to steps: each pass is a function of its own, in the order in which they run here."""

from hrnet_fast.network.nodes import Graph
from hrnet_fast.network.passes.commute_heads import Choice, all_streams, commute_heads, no_streams
from hrnet_fast.network.passes.drop_unread import drop_unread
from hrnet_fast.network.passes.fuse_sums import fuse_sums
from hrnet_fast.network.passes.recognize_sums import recognize_sums
from hrnet_fast.network.sums import Step

__all__ = ["Choice", "all_streams", "no_streams", "steps_of"]


def steps_of(graph: Graph, choose: Choice = all_streams) -> list[Step]:
    """A recorded network as steps in an order in which they can run; ``choose``: see ``commute_heads``."""
    outputs = graph.outputs()
    steps = drop_unread(recognize_sums(graph), outputs)
    return commute_heads(fuse_sums(steps, outputs), outputs, choose)
