"""A network for images of many sizes: optimized where a size comes often enough to pay for the preparation."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.runtime import OptimizedModel, optimize

# Preparing a shape takes as long as some dozen passes gain by it. By this many passes about as much has been lost as the
# preparation costs, so that whatever comes, at most twice as much is lost as by somebody who knew what would come.
OFTEN = 8
MAX_SHAPES = 64  # that are kept prepared: they share weights and memory, and a program by itself is small


class ByShape:
    """Calls a network as ``create_model`` makes it, and its optimized form for shapes of images that come often.

    Both give the same outputs up to rounding.

    Args:
        model: the network in float32, in evaluation mode, on the CPU.
        dtype: that it computes in.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        self._model, self._dtype = model, dtype
        # optimize folds BatchNorm before it rounds, and therefore gets the weights in float32
        usual = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self._usual = usual.to(memory_format=torch.channels_last)
        self._passes: Counter[tuple[int, ...]] = Counter()
        self._optimized: OptimizedModel | None = None

    def __call__(self, image: Tensor) -> Any:
        """What the network returns for an image [N, C, H, W] of any floating dtype and layout."""
        shape = tuple(image.shape)
        self._passes[shape] += 1
        if self._passes[shape] <= OFTEN:
            return self._usual(image.to(self._dtype).contiguous(memory_format=torch.channels_last))
        if self._optimized is None:
            self._optimized = optimize(self._model, image, dtype=self._dtype, max_shapes=MAX_SHAPES)
        return self._optimized(image)
