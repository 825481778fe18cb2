"""BatchNorm with fixed statistics becomes a part of the convolution before it."""

from dataclasses import replace

import torch

from hrnet_fast.network.nodes import Constant, Node, Value
from hrnet_fast.network.sums import Sum

aten = torch.ops.aten
# operator -> (input, weight, bias, mean, var, training, eps)
NORMS = {
    aten.native_batch_norm.default: lambda a: (*a[:6], a[7]),
    aten._native_batch_norm_legit_no_training.default: lambda a: (*a[:5], False, a[6]),
}


def fold_norm(node: Node, made: dict[Value, Sum]) -> Sum | None:
    """The convolution with other weights that a norm behind it makes; None where it is no such norm.

    The convolution without its norm stays a step of its own, for whoever else reads it; if nobody does, ``drop_unread``
    removes it.
    """
    if node.operator not in NORMS:
        return None
    x, gamma, beta, mean, var, training, eps = NORMS[node.operator](node.arguments()[0])
    before, output = made.get(x), node.outputs[0]
    if training or before is None or len(before.convs) != 1 or before.relu or before.identities or before.ups:
        return None
    if any(not isinstance(c, Constant) for c in (mean, var)) or any(isinstance(c, Value) for c in (gamma, beta)):
        return None
    conv = before.convs[0]
    folded = replace(conv.weight, norms=(*conv.weight.norms, (gamma, beta, mean, var, eps)))
    return Sum(output, convs=[replace(conv, weight=folded)])
