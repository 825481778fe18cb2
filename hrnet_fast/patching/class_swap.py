"""How a module is patched: its class becomes a subclass of its own, once both were seen to compute the same."""

import functools
import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hrnet_fast.nn.folds import FoldCache
from hrnet_fast.nn.module_fingerprint import signature
from hrnet_fast.nn.plain_mode import standard_operators_wanted
from hrnet_fast.patching.trial import why_not_equal

_STATE, _FOLDS, _TRIED = "_hrnet_fast_settings", "_hrnet_fast_folds", "_hrnet_fast_tried"


@dataclass(frozen=True)
class Adapter:
    """How one kind of module is recognized, tried and computed. ``plain`` is the class's own forward, unbound."""

    kind: str
    is_candidate: Callable[[nn.Module], bool]
    # why the module cannot be served, by its structure; None where it can
    why_not: Callable[[nn.Module], str | None]
    # what forward may need to know; where structure leaves more than one possibility, all of them
    settings: Callable[[nn.Module], Iterable[Any]]
    # the children whose calls forward takes over, in part or whole
    parts: Callable[[nn.Module], list[nn.Module]]
    # children to be replaced and the arguments, to try a module on
    example: Callable[[nn.Module, Callable[..., Tensor]], tuple[dict[str, nn.Module], tuple]]
    forward: Callable[..., Any]  # (module, plain, settings, folds, image or streams)
    describe: Callable[[nn.Module, Any], str]


class Patched:
    """What every patched class has besides its base."""

    _hrnet_fast_base: type[nn.Module]
    _hrnet_fast_adapter: Adapter

    def train(self, mode: bool = True):
        if mode:
            vars(self)[_FOLDS].drop()
        return super().train(mode)

    def __reduce_ex__(self, protocol):  # the class itself is made at run time and has no importable name
        return _rebuild, (self._hrnet_fast_base, self._hrnet_fast_adapter.kind), self.__getstate__()


_known: dict[str, Adapter] = {}


def register(*adapters: Adapter) -> tuple[Adapter, ...]:
    """Makes adapters known by their kind, by which pickles name them."""
    _known.update({adapter.kind: adapter for adapter in adapters})
    return adapters


def apply(module: nn.Module, adapter: Adapter, known: dict[Any, str | None]) -> tuple[bool, str]:
    """Patches a module; whether it is patched now, and what it became or why it was left alone.

    Args:
        module: stays what it is until nothing more can fail.
        adapter: how it is patched.
        known: of modules that were tried before, why they are not equal; the same one for a whole model.
    """
    if isinstance(module, Patched):
        return True, f"{adapter.describe(module, vars(module)[_STATE])} (patched already)"
    try:
        reason = _why_not_swap(module) or adapter.why_not(module)
        if reason is not None:
            return False, reason
        for settings in adapter.settings(module):
            reason = _tried(module, adapter, settings, known)
            if reason is None:
                detail = adapter.describe(module, settings)
                _install(module, adapter, settings)
                return True, detail
    except Exception as error:  # of a module that has an HRNet's attributes, and something else in them
        return False, f"it cannot be looked at ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    return False, reason or "none of the forms that are known fits it"


def _tried(module: nn.Module, adapter: Adapter, settings: Any, known: dict[Any, str | None]) -> str | None:
    """Why the fast form computes something else; of modules that differ in their weights alone, one is tried."""
    parts = adapter.parts(module)
    try:
        key = (adapter.kind, settings, type(module), signature(module, parts))
        # what is tried beyond the parts is not in the key
        whole = all(any(child is p for p in parts) for name, child in module.named_children() if name != "branches")
        if whole and key in known:
            return known[key]
    except TypeError:  # a setting that cannot be hashed
        whole = False
    reason = why_not_equal(module, adapter.example, lambda twin: _install(twin, adapter, settings))
    if whole:
        known[key] = reason
    return reason


def restore(module: nn.Module) -> None:
    """Undoes ``apply``."""
    module.__class__ = module._hrnet_fast_base
    for name in (_STATE, _FOLDS, _TRIED):
        vars(module).pop(name)


def _install(module: nn.Module, adapter: Adapter, settings: Any) -> None:
    vars(module)[_TRIED] = signature(module, adapter.parts(module))
    vars(module)[_STATE], vars(module)[_FOLDS] = settings, FoldCache()
    module.__class__ = _patched_class(type(module), adapter.kind)


@functools.cache
def _patched_class(base: type[nn.Module], kind: str) -> type[nn.Module]:
    adapter, plain = _known[kind], base.forward
    run = functools.partial(_run, adapter.forward, plain)

    def forward(self, *args, **kwargs):
        return run(self, *args, **kwargs)

    # TorchScript compiles the source that __wrapped__ leads to, and looks names up in the function's globals.
    names = getattr(inspect.unwrap(plain), "__globals__", globals())
    forward = types.FunctionType(forward.__code__, names, "forward", None, forward.__closure__)
    forward.__wrapped__, forward.__doc__ = plain, plain.__doc__
    body = {
        "forward": forward,
        "_hrnet_fast_base": base,
        "_hrnet_fast_adapter": adapter,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (Patched, base), body)


def _run(fast: Callable, plain: Callable, module: nn.Module, *args, **kwargs):
    own, now = vars(module), module._hrnet_fast_base.forward
    usual = now is plain and len(args) == 1 and not kwargs
    if not usual or standard_operators_wanted(*args) or not _is_as_tried(module, own):
        return now(module, *args, **kwargs)
    return fast(module, plain, own[_STATE], own[_FOLDS], *args)


def _is_as_tried(module: nn.Module, own: dict[str, Any]) -> bool:
    """Whether nobody has changed what a patched module is, since it was tried."""
    parts = module._hrnet_fast_adapter.parts

    def compare() -> bool:
        return signature(module, parts(module)) == own[_TRIED]

    def watched() -> Iterable[nn.Module]:
        return [module, *(m for part in parts(module) for m in part.modules())]

    try:
        return own[_FOLDS].tried.get(module, compare, watched)
    except (AttributeError, TypeError):  # what it was made of is gone
        return False


def _rebuild(base: type[nn.Module], kind: str) -> nn.Module:
    module = base.__new__(base)
    module.__class__ = _patched_class(base, kind)
    return module


def _why_not_swap(module: nn.Module) -> str | None:
    if type(module).__module__.startswith("hrnet_fast."):
        return "it is hrnet_fast's own already"
    if "forward" in vars(module):
        return "somebody has replaced the forward of this instance"
    if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        return "its parameters are on the meta device: patch it when it has its weights"
    return None
