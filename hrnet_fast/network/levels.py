"""What can run side by side."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def levels(
    items: Sequence[T], reads: Callable[[T], Iterable[Hashable]], makes: Callable[[T], Iterable[Hashable]]
) -> list[list[T]]:
    """Items sorted by the longest way to them: those of one level do not depend on each other.

    Args:
        items: in an order in which they can run.
        reads, makes: what an item needs, and what it makes; nobody makes what is there from the start.
    """
    level_of: dict[Hashable, int] = {}
    found: list[list[T]] = []
    for item in items:
        level = 1 + max((level_of.get(x, -1) for x in reads(item)), default=-1)
        level_of.update(dict.fromkeys(makes(item), level))
        while len(found) <= level:
            found.append([])
        found[level].append(item)
    return found
