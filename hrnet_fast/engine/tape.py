"""A network as the list of operators that it calls for one input: recorded, not computed.

The model runs once on a fake image, in evaluation and in standard operators. What comes out of its parameters alone
(InPlaceABN's ``abs(weight) + eps``, say) is kept as a recipe, so that it can be computed again when they change.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hrnet_fast.standard import standard_operators

aten = torch.ops.aten


class NotPlannable(Exception):
    """Why a network cannot be recorded, or not be planned; it then runs as it is."""


@dataclass(eq=False)
class Constant:
    """A tensor that does not depend on the input: a parameter or buffer, or an operator applied to such."""

    tensor: Tensor | None = None
    operator: Any = None
    arguments: tuple = ()
    index: int | None = None  # of the operator's results, where there are several

    def value(self) -> Tensor:
        """The tensor of now."""
        if self.tensor is not None:
            return self.tensor
        args, kwargs = pytree.tree_map_only(Constant, Constant.value, self.arguments)
        with torch.no_grad():
            out = self.operator(*args, **kwargs)
        return out if self.index is None else out[self.index]


@dataclass(eq=False)
class Value:
    """A tensor that depends on the input."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    node: "Node | None" = None  # that makes it; None: an input of the network
    users: list["Node"] = field(default_factory=list)


@dataclass(eq=False)
class Node:
    """One call of an operator."""

    operator: Any
    arguments: tuple  # (args, kwargs), with Values and Constants in the places of tensors
    outputs: list[Value | None]  # None: not a tensor
    is_list: bool = False  # the operator returns several

    def inputs(self) -> list[Value]:
        """The Values among its arguments, as often as they are there."""
        return [v for v in pytree.tree_leaves(self.arguments) if isinstance(v, Value)]


@dataclass
class Tape:
    """What was recorded."""

    image: Value
    nodes: list[Node]
    outputs: list[Value]
    spec: Any  # of what the network returns, for pytree.tree_unflatten


def record(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Tape:
    """The operators that ``model`` calls for an image of this shape and dtype, on the CPU; nothing is computed.

    Raises:
        NotPlannable: it writes into tensors that others see, or returns something that is not made of tensors.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        image = torch.empty(shape, dtype=dtype)
    recorder = _Recorder(image)
    with torch.no_grad(), torch.autocast("cpu", enabled=False), standard_operators(), fake, recorder:
        result = model(image)
    leaves, spec = pytree.tree_flatten(result)
    outputs = [recorder.place(leaf) for leaf in leaves]
    for leaf, value in zip(leaves, outputs, strict=True):
        if not isinstance(value, Value):
            raise NotPlannable(f"the network returns a {type(leaf).__name__} that does not depend on the image")
    return Tape(recorder.values[id(image)], recorder.nodes, outputs, spec)


# Norms in evaluation. Fake tensors would find out in Python what they return, a millisecond a call.
_NORMS = (aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default)


def _result(func, args: tuple, kwargs: dict) -> Any:
    in_training = func is aten.native_batch_norm.default and args[5]
    if func in _NORMS and not in_training and isinstance(args[0], FakeTensor):
        return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
    return func(*args, **kwargs)


class _Recorder(TorchDispatchMode):
    def __init__(self, image: Tensor):
        super().__init__()
        self.values: dict[int, Value | Constant] = {id(image): Value(tuple(image.shape), image.dtype)}
        self.nodes: list[Node] = []
        self._alive: list[Tensor] = [image]  # no later tensor can then have the id of an earlier one
        self._storages: dict[int, set[int]] = {}  # storage -> tensors that were recorded with it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        arguments = pytree.tree_map_only(Tensor, self.place, (args, kwargs))
        out = _result(func, args, kwargs)
        results = list(out) if isinstance(out, (list, tuple)) else [out]
        if not any(isinstance(r, Tensor) for r in results):
            return out
        self._check_writes(func, args, kwargs)
        is_list = isinstance(out, (list, tuple))
        if any(isinstance(v, Value) for v in pytree.tree_leaves(arguments)):
            values = [self._value(r) if isinstance(r, Tensor) else None for r in results]
            node = Node(func, arguments, values, is_list)
            for value in values:
                if value is not None:
                    value.node = node
            for value in node.inputs():
                value.users.append(node)
            self.nodes.append(node)
            places: list = values
        else:
            places = [Constant(None, func, arguments, i if is_list else None) for i in range(len(results))]
        for result, place in zip(results, places, strict=True):
            if isinstance(result, Tensor):
                self.values[id(result)] = place
                self._alive.append(result)
                if isinstance(result, FakeTensor):
                    self._storages.setdefault(_storage(result), set()).add(id(result))
        return out

    def place(self, tensor: Any) -> Value | Constant | Any:
        """What a tensor is in the recording."""
        if not isinstance(tensor, Tensor):
            return tensor
        found = self.values.get(id(tensor))
        if found is None:
            if isinstance(tensor, FakeTensor):
                raise NotPlannable("it uses a tensor that was made outside of the recorded operators")
            found = self.values[id(tensor)] = Constant(tensor)
            self._alive.append(tensor)
        return found

    @staticmethod
    def _value(tensor: Tensor) -> Value:
        return Value(tuple(tensor.shape), tensor.dtype)

    def _check_writes(self, func, args, kwargs) -> None:
        """An operator in place gives its tensor a new Value; whoever sees the memory by another name would miss it."""
        if not func._schema.is_mutable:
            return
        for argument, given in zip(func._schema.arguments, [*args, *kwargs.values()]):
            if argument.alias_info is None or not argument.alias_info.is_write or not isinstance(given, Tensor):
                continue
            if not isinstance(given, FakeTensor):
                raise NotPlannable(f"{func} writes into a parameter or buffer")
            if self._storages.get(_storage(given), set()) - {id(given)}:
                raise NotPlannable(f"{func} writes into a tensor that has other views")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
