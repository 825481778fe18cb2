"""A model and everything that its code can reach, as it is now: two snapshots differ where somebody has changed it.

Attributes of the modules and of their classes, parameters and buffers (values, versions, identity), containers in
containers, closures and attributes of hooks and of replaced methods, globals of the files that define the classes, and
torch's global hooks.
"""

import functools
import types
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

CONTAINERS = (dict, list, set, deque)
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
FOREIGN = ("torch", "numpy", "builtins", "threading", "collections", "typing", "functools", "_pytest")


@dataclass(frozen=True)
class Seen:
    """An object and what could change in it; the object is kept, so that nothing else gets its id."""

    thing: Any
    state: Any


def snapshot(model: nn.Module) -> dict[str, Seen]:
    """Where a thing is found -> the thing and its state; each thing once."""
    found: dict[str, Seen] = {}
    _Walk(found).model(model)
    return found


def differences(before: dict[str, Seen], after: dict[str, Seen]) -> list[str]:
    """A sentence for each change, empty if nothing has changed."""
    changes = [f"{path} is gone" for path in before if path not in after]
    for path, now in after.items():
        was = before.get(path)
        if was is None:
            changes.append(f"{path} is new: {_short(now.thing)}")
        elif not _is_same(was.thing, now.thing):
            changes.append(f"{path} was {_short(was.thing)}, is {_short(now.thing)}")
        elif isinstance(now.thing, Tensor):
            changes += [f"{path}: other {key}" for key in was.state if not _equal(was.state[key], now.state[key])]
        elif was.state != now.state:
            changes.append(f"{path} held {_short(was.state)}, holds {_short(now.state)}")
    return changes


def strangers(model: nn.Module) -> list[str]:
    """Where tensors are found that only a recording can have left: without memory, fake, or of a transform."""
    return [path for path, seen in snapshot(model).items() if isinstance(seen.thing, Tensor) and _is_odd(seen.thing)]


def _is_odd(tensor: Tensor) -> bool:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    odd_class = isinstance(tensor, FakeTensor) or type(tensor).__name__ == "FunctionalTensor"
    return odd_class or wrapped or tensor.is_meta or torch._is_functional_tensor(tensor)


def _tensor_state(tensor: Tensor) -> dict[str, Any]:
    state = {
        "class": type(tensor),
        "shape": tensor.shape,
        "dtype": tensor.dtype,
        "device": tensor.device,
        "requires_grad": tensor.requires_grad,
        "attributes": sorted(vars(tensor)),
    }
    if not _is_odd(tensor):
        state |= {"strides": tensor.stride(), "address": tensor.data_ptr(), "values": tensor.detach().clone()}
        state |= {"version": None if tensor.is_inference() else tensor._version}
    return state


def _is_same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    return type(a) is type(b) and isinstance(a, (*PLAIN, tuple)) and (isinstance(a, tuple) or a == b or a != a)


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a == b
    return torch.equal(a, b) or torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


def _short(thing: Any) -> str:
    if isinstance(thing, Tensor):
        return f"{type(thing).__name__} {list(thing.shape)}"
    text = repr(thing).split("\n")[0]
    return text if len(text) < 80 else text[:77] + "..."


class _Walk:
    def __init__(self, found: dict[str, Seen]):
        self.found = found
        self.ids: set[int] = set()

    def model(self, model: nn.Module) -> None:
        self.follow("model", model)
        for kind in {c: None for m in model.modules() for c in type(m).__mro__ if not _is_foreign(c.__module__)}:
            for name, value in list(vars(kind).items()):
                if name not in ("__dict__", "__weakref__", "__doc__", "__annotations__", "__static_attributes__"):
                    self.follow(f"class {kind.__qualname__}.{name}", value)
        for name, value in list(vars(nn.modules.module).items()):
            if name.startswith("_global") and isinstance(value, dict):
                self.follow(f"torch's {name}", value)

    def follow(self, path: str, thing: Any) -> None:
        if isinstance(thing, PLAIN):
            self.found[path] = Seen(thing, None)
            return
        if id(thing) in self.ids:
            return
        self.ids.add(id(thing))
        if isinstance(thing, Tensor):
            self.found[path] = Seen(thing, _tensor_state(thing))
            for name, value in list(vars(thing).items()):
                self.follow(f"{path}.{name}", value)
            if thing.grad is not None:
                self.follow(f"{path}.grad", thing.grad)
        elif isinstance(thing, dict):
            self.found[path] = Seen(thing, [*map(_short, thing)])
            for key, value in list(thing.items()):
                self.follow(f"{path}[{key!r}]", value)
        elif isinstance(thing, (list, deque, tuple, set, frozenset)):
            self.found[path] = Seen(thing, len(thing))
            for k, value in enumerate(list(thing)):
                self.follow(f"{path}[{k}]", value)
        elif isinstance(thing, (staticmethod, classmethod)):
            self.follow(path, thing.__func__)
        elif isinstance(thing, types.MethodType):
            self.follow(path + ".__func__", thing.__func__)
            self.follow(path + ".__self__", thing.__self__)
        elif isinstance(thing, functools.partial):
            self.follow(path + ".partial", (thing.func, thing.args, thing.keywords))
        elif isinstance(thing, types.FunctionType):
            self.function(path, thing)
        else:
            self.found[path] = Seen(thing, None)
            attributes = getattr(thing, "__dict__", None)
            if isinstance(attributes, dict) and not isinstance(thing, (type, types.ModuleType)):
                self.found[path] = Seen(thing, sorted(map(str, attributes)))
                for name, value in list(attributes.items()):
                    self.follow(f"{path}.{name}", value)

    def function(self, path: str, function: types.FunctionType) -> None:
        self.found[path] = Seen(function, function.__code__)
        if _is_foreign(function.__module__):
            return
        for k, cell in enumerate(function.__closure__ or ()):
            try:
                self.follow(f"{path}'s {function.__code__.co_freevars[k]}", cell.cell_contents)
            except ValueError:  # a name that has no value yet
                continue
        self.follow(path + ".__defaults__", function.__defaults__)
        self.follow(path + ".__dict__", function.__dict__)
        if id(function.__globals__) not in self.ids:
            self.ids.add(id(function.__globals__))
            for name, value in list(function.__globals__.items()):
                if isinstance(value, (*CONTAINERS, *PLAIN, Tensor)) and not name.startswith("__"):
                    self.follow(f"{function.__module__}.{name}", value)


def _is_foreign(module: str | None) -> bool:
    return (module or "torch").split(".")[0] in FOREIGN
