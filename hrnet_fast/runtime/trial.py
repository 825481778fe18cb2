"""A prepared network beside the original, on random inputs, before it is trusted."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.network.nodes import Graph
from hrnet_fast.network.trees import flatten
from hrnet_fast.tolerances import MODEL, relative_error

# Of results that are no floating numbers, as classes, this share may differ: rounding decides ties.
_FLIPS = {torch.float64: 1e-3, torch.float32: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.2, torch.int8: 0.2}


def vary(leaves: list) -> bool:
    """Whether the images among some arguments are worth a trial: a constant one says little about a network."""
    images = [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
    return bool(images) and all(x.isfinite().all() and x.min() < x.max() for x in images)


def random_inputs(leaves: list, mean: Tensor | None = None, std: Tensor | None = None) -> list:
    """Arguments like the given ones: floating tensors are random, everything else stays."""
    made = []
    generator = torch.Generator().manual_seed(0)
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            noise = torch.randn(leaf.shape, generator=generator)
            noise = noise if mean is None else noise * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
            leaf = noise.to(leaf.device, leaf.dtype)
        made.append(leaf)
    return made


def poison(graph: Graph, dtype: torch.dtype, device: torch.device) -> None:
    """Fills memory that the next run will get with NaN: who reads what nobody has written there gives NaN.

    torch's allocator hands out again what was freed, by size: of each shape in the graph there are a few.
    """
    shapes = {v.shape for n in graph.nodes for v in n.outputs if v is not None and v.dtype.is_floating_point}
    with contextlib.suppress(torch.OutOfMemoryError):  # then less of it is poisoned
        for shape in shapes:
            _ = [torch.full(shape, float("nan"), dtype=dtype, device=device) for _ in range(4)]


def why_not(
    result: Any, expected: Any, dtype: torch.dtype, own_error: Callable[[], float], model_dtype: torch.dtype
) -> str | None:
    """What is off in a result; None where it is right within ``hrnet_fast.tolerances``.

    Args:
        result: of the network in ``dtype``.
        expected: of the model, in its own dtype.
        dtype: in which convolutions multiply.
        own_error: the error of the model itself in ``dtype``: some networks lose more than the table allows, whoever
            runs them.
        model_dtype: the dtype of the model's parameters.
    """
    ours, theirs = flatten(result)[0], flatten(expected)[0]
    if len(ours) != len(theirs):
        return f"it returns {len(ours)} results, the model {len(theirs)}"
    worst = 0.0
    for y, reference in zip(ours, theirs):
        if not isinstance(reference, Tensor):
            if type(y) is not type(reference) or not (y == reference or y != y):
                return f"it returns {y!r}, the model {reference!r}"
            continue
        if not isinstance(y, Tensor) or y.shape != reference.shape:
            return f"it returns {list(getattr(y, 'shape', []))}, the model {list(reference.shape)}"
        if not reference.is_floating_point():
            if y.dtype != reference.dtype or (y != reference).double().mean() > _FLIPS[dtype]:
                return f"a result in {reference.dtype} differs"
            continue
        if not reference.isfinite().all():
            return "the model's own result on a random image is not finite"
        worst = max(worst, relative_error(y, reference))
    allowed = max(MODEL[dtype], MODEL.get(model_dtype, 0.0))
    if worst <= allowed or (dtype in (torch.bfloat16, torch.float16) and worst <= max(allowed, 1.5 * own_error())):
        return None
    return f"it is off by {worst:.1e} on an image, allowed {allowed:.1e}"


def largest_error(result: Any, expected: Any) -> float:
    """Over all floating results."""
    pairs = zip(flatten(result)[0], flatten(expected)[0])
    return max((relative_error(y, r) for y, r in pairs if isinstance(r, Tensor) and r.is_floating_point()), default=0.0)
