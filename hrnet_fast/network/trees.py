"""Arguments and results as flat lists of leaves, and back: tuples, lists, dicts, their subclasses, and dataclasses."""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any


def flatten(tree: Any) -> tuple[list, Callable[[list], Any]]:
    """The leaves of nested containers, and the function that puts other leaves into containers of the same kinds."""
    leaves: list = []
    make = _take_apart(tree, leaves)
    return leaves, functools.partial(_put_together, make)


def _put_together(make: Callable[[Iterator], Any], leaves: list) -> Any:
    return make(iter(leaves))


def _take_apart(tree: Any, leaves: list) -> Callable[[Iterator], Any]:
    if isinstance(tree, (tuple, list)):
        parts = [_take_apart(x, leaves) for x in tree]
        kind = getattr(type(tree), "_make", type(tree))  # a named tuple is not made of a list
        return lambda items: kind([part(items) for part in parts])
    if isinstance(tree, dict):
        parts = [(key, _take_apart(x, leaves)) for key, x in tree.items()]
        empty = tree.copy()  # a defaultdict keeps its factory
        empty.clear()

        def a_dict(items: Iterator) -> dict:
            made = empty.copy()
            for key, part in parts:
                made[key] = part(items)
            return made

        return a_dict
    if isinstance(tree, types.SimpleNamespace) or (dataclasses.is_dataclass(tree) and not isinstance(tree, type)):
        parts, kind = [(name, _take_apart(x, leaves)) for name, x in vars(tree).items()], type(tree)

        def an_object(items: Iterator) -> Any:
            made = kind.__new__(kind)
            for name, part in parts:
                object.__setattr__(made, name, part(items))
            return made

        return an_object
    leaves.append(tree)
    return next


def structure(tree: Any) -> Any:
    """What two trees must have in common to be of one structure; can be compared and hashed."""
    if isinstance(tree, (tuple, list)):
        return (type(tree), *(structure(x) for x in tree))
    if isinstance(tree, dict):
        return (type(tree), *((key, structure(x)) for key, x in tree.items()))
    if isinstance(tree, types.SimpleNamespace) or (dataclasses.is_dataclass(tree) and not isinstance(tree, type)):
        return (type(tree), *((name, structure(x)) for name, x in vars(tree).items()))
    return None


def paths(tree: Any, name: str) -> list[str]:
    """The names of the leaves, as Python would write them: ``name[0]['key'].field``."""
    if isinstance(tree, (tuple, list)):
        return [path for k, x in enumerate(tree) for path in paths(x, f"{name}[{k}]")]
    if isinstance(tree, dict):
        return [path for key, x in tree.items() for path in paths(x, f"{name}[{key!r}]")]
    if isinstance(tree, types.SimpleNamespace) or (dataclasses.is_dataclass(tree) and not isinstance(tree, type)):
        return [path for key, x in vars(tree).items() for path in paths(x, f"{name}.{key}")]
    return [name]


def flatten_arguments(args: tuple) -> tuple[list, Callable[[list], tuple[tuple, dict]]]:
    """``flatten`` of an operator's arguments without keywords, which nest once at most; quicker."""
    leaves: list = []
    counts: list[int | None] = []
    for x in args:
        if type(x) in (list, tuple):
            leaves += x
            counts.append(len(x))
        else:
            leaves.append(x)
            counts.append(None)
    return leaves, functools.partial(_nest_arguments, counts)


def _nest_arguments(counts: list[int | None], leaves: list) -> tuple[tuple, dict]:
    items = iter(leaves)
    return tuple(next(items) if n is None else [next(items) for _ in range(n)] for n in counts), {}
