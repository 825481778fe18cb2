"""One graph for images of any size: recordings of several sizes side by side, and what their numbers are made of.

Where the recordings call the same operators, each number that differs between them must be a product of dimensions and
a constant, the same one in all of them. Three recordings are needed: two are explained by coincidence now and then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import mul
from typing import Any

import torch

from hrnet_fast.network.nodes import Constant, Graph, Node, Refused, Value, needed

Numbers = tuple[int, ...]  # what one number is in each of the recordings


@dataclass(frozen=True)
class Product:
    """A constant times dimensions of tensors."""

    factor: int
    dims: tuple[tuple[Value, int], ...]


class Known:
    """The sizes of tensors that are there already: what other numbers can be made of."""

    def __init__(self, sizes: "Sizes"):
        self._sizes = sizes
        self._made: dict[Numbers, Product] = {}

    def see(self, value: Value) -> None:
        """This tensor is there from now on."""
        products: list[tuple[Numbers, tuple]] = [((1,) * self._sizes.count, ())]
        for d, numbers in enumerate(self._sizes.of(value)):
            if len(set(numbers)) > 1:
                products += [(tuple(map(mul, p, numbers)), (*dims, (value, d))) for p, dims in products]
        for numbers, dims in products[1:]:
            self._made.setdefault(numbers, Product(1, dims))

    def made_of(self, numbers: Numbers) -> Product | int:
        """How to compute a number.

        Raises:
            Refused: it is no product of known dimensions and a constant.
        """
        if len(set(numbers)) == 1:
            return numbers[0]
        if numbers in self._made:
            return self._made[numbers]
        for sizes, product in self._made.items():
            ratios = {Fraction(n, s) for n, s in zip(numbers, sizes)} if all(sizes) else {}
            if len(ratios) == 1 and (ratio := ratios.pop()).denominator == 1:
                return Product(ratio.numerator, product.dims)
        raise Refused(f"{' or '.join(map(str, numbers))}, by the size of the image, is the size of no tensor")


class Sizes:
    """Recordings of one network for several sizes, side by side.

    Attributes:
        count: how many recordings.
        varying: the constants of the first one whose numbers depend on the size.

    Raises:
        Refused: they do not call the same operators, or differ in something else than whole numbers.
    """

    def __init__(self, graphs: Sequence[Graph]):
        self.count = len(graphs)
        self.varying: set[Constant] = set()
        self._twins: dict[Value | Constant, tuple] = {}
        self._arguments: dict[tuple[Node, int], Numbers] = {}
        inputs = _side_by_side([g.inputs for g in graphs])
        for values in inputs:
            self._pair(values)
        for nodes in _side_by_side([needed(g) for g in graphs]):
            self._match(nodes)
        for leaves in _side_by_side([g.results for g in graphs]):
            if self._differs(leaves):
                raise Refused("it returns a number that depends on the size of the image")
        for pairs in _side_by_side([g.writes for g in graphs]):
            for values in zip(*pairs):
                self._differs(values)

    def of(self, value: Value | Constant) -> list[Numbers]:
        """Each dimension of a tensor in all recordings; nothing of one that a pass has made."""
        return list(zip(*(v.shape for v in self._twins.get(value, ()))))

    def argument(self, node: Node, leaf: int) -> Numbers | None:
        """A number among the arguments in all recordings; None where it is the same in all."""
        return self._arguments.get((node, leaf))

    def explained(self) -> None:
        """Checks that every number that differs is made of sizes.

        Raises:
            Refused: one is not.
        """
        known, seen = Known(self), set()
        for value, twins in self._twins.items():
            shapes = tuple(t.shape for t in twins)
            if shapes not in seen:
                seen.add(shapes)
                known.see(value)
        for numbers in self._arguments.values():
            known.made_of(numbers)

    def _match(self, nodes: tuple[Node, ...]) -> None:
        first = nodes[0]
        if len({n.operator for n in nodes}) > 1:
            raise Refused(f"its operators depend on the size of the image: {first.operator} or {nodes[-1].operator}")
        for k, leaves in enumerate(_side_by_side([n.leaves for n in nodes])):
            if self._differs(leaves):
                self._arguments[first, k] = leaves
        for outputs in _side_by_side([n.outputs for n in nodes]):
            if outputs[0] is not None:
                self._pair(outputs)

    def _differs(self, leaves: tuple) -> bool:
        """Whether they are numbers that differ. Other things must be the same in all recordings."""
        first, others = leaves[0], leaves[1:]
        kind = type(first)
        for x in others:
            if type(x) is not kind:
                raise Refused(f"it uses {first!r} or {x!r}, by the size of the image")
        if kind is Constant:
            self._constants(leaves)
        elif kind is Value:
            if self._twins.get(first) != leaves:
                raise Refused("who reads which tensor depends on the size of the image")
        else:
            for x in others:
                if _equal(x, first):
                    continue
                if kind is not int:
                    raise Refused(f"it uses {first!r} or {x!r}, by the size of the image")
                return True
        return False

    def _constants(self, constants: tuple[Constant, ...]) -> None:
        first = constants[0]
        if all(c is first for c in constants) or self._twins.get(first) == constants:
            return
        if all(c.tensor is not None for c in constants):
            if any(c.shape != first.shape or not torch.equal(c.tensor, first.tensor) for c in constants):
                raise Refused("its constants depend on the size of the image")
            return
        if any(c.node is None for c in constants) or len({c.index for c in constants}) > 1:
            raise Refused("its constants depend on the size of the image")
        self._match(tuple(c.node for c in constants))
        self.varying.add(first)
        self._pair(constants)

    def _pair(self, tensors: tuple) -> None:
        if any(len(t.shape) != len(tensors[0].shape) or t.dtype != tensors[0].dtype for t in tensors):
            raise Refused("its ranks or dtypes depend on the size of the image")
        self._twins[tensors[0]] = tensors


def of_one_network(graphs: Sequence[Graph]) -> bool:
    """Whether graphs differ in nothing but sizes: operators, who reads what, constants and all other arguments."""
    try:
        Sizes(graphs).explained()
    except Refused:
        return False
    return True


def _side_by_side(lists: Sequence[Sequence]) -> list[tuple]:
    if len({len(x) for x in lists}) > 1:
        raise Refused("its operators depend on the size of the image")
    return list(zip(*lists))


def _equal(a: Any, b: Any) -> bool:
    return a == b or (a != a and b != b)
