"""A copy of a network that computes step by step in PyTorch's own operators, whatever has been made fast in it."""

import copy
import types

import torch
from torch import nn

from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.modules import (
    HRFPN,
    ExchangeUnit,
    PlainExchangeUnit,
    PlainHRFPN,
    PlainSegmentationHead,
    SegmentationHead,
)
from hrnet_fast.modules.blocks import (
    BasicBlock,
    Bottleneck,
    ConvNormReLU,
    FoldedBasicBlock,
    FoldedBottleneck,
    FoldedConvNormReLU,
)
from hrnet_fast.patching import unpatch

# fast module -> the one that it computes the same as
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    ExchangeUnit: PlainExchangeUnit,
    SegmentationHead: PlainSegmentationHead,
    HRFPN: PlainHRFPN,
    FoldedBasicBlock: BasicBlock,
    FoldedBottleneck: Bottleneck,
    FoldedConvNormReLU: ConvNormReLU,
}


def plain_form(model: nn.Module) -> nn.Module:
    """A copy in evaluation and float32, unpatched, every fast module with the forward of its plain form.

    Args:
        model: one of ``create_model``, a patched one, or any other network. It is left as it is.

    Raises:
        TypeError: not an nn.Module.
        ValueError: it is compiled, scripted or a recorded graph already, or has no weights yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    reason = _why_closed(model)
    if reason is not None:
        raise ValueError(f"model: {reason}")
    plain = unpatch(copy.deepcopy(model)).eval().float().requires_grad_(False)
    for module in plain.modules():
        if isinstance(module, HRNet):
            module.fast, module._folded_stem = False, None
        for fast, form in _PLAIN.items():
            if isinstance(module, fast) and type(module).forward is fast.forward:
                module.forward = types.MethodType(form.forward, module)
    return plain


def _why_closed(model: nn.Module) -> str | None:
    for name, module in model.named_modules():
        place = f" ({name})" if name else ""
        if isinstance(module, torch.jit.ScriptModule):
            return f"it is a TorchScript module{place}: export the model that it was made from"
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            return f"it is compiled already{place}: export the model that was compiled"
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        return "its parameters are on the meta device: load its weights first"
    return None
