"""The forms that a network is measured in: plain PyTorch as people run it, the best PyTorch can make of it, ours."""

import copy
import re
import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hrnet_fast.runtime import OptimizedModel, optimize

if TYPE_CHECKING:  # rich, which it imports, is not on a machine that is lent for its GPU
    from hrnet_fast.bench import report

EAGER, CHANNELS_LAST, FOLDED = "eager", "eager channels_last", "eager folded"
COMPILED, FAST, FAST_COMPILED = "torch.compile", "hrnet_fast", "hrnet_fast + torch.compile"
OPTIMIZED = "hrnet_fast.optimize"


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """A copy in eval mode with every BatchNorm folded into the convolution in front of it.

    It knows the two ways in which HRNet's official code writes them: one after the other in an nn.Sequential, and as
    attributes ``conv<n>`` and ``bn<n>``. The folding is torch's own.
    """
    folded = copy.deepcopy(module).eval()
    for parent in list(folded.modules()):
        for conv_name, bn_name in _pairs(parent):
            fused = fuse_conv_bn_eval(getattr(parent, conv_name), getattr(parent, bn_name))
            setattr(parent, conv_name, fused)
            setattr(parent, bn_name, nn.Identity())
    return folded


def _pairs(parent: nn.Module) -> list[tuple[str, str]]:
    children = dict(parent.named_children())
    if isinstance(parent, nn.Sequential):
        names = list(children)
        pairs = list(pairwise(names))
    else:
        numbers = [match[1] for name in children if (match := re.fullmatch(r"conv(\d*)", name))]
        pairs = [(f"conv{number}", f"bn{number}") for number in numbers]
    return [(a, b) for a, b in pairs
            if isinstance(children[a], nn.Conv2d) and isinstance(children.get(b), nn.BatchNorm2d)]  # fmt: skip


def compile_on_first_call(module: nn.Module, *inputs) -> Callable[[], object]:
    """``torch.compile`` in its best form for inference: static shapes, weights frozen into the code and reordered.

    The first call compiles (so that a machine without a compiler fails there), all further ones only run. What was
    compiled for earlier cases is forgotten here, not at the first call: another contender may be compiled by then.
    """
    torch._dynamo.reset()
    compiled = []

    def call():
        if not compiled:
            from torch._inductor import config

            with config.patch(freezing=True), torch.inference_mode():
                candidate = torch.compile(module, dynamic=False)
                output = candidate(*inputs)
            compiled.append(candidate)
            return output
        return compiled[0](*inputs)

    return call


class Optimized:
    """``optimize`` of a network as a contender's call. The first call prepares, so that a failure is the contender's own.

    Args:
        model: the network in evaluation. Its weights are rounded to ``dtype``, as the float64 reference has them, and
            handed over in float32.
        image: [N, C, H, W] in ``dtype``.
        dtype: the compute dtype.
    """

    def __init__(self, model: nn.Module, image: Tensor, dtype: torch.dtype):
        self._model, self._image, self._dtype = model, image, dtype
        self._engine: OptimizedModel | None = None
        self._seconds: float | None = None

    def __call__(self) -> Tensor | list[Tensor]:
        if self._engine is not None:
            return self._engine(self._image)
        start = time.perf_counter()
        rounded = copy.deepcopy(self._model).to(self._dtype).float()
        engine = optimize(rounded, self._image, dtype=self._dtype)
        output = engine(self._image)
        self._seconds = time.perf_counter() - start
        self._engine = engine
        return output

    def describe(self, entry: "report.Entry") -> None:
        """Enters which engine it became, why that one, and the time to the first result."""
        if self._engine is not None:
            entry.engine, entry.engine_reason = self._engine.engine, self._engine.reason
            entry.first_result_seconds = self._seconds


def channels_last(value):
    """A module, a tensor or a list of tensors with channels innermost in memory."""
    if isinstance(value, list):
        return [channels_last(item) for item in value]
    if isinstance(value, Tensor):
        return value.contiguous(memory_format=torch.channels_last)
    return value.to(memory_format=torch.channels_last)
