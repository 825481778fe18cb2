"""The derivatives of the exchange, first and second: as autograd sees them, whichever backend computed the forward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.ops import conv1x1
from hrnet_fast.ops.backends import reference
from hrnet_fast.ops.exchange.call import ExchangeCall, is_channels_last, lay_out
from hrnet_fast.ops.transforms import apply, batched, below_autograd, transformed


def save(ctx, inputs, output) -> None:
    """Keeps what the derivative reads: of the inputs only those with a weight, the output only where a ReLU was."""
    tensors, weights, weighted, bias, projection, projection_bias, *ctx.settings = inputs
    ctx.weighted, ctx.count = weighted, len(weights)
    ctx.sizes = [tuple(x.shape[2:]) for x in tensors]
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.projected = projection is not None
    if ctx.projected:  # what comes before the projection was never stored, and is computed again
        ctx.save_for_backward(*weights, projection, projection_bias, bias, *tensors)
        return
    through = [x for j, x in enumerate(tensors) if weighted >> j & 1]
    ctx.save_for_backward(*weights, *through, output if ctx.settings[-2] else None)


def backward(ctx, grad: Tensor):
    """The derivative: the transposed interpolation is an operator of its own, the small products are standard ones."""
    height, width, mode, align_corners, relu, _ = ctx.settings
    kept = ctx.saved_tensors  # once: activation checkpointing computes them at that moment, and only then
    weights, saved = kept[: ctx.count], kept[ctx.count :]
    d_projection = d_projection_bias = None
    if ctx.projected:
        projection, projection_bias, bias, *tensors = saved
        output = differentiable(
            ExchangeCall.from_arguments(tensors, weights, ctx.weighted, bias, None, None, *ctx.settings)
        )
        through = [x for j, x in enumerate(tensors) if ctx.weighted >> j & 1]
        g = grad.to(torch.promote_types(grad.dtype, torch.float32))
        d_projection = _outer(g, output).reshape_as(projection).to(projection.dtype)
        d_projection_bias = None if projection_bias is None else g.sum((0, 2, 3)).to(projection_bias.dtype)
        grad = _times(g, projection.flatten(1).t()).to(grad.dtype)
        output = output if relu else None
    else:
        *through, output = saved
    low = [size for size in ctx.sizes if size != (height, width)]
    # without a ReLU all inputs of full size have the incoming gradient itself
    same = relu and (len(low) < len(ctx.sizes) or ctx.bias_dtype is not None)
    flat = [n for size in low for n in size]
    found = _differentiable_backward(grad, output, flat, mode, align_corners, same) if flat or same else []
    g = found[-1] if same else grad
    smaller, given, sources = iter(found), iter(weights), iter(through)
    d_inputs, d_weights = [], []
    for j, size in enumerate(ctx.sizes):
        dz = g if size == (height, width) else next(smaller)
        if not ctx.weighted >> j & 1:
            d_inputs.append(dz)
            continue
        weight, x = next(given), next(sources)
        d_inputs.append(_times(dz, weight.flatten(1).t()))
        d_weights.append(_outer(dz, x).reshape_as(weight).to(weight.dtype))
    wide = torch.promote_types(grad.dtype, torch.float32)
    d_bias = None if ctx.bias_dtype is None else g.sum((0, 2, 3), dtype=wide).to(ctx.bias_dtype)
    return d_inputs, d_weights, None, d_bias, d_projection, d_projection_bias, *[None] * len(ctx.settings)


class _Exchange(torch.autograd.Function):
    """The derivative again, for eager calls: 60 us less per call than through torch.library's Python layer."""

    @staticmethod
    def forward(counts, settings, *tensors):
        n, m, weighted = counts
        inputs, weights, rest = tensors[:n], tensors[n : n + m], tensors[n + m :]
        return below_autograd(torch.ops.hrnet_fast.exchange_fwd, inputs, weights, weighted, *rest, *settings)

    @staticmethod
    def setup_context(ctx, inputs, output):
        (n, m, weighted), settings, *tensors = inputs
        save(ctx, (tensors[:n], tensors[n : n + m], weighted, *tensors[n + m :], *settings), output)

    @staticmethod
    def backward(ctx, grad):
        d_inputs, d_weights, _, *rest = backward(ctx, grad)
        return None, None, *d_inputs, *d_weights, *rest[:3]


