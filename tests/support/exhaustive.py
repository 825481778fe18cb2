"""Which parameters `make test` runs, and which only `make test EXHAUSTIVE=1` runs besides; CI a fourth of them."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def sampled(values: Iterable[Any], every: int) -> list[Any]:
    """All values as parameters of a test; all but each ``every``-th, the first among them, are marked exhaustive."""
    return chosen(values, lambda k, value: k % every == 0)


def chosen(values: Iterable[Any], runs_by_default: Callable[[int, Any], bool], several: bool = False) -> list[Any]:
    """Likewise, where ``runs_by_default(index, value)`` says which are not exhaustive; ``several`` names."""
    return [
        value
        if runs_by_default(k, value)
        else pytest.param(*(value if several else (value,)), marks=pytest.mark.exhaustive)
        for k, value in enumerate(values)
    ]
