"""A network as a list of functional operators: what is recorded, what passes rewrite, what programs are made of.

Nothing here writes into a tensor: in-place operators and writes through views have become new tensors when they were
recorded (``network.record``).
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Refused(Exception):
    """Why a network cannot be recorded, or why a program cannot run it; the next way of running it takes over.

    Attributes:
        raised: whether the model itself raised: perhaps it does so whoever runs it.
    """

    def __init__(self, reason: str, raised: bool = False):
        super().__init__(reason)
        self.raised = raised


@dataclass(eq=False, repr=False)
class Value:
    """A tensor that depends on the inputs."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    node: "Node | None" = None  # that makes it; None: an input of the network


@dataclass(eq=False, repr=False)
class Constant:
    """A tensor that does not depend on the inputs: a parameter, buffer or literal, or an operator applied to such.

    ``Constants`` makes them, one for each tensor and recipe, so that they can be compared by identity.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    tensor: Tensor | None = None
    node: "Node | None" = None
    index: int = 0  # of the node's results

    def value(self) -> Tensor:
        """The tensor as the parameters are at this moment."""
        if self.tensor is not None:
            return self.tensor
        args, kwargs = self.node.arguments(lambda x: x.value() if isinstance(x, Constant) else x)
        with torch.no_grad():
            out = self.node.operator(*args, **kwargs)
        return out[self.index] if self.node.is_list else out


def _group_norm(x: Tensor, *others: Any) -> Any:
    return torch.ops.aten.native_group_norm.default(x.contiguous(), *others)  # it takes dense images alone


_FOR_ANY_STRIDES = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.native_group_norm.default: _group_norm,
}


@dataclass(eq=False, repr=False)
class Node:
    """One call of an operator.

    Attributes:
        operator: of torch's.
        leaves: its arguments, flat, with Values and Constants in the places of tensors.
        build: nests them again, as (args, kwargs).
        outputs: what it returns; None in the place of what is not a tensor.
        is_list: whether it returns several.
    """

    operator: Any
    leaves: list
    build: Callable[[list], tuple[tuple, dict]]
    outputs: list[Value | Constant | None] = field(default_factory=list)
    is_list: bool = False

    def arguments(self, of: Callable[[Any], Any] = lambda x: x) -> tuple[tuple, dict]:
        """(args, kwargs), each leaf as ``of`` gives it."""
        return self.build([of(x) for x in self.leaves])

    def for_any_strides(self) -> Any:
        """The operator, or what computes the same of images that lie otherwise than the dense ones of the recording."""
        return _FOR_ANY_STRIDES.get(self.operator, self.operator)

    def inputs(self) -> list[Value]:
        """The Values among its arguments, as often as they are there."""
        return [x for x in self.leaves if isinstance(x, Value)]


@dataclass(eq=False, repr=False)
class Graph:
    """What a network computes for inputs of given shapes.

    Attributes:
        inputs: the tensors that it is called with, in the order of ``trees.flatten``.
        nodes: the operators that depend on them, in an order in which they can run.
        results: the leaves of what it returns: Values, Constants, and what is no tensor.
        build: nests them as the network does.
        writes: inputs that the network leaves changed, and what they become.
        baked: whether its Python code has read numbers out of parameters: other weights may make another graph.
    """

    inputs: list[Value]
    nodes: list[Node]
    results: list
    build: Callable[[list], Any]
    writes: list[tuple[Value, Value]]
    baked: bool

    @property
    def dtype(self) -> torch.dtype:
        """That of the first floating input: the network's, which a program may replace by another one."""
        return next((v.dtype for v in self.inputs if v.dtype.is_floating_point), torch.float32)

    def outputs(self) -> list[Value]:
        """The Values that somebody outside reads, each once."""
        read = [*(x for x in self.results if isinstance(x, Value)), *(new for _, new in self.writes)]
        return list(dict.fromkeys(read))


class Constants:
    """Makes Constants, one for each tensor and one for each recipe, as long as somebody holds them."""

    def __init__(self):
        self._known: weakref.WeakValueDictionary[tuple, Constant] = weakref.WeakValueDictionary()

    def of(self, tensor: Tensor, literal: bool = False) -> Constant:
        """For a parameter, buffer or another tensor; a ``literal`` in the code is the same if its numbers are."""
        key = ("literal", tensor.dtype, tensor.shape, tuple(tensor.flatten().tolist())) if literal else id(tensor)
        return self._intern(key, lambda: Constant(tuple(tensor.shape), tensor.dtype, tensor))

    def made_by(self, node: Node, results: list) -> list[Constant | None]:
        """For the results of an operator whose arguments are Constants; None in the place of what is no tensor."""
        key = (node.operator, *((type(x), x) for x in node.leaves))
        try:
            hash(key)
        except TypeError:
            key = id(node)
        return [
            self._intern((key, k), lambda k=k, r=r: Constant(tuple(r.shape), r.dtype, None, node, k))
            if isinstance(r, Tensor)
            else None
            for k, r in enumerate(results)
        ]

    def _intern(self, key: Any, make: Callable[[], Constant]) -> Constant:
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = make()
        return found


def same(one: Graph, two: Graph) -> bool:
    """Whether two recordings for the same shapes compute the same, operator by operator."""
    twin: dict[Value, Value] = dict(zip(one.inputs, two.inputs))

    def alike(a: Iterable, b: Iterable) -> bool:
        return all(twin.get(x) is y if isinstance(x, Value) else _equal(x, y) for x, y in zip(a, b, strict=True))

    if len(one.nodes) != len(two.nodes) or len(one.results) != len(two.results) or len(one.writes) != len(two.writes):
        return False
    for m, n in zip(one.nodes, two.nodes):
        if m.operator is not n.operator or len(m.leaves) != len(n.leaves) or not alike(m.leaves, n.leaves):
            return False
        twin.update((v, w) for v, w in zip(m.outputs, n.outputs) if v is not None)
    flat = ([v for pair in g.writes for v in pair] for g in (one, two))
    return alike(one.results, two.results) and alike(*flat)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Constant) or isinstance(b, Constant):
        return a is b
    return type(a) is type(b) and (a == b or a != a)


def needed(graph: Graph) -> list[Node]:
    """The nodes that the results depend on."""
    reached: set[Node] = set()
    waiting: Iterator[Value] | list[Value] = graph.outputs()
    while waiting:
        node = waiting.pop().node
        if node is not None and node not in reached:
            reached.add(node)
            waiting += node.inputs()
    return [n for n in graph.nodes if n in reached]
