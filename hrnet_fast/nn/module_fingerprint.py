"""What modules are besides the values of their tensors: types, children, settings, hooks; whether that has changed."""

import operator
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

OF_CONV = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
OF_NORM = ("training", "eps", "momentum", "affine", "track_running_stats")
_READ = ("training", "eps", "momentum")  # from norms, at each call
# what a forward of torch's looks at; of other modules all attributes may matter
_SETTINGS: dict[type, tuple[str, ...]] = {
    nn.Conv2d: OF_CONV,
    nn.BatchNorm2d: OF_NORM,
    nn.SyncBatchNorm: OF_NORM,
    nn.ReLU: (),
    nn.Identity: (),
    nn.Sequential: (),
    nn.ModuleList: (),
}


def altered(modules: Iterable[nn.Module]) -> bool:
    """Whether a call of any of the modules does more than the methods of its class: hooks, or a method of its own."""
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks or _own_methods(m)
        for m in modules
    )


def why_closed(module: nn.Module) -> str | None:
    """What a module is whose code is fixed: nothing in it can be replaced any more; None where it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module"
    if isinstance(module, torch.fx.GraphModule):
        return "a recorded graph"
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        return "compiled already"
    return None


def _own_methods(module: nn.Module) -> bool:
    """Whether an instance has something in place of a method of its class: its forward, what that calls."""
    kind = type(module)
    return any(callable(getattr(kind, name, None)) for name in vars(module))


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    own = vars(module)
    known = _SETTINGS.get(type(module))
    for name in [n for n in own if not n.startswith("_")] if known is None else known:
        if name in own:
            yield name, own[name]


def signature(module: nn.Module, parts: Iterable[nn.Module]) -> tuple:
    """What two modules must have in common to compute the same function of their inputs and tensors.

    Of the module itself its settings and the names of its children, parameters and buffers; of each of its ``parts``,
    and of all modules below them, the types as well. What every fast form reads at each call is left out.
    """

    def own(m: nn.Module) -> tuple:
        settings = tuple((name, _plain(value)) for name, value in _settings(m) if name not in _READ)
        shapes = tuple((name, None if p is None else tuple(p.shape)) for name, p in m._parameters.items())
        return settings, tuple(m._modules), shapes, tuple(m._buffers)

    return own(module), tuple((type(m), altered([m]), own(m)) for part in parts for m in part.modules())


def _plain(value: Any) -> Any:
    """A value that can be compared and hashed: containers of settings by what is in them."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return tuple((key, _plain(x)) for key, x in value.items())
    return value


class Watch:
    """Modules at one moment; quick to compare with what they are later, since a fast module asks at every call.

    What is compared, by identity: types, children, and the settings that their forwards look at; whether there are
    hooks, further attributes, parameters or buffers, and a bias. Parameters and buffers may be others.

    Args:
        modules: those to watch.
        owner: one of them whose hooks are called by whoever calls it, and do not matter.
    """

    def __init__(self, modules: Iterable[nn.Module], owner: nn.Module | None = None):
        modules = list(modules)
        self._modules, self._types = modules, list(map(type, modules))
        self._holders = [d for m in modules for d in (vars(m), m._modules, m._parameters, m._buffers)]
        self._lengths = list(map(len, self._holders))
        slots = [slot for m in modules for slot in _slots(m)]
        self._slots = tuple(zip(*slots, strict=True)) or ((), (), ())
        self._hooks = [
            h
            for m in modules
            if m is not owner
            for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        ]
        self._had = list(map(bool, self._hooks)) if any(self._hooks) else None  # None: no hook at all

    def covers(self, modules: Iterable[nn.Module]) -> bool:
        """Whether all of the modules are watched."""
        return set(map(id, modules)) <= set(map(id, self._modules))

    def unchanged(self) -> bool:
        """Whether everything is as it was."""
        holders, names, known = self._slots
        return (
            all(map(operator.is_, map(dict.get, holders, names), known))
            and list(map(len, self._holders)) == self._lengths
            and list(map(type, self._modules)) == self._types
            and (not any(self._hooks) if self._had is None else list(map(bool, self._hooks)) == self._had)
        )


def _slots(module: nn.Module) -> Iterator[tuple[dict, str, Any]]:
    own = vars(module)
    yield from ((own["_modules"], name, child) for name, child in own["_modules"].items())
    yield from ((own, name, value) for name, value in _settings(module))
    if "bias" in own["_parameters"] and own["_parameters"]["bias"] is None:
        yield own["_parameters"], "bias", None


class Structure:
    """One value that was made from the modules below an owner, kept until they change (``Watch``)."""

    def __init__(self):
        self._state: tuple | None = None  # replaced whole, so that threads never see half of one

    @property
    def watch(self) -> Watch | None:
        """That of the kept value."""
        return None if self._state is None else self._state[2]

    def get(self, owner: nn.Module, make: Callable[[], Any], modules: Callable[[], Iterable[nn.Module]] | None = None):
        """The kept value, or what ``make`` returns now; ``modules``: those to watch in place of all below the owner.

        Under torch.compile nothing is kept: its guards watch.
        """
        if torch.compiler.is_compiling():
            return make()
        state = self._state
        # a replica of DataParallel shares this object with the module that it was copied from
        if state is not None and state[0]() is owner and state[2].unchanged():
            return state[1]
        watch = Watch(owner.modules() if modules is None else modules(), owner)
        value = make()
        self._state = weakref.ref(owner), value, watch
        return value
