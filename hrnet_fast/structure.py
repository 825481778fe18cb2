"""Values made from the structure of modules: which modules there are, of which types, with which settings."""

import operator
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

OF_CONV = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
OF_NORM = ("training", "eps", "momentum", "affine", "track_running_stats")


class Structure:
    """One value that was made from the modules below an owner, kept until their structure or settings change.

    What is compared, for every module below the owner: its type, its children and the settings OF_CONV and OF_NORM by
    identity, whether it has a bias, and whether it has hooks. Parameters and buffers may be others at every call.
    """

    def __init__(self):
        self._state: tuple | None = None  # replaced whole, so that threads never see half of one

    def get(self, owner: nn.Module, make: Callable[[], Any]) -> Any:
        """The kept value, or what ``make`` returns now."""
        state = self._state
        if state is not None:
            reference, value, modules, types, (holders, names, known), hooks, had = state
            # a replica of DataParallel shares this object with the module that it was copied from
            if (
                reference() is owner
                and all(map(operator.is_, map(type, modules), types))
                and all(map(operator.is_, map(dict.get, holders, names), known))
                and list(map(bool, hooks)) == had
            ):
                return value
        value = make()
        modules = [m for m in owner.modules() if m is not owner]
        hooks = [h for m in modules for h in _hooks(m)]
        slots = tuple(zip(*_slots(owner), strict=True))
        self._state = weakref.ref(owner), value, modules, [*map(type, modules)], slots, hooks, [*map(bool, hooks)]
        return value


def _slots(owner: nn.Module) -> Iterator[tuple[dict, str, Any]]:
    for module in owner.modules():
        own = vars(module)
        yield from ((own["_modules"], name, child) for name, child in own["_modules"].items())
        yield from ((own, name, own[name]) for name in (*OF_CONV, *OF_NORM) if name in own)
        if "bias" in own["_parameters"] and own["_parameters"]["bias"] is None:
            yield own["_parameters"], "bias", None


def _hooks(module: nn.Module) -> tuple[dict, ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