def differentiable(call: ExchangeCall) -> Tensor:
    """The exchange, recorded by autograd. Graphs and autocast get the operator, which dispatch knows."""
    if transformed() or batched():
        return reference.run(call)
    inputs, weights, weighted, *rest = call.arguments()
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(inputs[0].device.type):
        return torch.ops.hrnet_fast.exchange(inputs, weights, weighted, *rest)
    return apply(_Exchange, (len(inputs), len(weights), weighted), rest[3:], *inputs, *weights, *rest[:3])


def _times(x: Tensor, weight: Tensor) -> Tensor:  # [N, C, H, W], [O, C] -> [N, O, H, W]
    return conv1x1.conv1x1(x, weight.to(x.dtype))


def _outer(dz: Tensor, x: Tensor) -> Tensor:  # [N, O, H, W], [N, C, H, W] -> [O, C], summed in float32 or wider
    wide = torch.promote_types(dz.dtype, torch.float32)
    dz, x = dz.to(wide), x.to(wide)
    if batched():  # the vmap of is_grads_batched has neither einsum nor flatten
        dz, x = (t.reshape(*t.shape[:2], t.shape[2] * t.shape[3]) for t in (dz, x))
        return torch.matmul(dz, x.transpose(1, 2)).sum(0)
    return torch.einsum("nohw,nchw->oc", dz, x)


def exchange_backward(grad, output, sizes, mode, align_corners, same) -> list[Tensor]:
    """exchange_backward in standard operators, for devices without a kernel; computed in float32 or wider."""
    g = grad if output is None else torch.where(output <= 0, torch.zeros_like(grad), grad)
    wide = g.to(torch.promote_types(g.dtype, torch.float32))
    found = [_upsample_backward(wide, size, mode, align_corners).to(grad.dtype) for size in pairs(sizes)]
    layout = backward_layout(grad, output)
    return [lay_out(x, layout) for x in ([*found, g] if same else found)]


def backward_layout(grad: Tensor, output: Tensor | None) -> torch.memory_format:
    """Of the gradients: as the output lies in memory, for the kernels walk through both at once."""
    return torch.channels_last if is_channels_last(grad if output is None else output) else torch.contiguous_format


def pairs(sizes) -> list[tuple]:
    return list(zip(sizes[::2], sizes[1::2], strict=True))


def _upsample_backward(g: Tensor, low: tuple, mode: str, align_corners: bool) -> Tensor:
    """The transpose of the interpolation from a lower size, applied to g [N, C, H, W]."""
    size, source = tuple(g.shape[2:]), (*g.shape[:2], *low)
    if source[2:] == size:
        return g.clone()
    if g.numel() == 0:
        return g.new_zeros(source)
    if mode == "nearest":
        return torch.ops.aten.upsample_nearest2d_backward(g, size, source)
    return torch.ops.aten.upsample_bilinear2d_backward(g, size, source, align_corners)


def save_linear(ctx, inputs, output) -> None:
    grad, saved, _, *ctx.settings = inputs
    ctx.size = tuple(grad.shape[2:])
    ctx.save_for_backward(saved)


def transpose(ctx, grads: Sequence[Tensor | None]):
    """exchange_backward is linear in the gradient, and its transpose is the exchange itself."""
    (output,) = ctx.saved_tensors
    mode, align_corners, _ = ctx.settings
    given = [g for g in grads if g is not None]
    if not given:
        return None, *[None] * 5
    arguments = given, [], 0, None, None, None, *ctx.size, mode, align_corners, False, False
    d = differentiable(ExchangeCall.from_arguments(*arguments))
    return d if output is None else torch.where(output <= 0, torch.zeros_like(d), d), *[None] * 5


class _ExchangeBackward(torch.autograd.Function):
    """The second derivative, for eager calls; torch.func has no way through torch.library's Python layer."""

    @staticmethod
    def forward(grad, *arguments):
        return tuple(below_autograd(torch.ops.hrnet_fast.exchange_backward_fwd, grad, *arguments))

    @staticmethod
    def setup_context(ctx, inputs, output):
        save_linear(ctx, inputs, output)

    @staticmethod
    def backward(ctx, *grads):
        return transpose(ctx, grads)


def _differentiable_backward(grad, *arguments) -> Sequence[Tensor]:
    if transformed() or batched():
        return exchange_backward(grad, *arguments)
    if torch.compiler.is_compiling():
        return torch.ops.hrnet_fast.exchange_backward(grad, *arguments)
    if not torch.is_grad_enabled():  # a first derivative, as almost always
        return below_autograd(torch.ops.hrnet_fast.exchange_backward_fwd, grad, *arguments)
    return _ExchangeBackward.apply(grad, *arguments)
