"""From operators to steps: each pass is a function of its own, in the order in which they run here."""

from hrnet_fast.network.nodes import Graph
from hrnet_fast.network.passes.commute_heads import commute_heads
from hrnet_fast.network.passes.drop_unread import drop_unread
from hrnet_fast.network.passes.fuse_sums import fuse_sums
from hrnet_fast.network.passes.recognize_sums import recognize_sums
from hrnet_fast.network.sums import Step


def steps_of(graph: Graph) -> list[Step]:
    """A recorded network as steps in an order in which they can run."""
    outputs = graph.outputs()
    steps = drop_unread(recognize_sums(graph), outputs)
    return commute_heads(fuse_sums(steps, outputs), outputs)
