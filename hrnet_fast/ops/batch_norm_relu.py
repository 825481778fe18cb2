"""BatchNorm of several convolutions that ran side by side, with their ReLUs, in training on the CPU.

One kernel reads the joined result once for the statistics and once more to normalize it, and each norm's channels leave
as a tensor of their own; the backward is as short. torch's own operators take BatchNorm, ReLU and the parting one by one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.ops.transforms import apply, below_autograd


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    widths: Sequence[int],
    relu: Sequence[bool],
    eps: float,
    given: tuple[Tensor, Tensor] | None = None,
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """BatchNorm of x, cut into segments of channels.

    Args:
        x: [N, C, H, W], dense and channels_last, on the CPU; at least two pixels where the batch's statistics are used.
        weight: [C], in float32 (float64 for float64), as are all that follow.
        bias: [C].
        widths: channels of each segment, C together.
        relu: for each segment, whether a ReLU follows.
        eps: added to the variance.
        given: mean and variance [C] to be used in place of the batch's.

    Returns:
        A tensor [N, width, H, W] for each segment, in x's dtype; and mean and biased variance [C].
    """
    mask = sum(1 << s for s, follows in enumerate(relu) if follows)
    found = apply(_BatchNorm, x, weight, bias, *(given or (None, None)), list(widths), mask, eps)
    if given is not None:
        return list(found), given
    *parts, mean, var = found
    return parts, (mean, var)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, mean, var, widths, relu, eps):
        return tuple(below_autograd(torch.ops.hrnet_fast.batch_norm, x, weight, bias, mean, var, widths, relu, eps))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, mean, var, ctx.widths, ctx.relu, ctx.eps = inputs
        ctx.batch = mean is None
        if ctx.batch:
            mean, var = output[-2:]
            ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, weight, bias, mean, var)

    @staticmethod
    def backward(ctx, *grads):
        x, weight, bias, mean, var = ctx.saved_tensors
        grads = grads[: len(ctx.widths)]
        if torch.is_grad_enabled():  # for a second derivative
            found = _derivative(grads, x, weight, bias, mean, var, ctx.widths, ctx.relu, ctx.eps, ctx.batch)
        else:
            dense = [g.contiguous(memory_format=torch.channels_last) for g in grads]
            arguments = dense, x, weight, bias, mean, var, ctx.relu, ctx.eps, ctx.batch
            found = below_autograd(torch.ops.hrnet_fast.batch_norm_backward, *arguments)
        return *found, None, None, None, None, None


def _derivative(grads, x, weight, bias, mean, var, widths, relu, eps, batch) -> tuple[Tensor, Tensor, Tensor]:
    """batch_norm_backward in operators that have derivatives themselves."""
    wide = x.to(weight.dtype)
    if batch:
        var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    inverse = torch.rsqrt(var + eps)
    normal = (wide - _channels(mean)) * _channels(inverse)
    y = normal * _channels(weight) + _channels(bias)
    masked = [
        torch.where(part <= 0, 0, g) if relu >> s & 1 else g
        for s, (g, part) in enumerate(zip(grads, y.split(widths, 1), strict=True))
    ]
    g = torch.cat(masked, 1).to(weight.dtype)
    d_weight, d_bias = (g * normal).sum((0, 2, 3)), g.sum((0, 2, 3))
    if batch:
        count = x.numel() // x.shape[1]
        g = g - (_channels(d_bias) + normal * _channels(d_weight)) / count
    return (g * _channels(weight * inverse)).to(x.dtype), d_weight, d_bias


def _channels(t: Tensor) -> Tensor:  # [C] -> [C, 1, 1]
    return t[:, None, None]
