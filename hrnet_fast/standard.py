"""A switch for those who record networks: within it every module of ours computes by standard operators only."""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch.nn.modules import module as _every_module

_local = threading.local()


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
    """Whether a network is being recorded (by ``standard_operators``, torch.jit.trace, or for an ONNX file), or watched.

    Hooks on every module must see the calls of modules that the fast forms take apart.
    """
    if getattr(_local, "wanted", False) or torch.jit.is_tracing() or _every_module._has_any_global_hook():
        return True
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
