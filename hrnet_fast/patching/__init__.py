"""The drop-in: ``patch(model)`` makes the HRNet that somebody already has fast, ``unpatch(model)`` undoes it."""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from hrnet_fast.nn.module_fingerprint import why_closed
from hrnet_fast.patching.class_swap import Adapter, Patched, apply, restore
from hrnet_fast.patching.families import ADAPTERS
from hrnet_fast.patching.report import PatchReport, Row

__all__ = ["PatchReport", "Row", "patch", "unpatch"]


def patch(model: nn.Module) -> PatchReport:
    """Make the exchange units, heads and feature pyramids of someone else's HRNet fast, in place.

    Found by their structure, whatever their classes are called: exchange units of timm, of the official repositories,
    of OpenMMLab and of simple-HRNet, and in a model that has such units its residual blocks; official HRNetV2 networks
    with their head; mmseg's FCN head with ``resize_concat``; and HRFPN. Each is tried beside its original, on small
    random inputs with random weights, in evaluation and in training, and left alone where the two do not agree; so
    weights may be loaded before or afterwards. The modules, parameters, state-dict keys and hooks stay the same
    objects; what changes is the class of the patched modules, to a subclass of their own with another ``forward``.
    Training, ``deepcopy``, pickling, ``.to()``, ``torch.compile`` and ``torch.export`` work as before. Patch before
    compiling.

    In evaluation BatchNorm is folded, and folded again when a weight changes (see hrnet_fast.refold for the
    exceptions). The original forward runs where the sizes of the streams are not those of an HRNet, where anything
    inside was changed since (hooks, classes, settings, children, methods of an instance's own or of a class), for
    tensors of a class that is not torch's, while there are hooks on every module or modes that are not torch's, while
    something else stands in the place of a function or method of torch that such modules call (F.conv2d, F.relu,
    F.interpolate, nn.Module.__call__ and the like), and under torch.jit and ONNX export.

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
    closed = why_closed(model)
    if closed is not None:
        raise ValueError(f"model: it is {closed}: patch the model first")
    places = _places(model)
    hrnet = any(hasattr(module, "fuse_layers") for _, module in places)  # other networks have residual blocks, too
    adapters = [adapter for adapter in ADAPTERS if hrnet or adapter.kind != "residual block"]
    first: dict[nn.Module, str] = {}
    for name, module in places:
        first.setdefault(module, name)
    # inner modules first: a network is tried with what its parts have become
    known: dict = {}
    found = {module: list(_visit(name, module, adapters, known)) for module, name in reversed(first.items())}
    return PatchReport(
        [
            row if name == first[module] else replace(row, name=name, detail=f"the same module as {first[module]}")
            for name, module in places
            for row in found[module]
        ]
    )


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
            closed += (f"{name}.",) if why_closed(module) is not None else ()
    return places


def _visit(name: str, module: nn.Module, adapters: list[Adapter], known: dict) -> Iterator[Row]:
    closed = why_closed(module)
    if closed is not None:
        yield Row(name, type(module).__name__, False, f"it is {closed}: patch the model first")
        return
    for adapter in adapters:
        if adapter.is_candidate(module):
            done, detail = apply(module, adapter, known)
            yield Row(name, adapter.kind, done, detail)
