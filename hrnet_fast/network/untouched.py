"""A model as it was before, whatever its Python code did to it while it was recorded."""

import collections
import contextlib
import functools
import gc
import operator
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from hrnet_fast.network.nodes import Refused

_CONTAINERS = (dict, list, set, collections.deque)
# What most attributes are: nothing can be stored in them.
_LEAVES = frozenset((str, int, float, bool, type(None), Tensor, nn.Parameter))
_DEPTH = 4  # of containers in containers


@contextlib.contextmanager
def untouched(model: nn.Module, kept: Callable[[Tensor], bool]) -> Iterator[list[Tensor]]:
    """Within this block the model may do what it wants; afterwards it is as it was.

    What its code can reach is put back: attributes of its modules and their classes, the containers in them, in its
    hooks and in the globals of its functions.

    Args:
        model: the model.
        kept: whether a tensor that the model's code has stored depends on the inputs; the model then returns more than
            its results.

    Yields:
        A list for the tensors that are made within the block; nobody may have any of them afterwards.

    Raises:
        Refused: the model's code has stored a tensor that depends on the inputs, or keeps one where it is not found.
    """
    snapshot, made = _Snapshot(model), []
    stored = None
    try:
        yield made
    finally:
        stored = snapshot.restore(kept)
        left = [weakref.ref(t) for t in made if isinstance(t, FakeTensor)]
        made.clear()
        alive = True
        for clean in (lambda: None, gc.collect, _clear_caches):
            clean()
            alive = any(r() is not None for r in left)
            if not alive:
                break
    if alive:
        raise Refused("code that the model calls keeps tensors of a call where they cannot be found")
    if stored is not None:
        raise Refused(f"it stores what it computes ({stored}), where a recorded network would not")


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """The same for a model that really runs: what its Python code stores is taken back, what tensors hold is not."""
    snapshot = _Snapshot(model)
    try:
        yield
    finally:
        snapshot.restore(lambda tensor: False)


def _clear_caches() -> None:
    for cached in [o for o in gc.get_objects() if type(o) is functools._lru_cache_wrapper]:
        if not (cached.__module__ or "").startswith("torch"):
            cached.cache_clear()
    gc.collect()


class _Snapshot:
    def __init__(self, model: nn.Module):
        self._containers: list[tuple[Any, Any, str]] = []  # itself, a shallow copy, a name
        self._classes: list[tuple[type, dict]] = []
        self._seen: set[int] = set()
        for name, module in model.named_modules():
            self._follow(vars(module), _DEPTH, name or type(module).__name__)
            for kind in type(module).__mro__:
                if id(kind) not in self._seen and not kind.__module__.startswith("torch.") and kind is not object:
                    self._seen.add(id(kind))
                    self._classes.append((kind, dict(vars(kind))))
                    self._follow(list(vars(kind).values()), _DEPTH, kind.__name__)
        global_hooks = [d for d in vars(nn.modules.module).values() if isinstance(d, dict)]
        self._follow(global_hooks, _DEPTH, "global hooks")

    def _follow(self, x: Any, depth: int, name: str) -> None:
        if depth < 0 or id(x) in self._seen or isinstance(x, (str, int, float, Tensor, nn.Module, type(None))):
            return
        if isinstance(x, _CONTAINERS):
            self._seen.add(id(x))
            self._containers.append((x, x.copy(), name))
            for inner in list(x.values() if isinstance(x, dict) else x):
                if type(inner) in _LEAVES:
                    continue
                if isinstance(inner, _CONTAINERS) and len(inner) == 0:  # of hooks and much else: most that there is
                    self._containers.append((inner, (), name))
                else:
                    self._follow(inner, depth - 1, name)
        elif isinstance(x, tuple):
            for inner in x:
                self._follow(inner, depth - 1, name)
        elif isinstance(x, types.MethodType):
            self._follow(x.__func__, depth, name)
            self._follow(x.__self__, depth, name)
        elif isinstance(x, functools.partial):
            self._follow((x.func, *x.args, *x.keywords.values()), depth, name)
        elif isinstance(x, types.FunctionType):
            self._function(x, depth, name)
        elif not isinstance(x, (type, types.ModuleType)) and isinstance(getattr(x, "__dict__", None), dict):
            self._follow(vars(x), depth - 1, name)

    def _function(self, f: types.FunctionType, depth: int, name: str) -> None:
        for cell in f.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                self._follow(cell.cell_contents, depth - 1, name)
        own = not (f.__module__ or "torch.").startswith("torch.")
        if own and id(f.__globals__) not in self._seen:
            self._seen.add(id(f.__globals__))
            for value in list(f.__globals__.values()):
                if type(value) in _CONTAINERS:
                    self._follow(value, 0, f.__module__)

    def restore(self, kept: Callable[[Tensor], bool]) -> str | None:
        """Puts everything back; names the first place that held a tensor for which ``kept`` is true."""
        stored = None
        for x, before, name in self._containers:
            if len(x) == 0 == len(before) or _same(x, before):
                continue
            if stored is None and _holds(_news(x, before), kept, _DEPTH):
                stored = name
            x.clear()
            x.extend(before) if isinstance(x, (list, collections.deque)) else x.update(before)
        for kind, before in self._classes:
            for name, value in list(vars(kind).items()):
                if name in before and before[name] is value:
                    continue
                if stored is None and _holds([value], kept, _DEPTH):
                    stored = f"{kind.__name__}.{name}"
                if name not in before:
                    delattr(kind, name)
                elif not name.startswith("__"):
                    setattr(kind, name, before[name])
        return stored


def _same(x: Any, before: Any) -> bool:
    if len(x) != len(before) or not all(map(operator.is_, x, before)):
        return False
    return not isinstance(x, dict) or all(map(operator.is_, x.values(), before.values()))


def _news(x: Any, before: Any) -> list:
    known = {id(v) for v in (before.values() if isinstance(before, dict) else before)}
    return [v for v in (x.values() if isinstance(x, dict) else x) if id(v) not in known]


def _holds(values: list, kept: Callable[[Tensor], bool], depth: int) -> bool:
    return any(kept(x) if isinstance(x, Tensor) else depth > 0 and _holds(_inside(x), kept, depth - 1) for x in values)


def _inside(x: Any) -> list:
    if isinstance(x, dict):
        return list(x.values())
    if isinstance(x, (tuple, *_CONTAINERS)):
        return list(x)
    if isinstance(x, (type, nn.Module)) or not isinstance(getattr(x, "__dict__", None), dict):
        return []
    return list(vars(x).values())
