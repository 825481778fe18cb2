"""When every module of ours computes by standard operators only, and a switch for those who record networks."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _every_module

from hrnet_fast.ops.transforms import foreign_mode, ordinary, traced, transformed

_local = threading.local()


def _replaceable() -> tuple:
    """What the modules that fast forms take apart are made of: somebody may replace it for all of them at once.

    Name by name, because that costs half of what any loop does.
    """
    conv, norm, synchronized, relu, path = nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.ReLU, nn.Sequential
    return (
        (F.conv2d, F.batch_norm, F.relu, F.interpolate, torch.batch_norm, torch.relu, torch.relu_, torch.cat),
        (torch._C._nn.upsample_nearest2d, torch._C._nn.upsample_bilinear2d),
        (conv.forward, conv._conv_forward, conv.__call__, conv._call_impl),
        (norm.forward, norm.__call__, norm._call_impl),
        (synchronized.forward, synchronized.__call__, synchronized._call_impl),
        (relu.forward, relu.__call__, relu._call_impl),
        (path.forward, path.__call__, path._call_impl),
        (nn.Identity.forward, nn.Upsample.forward, nn.Upsample.__call__),
    )


_OWN = _replaceable()


@contextlib.contextmanager
def standard_operators() -> Iterator[None]:
    """Within this block, in this thread, fast and patched modules run step by step, as the official code does."""
    before = getattr(_local, "wanted", False)
    _local.wanted = True
    try:
        yield
    finally:
        _local.wanted = before


def standard_operators_wanted(given: Tensor | Sequence[Tensor]) -> bool:
    """Whether modules of ours must use standard operators only.

    So it is where a network is recorded, by ``standard_operators``, torch.jit, torch.fx, or for an ONNX file; in
    forward-mode differentiation and vmap, of which folded convolutions know nothing; for tensors of somebody's own
    class; and while there are hooks on every module or modes of somebody's own, which must see the calls of what fast
    forms take apart, or a function or method of torch is not torch's own. Not so for what is torch's, such as the hooks
    and the mode of its FlopCounterMode, which is to count what is executed.

    Args:
        given: the image, or the streams.
    """
    if getattr(_local, "wanted", False) or traced() or transformed():
        return True
    if _every_module._has_any_global_hook() and _watched():
        return True
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
    return not ordinary(given) or _replaceable() != _OWN or foreign_mode()


def _watched() -> bool:
    tables = (
        _every_module._global_forward_pre_hooks,
        _every_module._global_forward_hooks,
        _every_module._global_backward_pre_hooks,
        _every_module._global_backward_hooks,
    )
    hooks = [hook for table in tables for hook in table.values()]
    return any(getattr(hook, "__module__", None) != "torch.utils.module_tracker" for hook in hooks)
