"""Operators as sums: convolutions, additions, ReLUs and enlargements; all others stay calls of torch's operators."""

import torch

from hrnet_fast.network.nodes import Constant, Graph, Node, Value, needed
from hrnet_fast.network.passes.fold_norms import fold_norm
from hrnet_fast.network.sums import Call, Conv, Step, Sum, Up, Weight

aten = torch.ops.aten


def recognize_sums(graph: Graph) -> list[Step]:
    """Each operator that a result depends on as one step; norms are folded into the convolutions before them."""
    made: dict[Value, Sum] = {}
    steps: list[Step] = []
    for node in needed(graph):
        found = _sum_of(node, made)
        if found is None:
            steps.append(Call(node))
        else:
            made[found.output] = found
            steps.append(found)
    return steps


def _alike(node: Node, output: Value) -> bool:
    """Whether all tensors have one floating dtype: kernels know no mixtures."""
    dtypes = {x.dtype for x in node.leaves if isinstance(x, (Value, Constant))}
    return dtypes == {output.dtype} and output.dtype.is_floating_point


def _sum_of(node: Node, made: dict[Value, Sum]) -> Sum | None:
    args, kwargs = node.arguments()
    output = node.outputs[0]
    if kwargs or output is None or len(output.shape) != 4 or 0 in output.shape or not _alike(node, output):
        return None
    operator = node.operator
    if operator is aten.convolution.default:
        return _convolution(args, output)
    if operator is aten.relu.default and isinstance(args[0], Value):
        return Sum(output, [args[0]], relu=True)
    if operator is aten.add.Tensor and len(args) == 2:
        a, b = args
        same = isinstance(a, Value) and isinstance(b, Value) and a.shape == b.shape
        return Sum(output, [a, b]) if same else None
    if operator in _UPSAMPLING and isinstance(args[0], Value):
        mode = _UPSAMPLING[operator]
        if output.shape[2:] == args[0].shape[2:]:
            return Sum(output, [args[0]])
        enlarges = all(o >= i for o, i in zip(output.shape[2:], args[0].shape[2:]))
        scales = args[3:] if mode == "bilinear" else args[2:]
        sizes = zip(output.shape[2:], args[0].shape[2:], scales)
        # a factor that is not the ratio of the sizes makes torch take other source pixels
        if not enlarges or any(s is not None and o != i * s for o, i, s in sizes):
            return None
        return Sum(output, ups=[Up(args[0], None, mode, mode == "bilinear" and bool(args[2]))])
    return fold_norm(node, made)


_UPSAMPLING = {aten.upsample_bilinear2d.default: "bilinear", aten.upsample_nearest2d.default: "nearest"}


def _convolution(args: tuple, output: Value) -> Sum | None:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if not isinstance(x, Value) or not isinstance(weight, Constant) or isinstance(bias, Value):
        return None
    _, _, kh, kw = weight.shape
    centred = kh == kw and kh % 2 == 1 and kh < 16 and list(padding) == [kh // 2, kw // 2]
    plain = list(dilation) == [1, 1] and not transposed and groups == 1 and list(stride) in ([1, 1], [2, 2])
    return Sum(output, convs=[Conv(x, Weight(weight, bias), stride[0])]) if centred and plain else None
