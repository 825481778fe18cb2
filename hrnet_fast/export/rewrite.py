"""Two algebraic rewrites of a recorded graph: BatchNorm into its convolution, and 1x1 convolutions before upsamplings.

They work on PyTorch's own operators, so that it does not matter whose modules the graph was recorded from.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, fx

from hrnet_fast.folding import fold

_ATEN = torch.ops.aten
_CONV, _NORM, _CAT = _ATEN.conv2d.default, _ATEN.batch_norm.default, _ATEN.cat.default
_ADD, _DROPOUT, _SIZE = _ATEN.add.Tensor, _ATEN.dropout.default, _ATEN.sym_size.int
_FEATURE_DROPOUT = _ATEN.feature_dropout.default
_UPSAMPLINGS = (_ATEN.upsample_bilinear2d.vec, _ATEN.upsample_nearest2d.vec)


class Conv(NamedTuple):
    """The arguments of an aten.conv2d, completed."""

    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def fold_norms(graph: fx.GraphModule) -> int:
    """Folds every BatchNorm with fixed statistics that follows a convolution into it; how many there were."""
    count = 0
    for node in _calls(graph, _NORM):
        conv_node = node.args[0]
        # the sizes of a convolution's result are those of the norm's, too
        if not _is_call(conv_node, _CONV) or node.args[5]:
            continue
        if any(user is not node and not _is_call(user, _SIZE) for user in conv_node.users):
            continue
        conv = read_conv(conv_node)
        values = [None if a is None else constant(graph, a) for a in (conv.weight, conv.bias, *node.args[1:5])]
        if any(value is None for value, a in zip(values, (conv.weight, conv.bias, *node.args[1:5])) if a is not None):
            continue
        weight, bias, gamma, beta, mean, var = values
        weight, bias = fold(weight, bias, mean, var, gamma, beta, node.args[7])
        with graph.graph.inserting_before(conv_node):
            new = _insert_conv(graph, conv, conv.input, weight, bias, f"folded_{count}", conv_node.meta)
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
        conv_node.replace_all_uses_with(new)
        graph.graph.erase_node(conv_node)
        count += 1
    _clean(graph)
    return count


def drop_dropouts(graph: fx.GraphModule) -> None:
    """Removes what dropout leaves behind in evaluation: nothing but a name."""
    for node in [*_calls(graph, _DROPOUT), *_calls(graph, _FEATURE_DROPOUT)]:
        if not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    _clean(graph)


def commute_heads(graph: fx.GraphModule, choose: Callable[[int], int]) -> int:
    """Moves 1x1 convolutions over a concatenation of upsampled streams in front of the upsamplings.

    ``conv(cat(x_0, up(x_1), up(x_2), ...))`` becomes ``conv_0(x_0) + up(conv_1(x_1)) + up(conv_2(x_2)) + ...`` with the
    weight split along its input channels: interpolation acts on each channel alone, and a 1x1 convolution on each pixel
    alone. What is not moved stays a convolution over the concatenation of what is left.

    Args:
        graph: recorded in PyTorch's own operators; changed in place.
        choose: of the channels that a convolution makes, how many streams to move, those that are enlarged most first.

    Returns:
        How many convolutions were taken apart.
    """
    count = 0
    for node in _calls(graph, _CONV):
        conv = read_conv(node)
        if not _is_call(conv.input, _CAT) or _axis(conv.input) != 1 or not _is_1x1(graph, conv):
            continue
        parts = list(conv.input.args[0])
        widths = [part.meta["val"].shape[1] for part in parts]
        moved = [k for k, part in enumerate(parts) if _is_upsampling(part)]
        # the streams follow each other from the highest resolution to the lowest
        moved = moved[max(0, len(moved) - choose(node.meta["val"].shape[1])) :]
        if not moved:
            continue
        _commute(graph, node, conv, widths, moved, count)
        count += 1
    _clean(graph)
    return count


def _commute(graph: fx.GraphModule, node: fx.Node, conv: Conv, widths: list[int], moved: list[int], count: int) -> None:
    parts = list(conv.input.args[0])
    weight = constant(graph, conv.weight)
    bias = None if conv.bias is None else constant(graph, conv.bias)
    pieces = weight.split(widths, dim=1)
    kept = [k for k in range(len(parts)) if k not in moved]
    total = None
    with graph.graph.inserting_before(node):
        if kept:
            rest = parts[kept[0]]
            if len(kept) > 1:
                rest = graph.graph.call_function(_CAT, ([parts[k] for k in kept], 1))
                rest.meta["val"] = _wider(conv.input.meta["val"], sum(widths[k] for k in kept))
            joined = torch.cat([pieces[k] for k in kept], 1)
            total = _insert_conv(graph, conv, rest, joined, bias, f"commuted_{count}_same", node.meta)
        for k in moved:
            up = parts[k]
            # interpolation weights sum to 1, so that the bias may go through any of the upsamplings
            own = bias if total is None else None
            z = _insert_conv(graph, conv, up.args[0], pieces[k], own, f"commuted_{count}_{k}", node.meta)
            z.meta["val"] = _wider(up.args[0].meta["val"], weight.shape[0])
            enlarged = graph.graph.call_function(up.target, (z, *up.args[1:]), dict(up.kwargs))
            enlarged.meta["val"] = node.meta["val"]
            total = enlarged if total is None else graph.graph.call_function(_ADD, (total, enlarged))
            total.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(total)
    graph.graph.erase_node(node)


def constant(graph: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The value of a node that depends on parameters and buffers only; None where it depends on an input."""
    if node.op == "get_attr":
        value = graph
        for name in node.target.split("."):
            value = getattr(value, name)
        return value.detach()
    if node.op != "call_function":
        return None
    values = {n: constant(graph, n) for n in node.all_input_nodes}
    if not values or any(v is None for v in values.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    with torch.no_grad():
        return node.target(*args, **kwargs)


def read_conv(node: fx.Node) -> Conv:
    """The arguments of an aten.conv2d node."""
    args = [*node.args, *[None] * (7 - len(node.args))]
    ones = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    found = [node.kwargs.get(name, value) for name, value in ones.items()]
    return Conv(*args[:3], *(default if given is None else given for given, default in zip(args[3:], found)))


def _calls(graph: fx.GraphModule, target) -> list[fx.Node]:
    return graph.graph.find_nodes(op="call_function", target=target)


def _is_call(node, target) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def _is_upsampling(node: fx.Node) -> bool:
    return any(_is_call(node, target) for target in _UPSAMPLINGS)


def _axis(cat: fx.Node) -> int:
    axis = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
    return axis if axis >= 0 else axis + cat.meta["val"].dim()


def _is_1x1(graph: fx.GraphModule, conv: Conv) -> bool:
    weight = constant(graph, conv.weight)
    bias_known = conv.bias is None or constant(graph, conv.bias) is not None
    return (
        weight is not None
        and bias_known
        and tuple(weight.shape[2:]) == (1, 1)
        and list(conv.stride) == [1, 1]
        and list(conv.padding) == [0, 0]
        and conv.groups == 1
    )


def _insert_conv(graph: fx.GraphModule, conv: Conv, x: fx.Node, weight, bias, name: str, meta: dict) -> fx.Node:
    """A convolution with new weights and the geometry of another."""
    nodes = []
    for kind, value in (("weight", weight), ("bias", bias)):
        if value is None:
            nodes.append(None)
            continue
        key = f"hrnet_fast_{name}_{kind}"
        graph.register_buffer(key, value.contiguous())
        nodes.append(graph.graph.get_attr(key))
    new = graph.graph.call_function(
        _CONV, (x, *nodes, list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
    )
    new.meta["val"] = meta["val"]
    return new


def _wider(value: Tensor, channels: int) -> Tensor:
    """A fake tensor of the same shape with other channels."""
    return value.new_empty((value.shape[0], channels, *value.shape[2:]))


def _clean(graph: fx.GraphModule) -> None:
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
