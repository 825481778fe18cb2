"""What one exchange is asked to do: the record that the public operator hands to a backend."""

from typing import NamedTuple

import torch
from torch import Tensor

from hrnet_fast.ops.transforms import batched

MAX_INPUTS = 8
MODES = ("bilinear", "nearest")
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class BackendFailed(RuntimeError):
    """A backend that had no objection to a call and could not serve it, nor will it serve another one."""


class ExchangeCall(NamedTuple):
    """A validated exchange: ``y = act(bias + sum_j up_size(W_j x_j))``, then, if asked for, a 1x1 projection of y."""

    inputs: list[Tensor]  # each [N, C_j, H_j, W_j]
    weights: list[Tensor | None]  # each [C_out, C_j] or [C_out, C_j, 1, 1], or None: the identity
    bias: Tensor | None  # [C_out]
    projection: Tensor | None  # [C_p, C_out] or [C_p, C_out, 1, 1]
    projection_bias: Tensor | None  # [C_p]
    height: int
    width: int
    mode: str  # "bilinear" or "nearest"
    align_corners: bool
    relu: bool
    allow_tf32: bool  # float32 products may be rounded to TF32 (CUDA only)

    def arguments(self) -> tuple:
        """The call as the arguments of the registered operator, whose schema takes no list with holes in it."""
        weights, weighted = [], 0
        for j, weight in enumerate(self.weights):
            if weight is not None:
                weights.append(weight)
                weighted |= 1 << j
        return self.inputs, weights, weighted, *self[2:]

    @classmethod
    def from_arguments(cls, inputs, weights, weighted, *rest) -> "ExchangeCall":
        """The inverse of ``arguments``."""
        given = iter(weights)
        return cls(list(inputs), [next(given) if weighted >> j & 1 else None for j in range(len(inputs))], *rest)

    @property
    def needs_grad(self) -> bool:
        """Whether autograd will ask for a gradient of this call."""
        if not torch.is_grad_enabled():
            return False
        tensors = (*self.inputs, *self.weights, self.bias, self.projection, self.projection_bias)
        return any(t is not None and t.requires_grad for t in tensors)


def is_channels_last(x: Tensor) -> bool:  # x [N, C, H, W]
    """Whether channels are innermost in memory. The kernels and the fakes decide the output's layout by this rule."""
    return x.stride(1) == 1 and x.stride(3) != 1


def lay_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    """x, dense in a memory format; under vmap, which has none, as it is."""
    return x if batched() else x.contiguous(memory_format=layout)


def output_memory_format(inputs: list[Tensor], height: int, width: int) -> torch.memory_format:
    """Memory format of the result: that of the first input that is already (height, width), else of the first input."""
    full = next((x for x in inputs if x.shape[2] == height and x.shape[3] == width), inputs[0])
    return torch.channels_last if is_channels_last(full) else torch.contiguous_format
