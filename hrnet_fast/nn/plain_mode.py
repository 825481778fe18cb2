"""When every module of ours computes by standard operators only, and a switch for those who record networks."""

import contextlib
import operator
import threading
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules import module as _every_module

from hrnet_fast.ops.transforms import traced, transformed

_local = threading.local()
# of the modules that fast forms take apart; somebody may replace them for all modules at once
_of_class = operator.attrgetter("forward", "__call__")
_KINDS = nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.ReLU, nn.Identity, nn.Sequential
_METHODS = [*map(_of_class, _KINDS), nn.Conv2d._conv_forward]


@contextlib.contextmanager
def standard_operators() -> Iterator[None]:
    """Within this block, in this thread, fast and patched modules run step by step, as the official code does."""
    before = getattr(_local, "wanted", False)
    _local.wanted = True
    try:
        yield
    finally:
        _local.wanted = before


def standard_operators_wanted() -> bool:
    """Whether modules of ours must use standard operators only.

    So it is where a network is recorded, by ``standard_operators``, torch.jit, torch.fx, or for an ONNX file; in
    forward-mode differentiation and vmap, of which folded convolutions know nothing; and while there are hooks on every
    module, which must see the calls of those that fast forms take apart, or a method of torch's modules is not torch's own. Not
    so for the hooks of torch's FlopCounterMode, which is to count what is executed.
    """
    if getattr(_local, "wanted", False) or traced() or transformed():
        return True
    if _every_module._has_any_global_hook() and _watched():
        return True
    if not torch.compiler.is_compiling() and [*map(_of_class, _KINDS), nn.Conv2d._conv_forward] != _METHODS:
        return True
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def _watched() -> bool:
    tables = (
        _every_module._global_forward_pre_hooks, _every_module._global_forward_hooks,
        _every_module._global_backward_pre_hooks, _every_module._global_backward_hooks,
    )  # fmt: skip
    hooks = [hook for table in tables for hook in table.values()]
    return any(getattr(hook, "__module__", None) != "torch.utils.module_tracker" for hook in hooks)
