"""The drop-in: ``patch(model)`` makes the HRNet that somebody already has fast, ``unpatch(model)`` undoes it."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from hrnet_fast.patching.class_swap import Adapter, Patched, apply, restore
from hrnet_fast.patching.families import ADAPTERS
from hrnet_fast.patching.report import PatchReport, Row

__all__ = ["PatchReport", "Row", "patch", "unpatch"]


def patch(model: nn.Module) -> PatchReport:
    """Make the exchange units, heads and feature pyramids of someone else's HRNet fast, in place.

    Found by their structure, whatever their classes are called: exchange units of timm, of the official repositories, of
    OpenMMLab and of simple-HRNet, and in a model that has such units its residual blocks; official HRNetV2 networks with their head; mmseg's FCN head with ``resize_concat``; and
    HRFPN. Each is tried beside its original, on small random inputs with random weights, in evaluation and in training,
    and left alone where the two do not agree; so weights may be loaded before or afterwards. The modules, parameters, state-dict keys and hooks stay the same objects; what changes is the class of the patched
    modules, to a subclass of their own with another ``forward``. Training, ``deepcopy``, pickling, ``.to()``,
    ``torch.compile`` and ``torch.export`` work as before. Patch before compiling.

    In evaluation BatchNorm is folded, and folded again when a weight changes (see hrnet_fast.refold for the exceptions).
    The original forward runs where the sizes of the streams are not those of an HRNet, where anything inside was changed
    since (hooks, classes, settings, children, methods of an instance's own or of a class), while there are hooks on every
    module, and under torch.jit and ONNX export. What replaces functions of torch.nn.functional has no effect on what is fast.

    Args:
        model: a network, or one of the modules named above. Patching it again does no harm.

    Returns:
        What became of every module that was looked at, and why of those that were left alone.

    Raises:
        TypeError: not an nn.Module.
        ValueError: the model is compiled, scripted or a recorded graph already.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    reason = _why_closed(model)
    if reason is not None:
        raise ValueError(f"model: {reason}")
    places = _places(model)
    hrnet = any(hasattr(module, "fuse_layers") for _, module in places)  # other networks have residual blocks, too
    adapters = [adapter for adapter in ADAPTERS if hrnet or adapter.kind != "residual block"]
    first: dict[nn.Module, str] = {}
    for name, module in places:
        first.setdefault(module, name)
    # inner modules first: a network is tried with what its parts have become
    known: dict = {}
    found = {module: list(_visit(name, module, adapters, known)) for module, name in reversed(first.items())}
    return PatchReport([
        row if name == first[module] else replace(row, name=name, detail=f"the same module as {first[module]}")
        for name, module in places for row in found[module]
    ])  # fmt: skip


def unpatch(model: nn.Module) -> nn.Module:
    """Give every patched module below ``model`` its own class back; returns ``model``. Harmless where there is none."""
    for module in model.modules():
        if isinstance(module, Patched):
            restore(module)
    return model


def _places(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module under every name that it has, but nothing below a closed one."""
    closed: tuple[str, ...] = ()
    places = []
    for name, module in model.named_modules(remove_duplicate=False):
        if not name.startswith(closed):
            places.append((name, module))
            closed += (f"{name}.",) if _why_closed(module) is not None else ()
    return places


def _visit(name: str, module: nn.Module, adapters: list[Adapter], known: dict) -> Iterator[Row]:
    reason = _why_closed(module)
    if reason is not None:
        yield Row(name, type(module).__name__, False, reason)
        return
    for adapter in adapters:
        if adapter.is_candidate(module):
            done, detail = apply(module, adapter, known)
            yield Row(name, adapter.kind, done, detail)


def _why_closed(module: nn.Module) -> str | None:
    """Why nothing below a module can be patched; None where it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript module, whose code is fixed: patch the model before scripting or tracing it"
    if isinstance(module, torch.fx.GraphModule):
        return "it is a recorded graph, whose code is fixed: patch the model before recording it"
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        return "it is compiled already: patch the model first, then compile it"
    return None
