"""Multiply-adds of a model, in the convention of the publications and as really executed. Nothing is computed."""

from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode


class MultiplyAdds(NamedTuple):
    """Multiply-adds of all convolutions and linear layers, and of OCR's matrix products, for one batch.

    Bias, BatchNorm, activations and interpolation are not counted.
    """

    published: int  #: of the plain form; segmentation at quarter resolution. The official "GFLOPs" are this / 2**30
    executed: int  #: of the form that ``model`` has, where fast heads convolve at each stream's own resolution

    @property
    def published_gflops(self) -> float:
        """``published`` / 2**30, as the official READMEs print it."""
        return self.published / 2**30

    @property
    def executed_gflops(self) -> float:
        """``executed`` in the same unit."""
        return self.executed / 2**30


def multiply_adds(model: nn.Module, size: tuple[int, int], batch: int = 1) -> MultiplyAdds:
    """Count the multiply-adds of a model of ``create_model`` for images of ``size`` (height, width).

    Twins of the model are made of fake tensors and run under torch.utils.flop_counter; the model itself is not touched
    and nothing is allocated.

    Raises:
        TypeError: the model does not come from ``create_model``.
        ValueError: a size that the model does not take.
    """
    recipe = getattr(model, "recipe", None)
    if recipe is None:
        raise TypeError(f"model: expected one made by create_model, got {type(model).__name__}")
    fast = any(getattr(module, "fast", False) for module in model.modules())
    published = _count(recipe, False, size, batch)
    return MultiplyAdds(published, _count(recipe, True, size, batch) if fast else published)


def _count(recipe: dict, fast: bool, size: tuple[int, int], batch: int) -> int:
    from hrnet_fast.models import create_model  # that module lists this one in its namespace

    with torch.device("cpu"), FakeTensorMode(), torch.no_grad():
        twin = create_model(**recipe, full_resolution=False, fast=fast).eval()
        image = torch.empty(batch, recipe["in_chans"], *size)
        with FlopCounterMode(display=False) as counter:
            twin(image)
    return counter.get_total_flops() // 2
