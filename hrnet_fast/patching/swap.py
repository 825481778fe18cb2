"""How a module is patched: its class becomes a subclass of its own, once both were seen to compute the same."""

import functools
import inspect
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.folding import FoldCache
from hrnet_fast.standard import standard_operators_wanted
from hrnet_fast.tolerances import relative_error

# On a small input; what rounding makes of half precision, and far less than what another formula would make.
TOLERANCE = 2e-2
_STATE, _FOLDS = "_hrnet_fast_settings", "_hrnet_fast_folds"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Adapter:
    """How one kind of module is recognized, tried and computed. ``plain`` is the class's own forward, unbound."""

    kind: str
    is_candidate: Callable[[nn.Module], bool]
    # why the module cannot be served, by its structure; None where it can
    why_not: Callable[[nn.Module], str | None]
    # what forward may need to know; where structure leaves more than one possibility, all of them
    settings: Callable[[nn.Module], Iterable[Any]]
    # children to be replaced and the arguments, to try a module on
    example: Callable[[nn.Module, Callable[..., Tensor]], tuple[dict[str, nn.Module], tuple]]
    forward: Callable[..., Any]  # (module, plain, settings, folds, *args, **kwargs)
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


def apply(module: nn.Module, adapter: Adapter) -> tuple[bool, str]:
    """Patches a module; whether it is patched now, and what it became or why it was left alone."""
    if isinstance(module, Patched):
        return True, f"{adapter.describe(module, vars(module)[_STATE])} (patched already)"
    reason = _why_not_swap(module) or adapter.why_not(module)
    if reason is not None:
        return False, reason
    for settings in adapter.settings(module):
        reason = _why_not_equal(module, adapter, settings)
        if reason is None:
            _install(module, adapter, settings)
            return True, adapter.describe(module, settings)
    return False, reason or "none of the forms that are known fits it"


def restore(module: nn.Module) -> None:
    """Undoes ``apply``."""
    module.__class__ = module._hrnet_fast_base
    for name in (_STATE, _FOLDS):
        vars(module).pop(name)


def _install(module: nn.Module, adapter: Adapter, settings: Any) -> None:
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
    body = {"forward": forward, "_hrnet_fast_base": base, "_hrnet_fast_adapter": adapter, "__module__": base.__module__,
            "__qualname__": base.__qualname__, "__doc__": base.__doc__}  # fmt: skip
    return type(base.__name__, (Patched, base), body)


def _run(fast: Callable, plain: Callable, module: nn.Module, *args, **kwargs):
    if standard_operators_wanted():
        return plain(module, *args, **kwargs)
    return fast(module, plain, getattr(module, _STATE), getattr(module, _FOLDS), *args, **kwargs)


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


def _why_not_equal(module: nn.Module, adapter: Adapter, settings: Any) -> str | None:
    """Runs the module and its patched form on a small random input. Neither hooks nor statistics notice."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like.device, like.dtype)

    try:
        with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
            children, args = adapter.example(module, random)
            outputs = []
            for fast in (False, True):
                twin = _twin(module, {})
                twin._modules.update(children)
                if fast:
                    _install(twin, adapter, settings)
                outputs.append(twin.forward(*(list(a) if isinstance(a, list) else a for a in args)))
    except Exception as error:  # whatever a module that only looks like an HRNet's makes of a small input
        lines = str(error).splitlines() or [""]
        return f"it cannot be tried on a small input ({type(error).__name__}: {lines[0]})"
    plain, fast = outputs
    if type(plain) is not type(fast) or len(plain) != len(fast):
        return "its forward returns something else than it does in any HRNet that is known"
    pairs = [(plain, fast)] if isinstance(plain, Tensor) else zip(plain, fast, strict=True)
    error = max(relative_error(b, a) for a, b in pairs)
    if error > TOLERANCE:
        return f"its forward computes something else than its structure says (relative difference {error:.1g})"
    return None


def _twin(module: nn.Module, memo: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module in evaluation, with the same tensors, without hooks; the module itself is not touched."""
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if module not in memo:
        memo[module] = twin = object.__new__(type(module))
        vars(twin).update(vars(module), training=False, **{name: OrderedDict() for name in _HOOKS})
        vars(twin).update({name: FoldCache() for name, value in vars(module).items() if isinstance(value, FoldCache)})
        twin._modules = {k: None if m is None else _twin(m, memo) for k, m in module._modules.items()}
    return memo[module]
