"""Arguments and results as flat lists of leaves, and back: tuples, lists, dicts, their subclasses, and dataclasses."""

import copy
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


def _children(tree: Any) -> list[tuple[Any, str, Any]] | None:
    """Of a container: key, how Python would write it, and what is there; None for a leaf."""
    if isinstance(tree, (tuple, list)):
        return [(k, f"[{k}]", x) for k, x in enumerate(tree)]
    if isinstance(tree, dict):
        return [(key, f"[{key!r}]", x) for key, x in tree.items()]
    if isinstance(tree, types.SimpleNamespace) or (dataclasses.is_dataclass(tree) and not isinstance(tree, type)):
        return [(name, f".{name}", x) for name, x in vars(tree).items()]
    return None


def _take_apart(tree: Any, leaves: list) -> Callable[[Iterator], Any]:
    children, kind = _children(tree), type(tree)
    if children is None:
        leaves.append(tree)
        return next
    parts = [(key, _take_apart(x, leaves)) for key, _, x in children]
    if isinstance(tree, (tuple, list)):
        make = getattr(kind, "_make", kind)  # a named tuple is not made of a list
        return lambda items: make([part(items) for _, part in parts])
    empty = copy.copy(tree) if isinstance(tree, dict) else None  # a defaultdict keeps its factory
    if empty is not None:
        empty.clear()

    def a_container(items: Iterator) -> Any:  # does not hold the tree, whose tensors would stay alive
        made = kind.__new__(kind) if empty is None else copy.copy(empty)
        put = functools.partial(object.__setattr__, made) if empty is None else made.__setitem__
        for key, part in parts:
            put(key, part(items))
        return made

    return a_container


def structure(tree: Any) -> Any:
    """What two trees must have in common to be of one structure; can be compared and hashed."""
    children = _children(tree)
    return None if children is None else (type(tree), *((key, structure(x)) for key, _, x in children))


def paths(tree: Any, name: str) -> list[str]:
    """The names of the leaves, as Python would write them: ``name[0]['key'].field``."""
    children = _children(tree)
    return [name] if children is None else [path for _, place, x in children for path in paths(x, name + place)]


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
