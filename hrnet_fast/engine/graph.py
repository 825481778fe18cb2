"""A recorded network in the terms of the engine: sums of convolutions and upsampled images, and what is neither.

Everything that HRNet does between its resolutions is one formula (the README's "one idea"), and a convolution with its
BatchNorm, residual and ReLU is the same without the upsampling: ``Sum``. Found in the graph of operators, it does not
matter who wrote the modules, or how.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hrnet_fast.engine.tape import Constant, Node, Tape, Value
from hrnet_fast.folding import fold

aten = torch.ops.aten
MAX_UPS = 7  # of a sum: the operator takes eight inputs, one of them what is not upsampled


@dataclass(frozen=True, eq=False)
class Weight:
    """A convolution's weight and bias with the norms behind it folded in; ``inputs``: its input channels from, to."""

    weight: Constant
    bias: Constant | None
    norms: tuple[tuple[Constant | None, Constant | None, Constant, Constant, float], ...] = ()
    inputs: tuple[int, int] | None = None
    with_bias: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Output channels, input channels, kernel."""
        c_out, c_in, k, _ = _shape(self.weight)
        return c_out, c_in if self.inputs is None else self.inputs[1] - self.inputs[0], k

    def kernel(self) -> Tensor:
        """[c_out, c_in, k, k] in float32."""
        weight = self._folded(self.weight.value().detach())[0]
        return weight if self.inputs is None else weight[:, self.inputs[0] : self.inputs[1]]

    def shift(self) -> Tensor | None:
        """The bias [c_out] in float32, or None."""
        # the bias does not depend on the weight: without its elements folding costs nothing
        return self._folded(self.weight.value().detach()[:, :0])[1] if self.with_bias else None

    def _folded(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        weight = weight.to(torch.float32)
        bias = None if self.bias is None else self.bias.value().detach().to(torch.float32)
        for gamma, beta, mean, var, eps in self.norms:
            of = [None if c is None else c.value().detach().to(torch.float64) for c in (mean, var, gamma, beta)]
            weight, bias = fold(weight, bias, *of, eps)
        return weight, bias


@dataclass(frozen=True, eq=False)
class Conv:
    """A term of a sum: a convolution, padded so that only the stride changes the size."""

    value: Value
    weight: Weight
    stride: int

    @property
    def geometry(self) -> tuple:
        """What convolutions must have in common to be one, their input channels side by side."""
        return self.weight.shape[2], self.stride, self.value.shape[2:]


@dataclass(frozen=True, eq=False)
class Up:
    """A term of a sum: an image, or a 1x1 convolution of it, interpolated to the size of the sum."""

    value: Value
    weight: Weight | None
    mode: str
    align_corners: bool


@dataclass(eq=False)
class Sum:
    """``act(sum of the terms)``; biases are those of the weights."""

    output: Value
    identities: list[Value] = field(default_factory=list)
    convs: list[Conv] = field(default_factory=list)
    ups: list[Up] = field(default_factory=list)
    relu: bool = False
    projection: Weight | None = None  # a 1x1 convolution behind the ReLU

    def inputs(self) -> list[Value]:
        """The images that it reads."""
        return [*self.identities, *(t.value for t in (*self.convs, *self.ups))]

    def weights(self) -> list[Weight]:
        """Those of its terms."""
        found = [*(t.weight for t in (*self.convs, *self.ups)), self.projection]
        return [w for w in found if w is not None]


@dataclass(eq=False)
class Call:
    """An operator that the engine has no kernel for: torch runs it."""

    node: Node

    def inputs(self) -> list[Value]:
        """The tensors that it reads."""
        return self.node.inputs()


Step = Sum | Call


def build(tape: Tape) -> list[Step]:
    """The network of a tape as steps in an order in which they can run."""
    made: dict[Value, Sum] = {}
    steps: list[Step] = []
    needed = _needed(tape)
    for node in tape.nodes:
        if node not in needed:
            continue
        found = _sum_of(node, made)
        if found is None:
            steps.append(Call(node))
        else:
            made[found.output] = found
            steps.append(found)
    fused = _fuse(steps, tape.outputs)
    return _commute(fused, tape.outputs)


def exchanges(steps: list[Step]) -> int:
    """How many sums over several resolutions there are: in a network without any, no HRNet was recognized."""
    return sum(isinstance(s, Sum) and bool(s.ups) and len(s.inputs()) > 1 for s in steps)


def users(steps: list[Step], outputs: list[Value]) -> dict[Value, int]:
    """How often each value is read, the caller of the network included."""
    count: dict[Value, int] = {}
    for value in [v for step in steps for v in step.inputs()] + list(outputs):
        count[value] = count.get(value, 0) + 1
    return count


def _needed(tape: Tape) -> set[Node]:
    """The nodes whose results somebody uses."""
    found: set[Node] = set()
    todo = [v.node for v in tape.outputs]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [v.node for v in node.inputs()]
    return found


def _shape(constant: Constant) -> tuple[int, ...]:
    return tuple(constant.tensor.shape) if constant.tensor is not None else tuple(constant.value().shape)


def _sum_of(node: Node, made: dict[Value, Sum]) -> Sum | None:
    """One operator as a sum; those that follow another are merged with it later."""
    args, output = node.arguments[0], node.outputs[0]
    if node.arguments[1] or output is None or len(output.shape) != 4 or 0 in output.shape:
        return None
    operator = node.operator
    if operator is aten.convolution.default:
        return _convolution(args, output)
    if operator in (aten.relu.default, aten.relu_.default) and isinstance(args[0], Value):
        return Sum(output, [args[0]], relu=True)
    if operator in (aten.add.Tensor, aten.add_.Tensor) and len(args) == 2:
        a, b = args
        same = isinstance(a, Value) and isinstance(b, Value) and a.shape == b.shape and a.dtype == b.dtype
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
    if operator in _NORMS:
        return _norm(_NORMS[operator](args), output, made)
    return None


_UPSAMPLING = {aten.upsample_bilinear2d.default: "bilinear", aten.upsample_nearest2d.default: "nearest"}
# operator -> (input, weight, bias, mean, var, training, eps)
_NORMS = {
    aten.native_batch_norm.default: lambda a: (*a[:6], a[7]),
    aten._native_batch_norm_legit_no_training.default: lambda a: (*a[:5], False, a[6]),
}


def _convolution(args: tuple, output: Value) -> Sum | None:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if not isinstance(x, Value) or not isinstance(weight, Constant) or isinstance(bias, Value):
        return None
    _, _, kh, kw = _shape(weight)
    centred = kh == kw and kh % 2 == 1 and kh < 16 and list(padding) == [kh // 2, kw // 2]
    plain = list(dilation) == [1, 1] and not transposed and groups == 1 and list(stride) in ([1, 1], [2, 2])
    return Sum(output, convs=[Conv(x, Weight(weight, bias), stride[0])]) if centred and plain else None


def _norm(args: tuple, output: Value, made: dict[Value, Sum]) -> Sum | None:
    """BatchNorm behind a convolution that nobody else reads: the convolution with other weights."""
    x, gamma, beta, mean, var, training, eps = args
    before = made.get(x)
    if training or before is None or len(x.users) != 1 or len(before.convs) != 1 or before.relu or before.identities:
        return None
    if any(not isinstance(c, Constant) for c in (mean, var)) or any(isinstance(c, Value) for c in (gamma, beta)):
        return None
    conv = before.convs[0]
    folded = replace(conv.weight, norms=(*conv.weight.norms, (gamma, beta, mean, var, eps)))
    return Sum(output, convs=[replace(conv, weight=folded)])


def _fuse(steps: list[Step], outputs: list[Value]) -> list[Step]:
    """Sums of sums become one where nobody else reads what is between them; a ReLU ends a sum."""
    count = users(steps, outputs)
    made = {s.output: s for s in steps if isinstance(s, Sum)}
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


def _commute(steps: list[Step], outputs: list[Value]) -> list[Step]:
    """HRNet's heads: a 1x1 convolution of images of different sizes, side by side in their channels.

    Interpolation acts on each channel alone and a 1x1 convolution on each pixel alone: the convolution runs at each
    image's own resolution and the concatenated tensor is never made. A 1x1 convolution behind it joins the same step.
    """
    for _ in range(2):
        count = users(steps, outputs)
        made = {s.output: s for s in steps if isinstance(s, Sum)}
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
            elif before is not None and before.ups and before.relu and before.projection is None and not step.relu:
                _project(step, before, gone)
        steps = [s for s in steps if (s.output if isinstance(s, Sum) else s.node.outputs[0]) not in gone]
        steps = _without_unread(steps, outputs)
    return steps


def _split_concatenation(step: Sum, cat: Node, made: dict[Value, Sum], gone: set[Value], count: dict) -> None:
    args = cat.arguments[0]
    if cat.operator is not aten.cat.default or len(args) != 2 or args[1] not in (1, -3):
        return
    parts = args[0]
    if any(not isinstance(p, Value) or len(p.shape) != 4 for p in parts) or len(parts) > MAX_UPS:
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


def _project(step: Sum, before: Sum, gone: set[Value]) -> None:
    step.projection = step.convs[0].weight
    step.identities, step.convs, step.ups, step.relu = before.identities, before.convs, before.ups, before.relu
    gone.add(before.output)


def _without_unread(steps: list[Step], outputs: list[Value]) -> list[Step]:
    kept: list[Step] = []
    read = set(outputs)
    for step in reversed(steps):
        made = [step.output] if isinstance(step, Sum) else [v for v in step.node.outputs if v is not None]
        if any(v in read for v in made):
            kept.append(step)
            read.update(step.inputs())
    return kept[::-1]
