"""Residual blocks, as the official code, timm and OpenMMLab write them: between the exchanges all time goes there."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hrnet_fast.nn.folds import FoldCache, why_not_foldable
from hrnet_fast.nn.module_fingerprint import altered
from hrnet_fast.nn.residual_blocks import Pair, current_chain


def is_block(module: nn.Module) -> bool:
    """Whether it has the attributes of a BasicBlock or Bottleneck."""
    return all(hasattr(module, name) for name in ("conv1", "bn1", "conv2", "bn2", "downsample"))


def why_not_block(module: nn.Module) -> str | None:
    """Why a block is more, or less, than convolutions with norms, ReLUs and a shortcut."""
    pairs, shortcut = _pairs(module), _shortcut(module)
    known = [m for pair in pairs for m in pair] + [m for m in (module.downsample,) if m is not None]
    extra = [type(m).__name__ for m in module.children()
             if all(m is not k for k in known) and type(m) not in (nn.ReLU, nn.Identity)]  # fmt: skip
    if extra:
        return f"it has a {extra[0]} inside, which the residual blocks of HRNet have not"
    if (strangers := why_strangers(module, {name for name, _ in module.named_children()})) is not None:
        return strangers
    if len(pairs) not in (2, 3) or (module.downsample is not None and shortcut is None):
        return "it is not two or three convolutions with a norm each, and at most one on the shortcut"
    for pair in [*pairs, *([shortcut] if shortcut else [])]:
        reason = why_not_foldable(*pair)
        if reason is not None:
            return reason
    inner = [m for m in module.modules() if m is not module]
    return "hooks inside of the block would no longer be called" if altered(inner) else None


def _pairs(module: nn.Module) -> list[Pair]:
    names = [(f"conv{k}", f"bn{k}") for k in (1, 2, 3) if getattr(module, f"conv{k}", None) is not None]
    return [(getattr(module, conv), getattr(module, norm, None)) for conv, norm in names]


def _shortcut(module: nn.Module) -> Pair | None:
    layers = [] if module.downsample is None else list(module.downsample.children())
    return tuple(layers) if isinstance(module.downsample, nn.Sequential) and len(layers) == 2 else None


def block_example(module: nn.Module, random: Callable[..., Tensor]) -> tuple[dict[str, nn.Module], tuple]:
    """A small feature map."""
    return {}, (random(2, module.conv1.in_channels, 6, 5),)


def block_forward(module: nn.Module, plain: Callable, settings: Any, folds: FoldCache, x: Tensor) -> Tensor:
    """[N, C, H, W] to [N, C', H', W']."""
    if module.training:
        return plain(module, x)
    plan = current_chain(module, folds, _pairs(module), True, _shortcut(module))
    return plain(module, x) if plan is None else plan(x)


def why_strangers(module: nn.Module, known: set[str]) -> str | None:
    """What a module has besides the children of these names: nobody knows what its forward does with that."""
    found = [*(n for n, _ in module.named_children() if n not in known),
             *(n for n, p in module._parameters.items() if p is not None), *module._buffers]  # fmt: skip
    return f"it has {', '.join(found)}, which no HRNet has there" if found else None
