"""The operators in torch's dispatcher: schemas, fakes, autocast, autograd and FLOP counts.

Schemas and CPU kernels come from the compiled extension ``hrnet_fast._C``. Where it is missing, the same schemas are
defined here with the reference as their implementation, so that programs that name the operators still run.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from hrnet_fast.ops.backends import reference
from hrnet_fast.ops.exchange import autograd
from hrnet_fast.ops.exchange.call import ExchangeCall, output_memory_format
from hrnet_fast.ops.lazy_registration import on_import

# weights holds those that there are; bit j of weighted is set where inputs[j] goes through the next of them
SCHEMA = (
    "(Tensor[] inputs, Tensor[] weights, int weighted, Tensor? bias, Tensor? projection, Tensor? projection_bias, "
    "SymInt height, SymInt width, str mode, bool align_corners, bool relu, bool allow_tf32) -> Tensor"
)
BACKWARD_SCHEMA = "(Tensor grad, Tensor? output, SymInt[] sizes, str mode, bool align_corners, bool same) -> Tensor[]"
BACKWARD_OPERATORS = ("exchange_backward", "exchange_backward_fwd")
OPERATORS = ("exchange", "exchange_fwd")  # the same function; only the first carries a derivative
FLOP_COUNTER = "torch.utils.flop_counter"

extension_error: str | None = None  # why the compiled CPU kernels are not there
try:
    import hrnet_fast._C  # noqa: F401
except ImportError as error:
    extension_error = f"the compiled extension hrnet_fast._C is not there ({error})"

if extension_error is not None:
    _definitions = torch.library.Library("hrnet_fast", "DEF")
    for _name in BACKWARD_OPERATORS:
        _definitions.define(_name + BACKWARD_SCHEMA)
    for _name in OPERATORS:
        _definitions.define(_name + SCHEMA)
        _definitions.impl(
            _name, lambda *args: reference.run(ExchangeCall.from_arguments(*args)), "CompositeExplicitAutograd"
        )
_registrations = torch.library.Library("hrnet_fast", "FRAGMENT")


def _fake(inputs, weights, weighted, bias, projection, projection_bias, height, width, *settings):
    channels = (weights[0].shape[0] if weights else inputs[0].shape[1]) if projection is None else projection.shape[0]
    shape = (inputs[0].shape[0], channels, height, width)
    return inputs[0].new_empty(shape).contiguous(memory_format=output_memory_format(inputs, height, width))


def _autocast_kernel(name: str, device: str):
    """A kernel that casts to the current autocast dtype (torch.library.register_autocast knows only fixed ones)."""
    op = getattr(torch.ops.hrnet_fast, name).default
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def kernel(inputs, weights, weighted, bias, projection, projection_bias, *rest):
        dtype = torch.get_autocast_dtype(device)

        def cast(t: Tensor | None) -> Tensor | None:
            return t if t is None or t.dtype == torch.float64 else t.to(dtype)

        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(
                [cast(x) for x in inputs],
                [cast(w) for w in weights],
                weighted,
                cast(bias),
                cast(projection),
                cast(projection_bias),
                *rest,
            )

    return kernel


def _flops(inputs, weights, weighted, bias, projection, projection_bias, height, width, *args, **kwargs) -> int:
    """Multiply-adds, times two, that are really executed: each convolution at its own input's resolution.

    The shapes of the tensors arrive in their place, as torch.utils.flop_counter hands them to formulas.
    """
    through = [x for j, x in enumerate(inputs) if weighted >> j & 1]
    macs = sum(w[0] * x[0] * x[1] * x[2] * x[3] for x, w in zip(through, weights, strict=True))
    if projection is not None:
        macs += inputs[0][0] * projection[0] * projection[1] * height * width
    return 2 * macs


class _ReverseOnly(torch.library.Library):
    """Registers derivatives of torch.library so that they refuse tangents, which would be dropped without a word.

    What this package calls itself it calls ``autograd.below_autograd``: kernels in Python double the price of a small
    call.
    """

    def impl(self, op_name, fn, *arguments, **keywords):
        op = getattr(torch.ops.hrnet_fast, op_name).default

        def kernel(keyset, *args):
            if forward_ad._current_level >= 0 and any(map(_has_tangent, tree_leaves(args))):
                raise NotImplementedError(
                    f"torch.ops.hrnet_fast.{op_name} has no forward-mode derivative; hrnet_fast.exchange has one"
                )
            return fn(keyset, *args) if torch.is_grad_enabled() else _below_autograd(op, *args)

        super().impl(op_name, kernel, *arguments, **keywords)


def _below_autograd(op, *args):
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _has_tangent(x) -> bool:
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None


def refuse_derivatives(name: str) -> None:
    """Registers that an operator has none, forward or reverse: torch would leave them out, with a warning at best."""
    op = getattr(torch.ops.hrnet_fast, name).default

    def kernel(*args):
        tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        if (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)) or any(map(_has_tangent, tensors)):
            raise NotImplementedError(f"torch.ops.hrnet_fast.{name} has no derivative")
        return _below_autograd(op, *args)

    _registrations.impl(name, kernel, "Autograd")


def _register_vmap(name: str) -> None:
    """The batching rule of an operator: one call after the other."""
    op = getattr(torch.ops.hrnet_fast, name).default

    def rule(info, in_dims, *args):
        dims = tree_leaves(in_dims, is_leaf=lambda d: d is None)
        leaves, structure = tree_flatten(args, is_leaf=lambda x: x is None)
        results = [
            op(
                *tree_unflatten(
                    [x if d is None else x.select(d, i) for x, d in zip(leaves, dims, strict=True)], structure
                )
            )
            for i in range(info.batch_size)
        ]
        return tree_map(lambda *found: torch.stack(found), *results), 0

    torch.library.register_vmap(f"hrnet_fast::{name}", rule, lib=_registrations)


def _fake_backward(grad, output, sizes, mode, align_corners, same) -> list[Tensor]:
    layout = autograd.backward_layout(grad, output)
    shapes = [*autograd.pairs(sizes), *([tuple(grad.shape[2:])] if same else [])]
    return [grad.new_empty((*grad.shape[:2], *size)).contiguous(memory_format=layout) for size in shapes]


def _fake_batch_norm(x, weight, bias, mean, var, widths, relu, eps) -> list[Tensor]:
    parts = [_dense_like(x, width) for width in widths]
    return parts if mean is not None else [*parts, torch.empty_like(weight), torch.empty_like(weight)]


def _fake_batch_norm_backward(grads, x, weight, bias, mean, var, relu, eps, batch) -> list[Tensor]:
    return [_dense_like(x, x.shape[1]), torch.empty_like(weight), torch.empty_like(bias)]


def _dense_like(x: Tensor, channels: int) -> Tensor:
    shape = x.shape[0], channels, *x.shape[2:]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _complete(name: str) -> None:
    """Fake, vmap, autocast and autograd of an operator with the exchange's schema; its kernels come from elsewhere."""
    torch.library.register_fake(f"hrnet_fast::{name}", _fake)
    _register_vmap(name)
    for device in ("cpu", "cuda"):
        _registrations.impl(name, _autocast_kernel(name, device), f"Autocast{device.upper()}")
    torch.library.register_autograd(
        f"hrnet_fast::{name}", autograd.backward, setup_context=autograd.save, lib=_derivatives
    )


_derivatives = _ReverseOnly("hrnet_fast", "FRAGMENT")
for _name in OPERATORS:
    _complete(_name)
for _name in BACKWARD_OPERATORS:
    _registrations.impl(_name, autograd.exchange_backward, "CompositeExplicitAutograd")  # where there is no kernel
    torch.library.register_fake(f"hrnet_fast::{_name}", _fake_backward)
    _register_vmap(_name)
    torch.library.register_autograd(
        f"hrnet_fast::{_name}", autograd.transpose, setup_context=autograd.save_linear, lib=_derivatives
    )


if extension_error is None:  # for training on the CPU; there is no other implementation of them
    torch.library.register_fake("hrnet_fast::batch_norm", _fake_batch_norm)
    torch.library.register_fake("hrnet_fast::batch_norm_backward", _fake_batch_norm_backward)
    for _name in ("batch_norm", "batch_norm_backward", "run_program", "time_program", "pack_convolution", "pack_tiles"):
        refuse_derivatives(_name)


exchanges = list(OPERATORS)  # all operators with that schema; backends add theirs


def _register_flops(flop_counter) -> None:
    for name in exchanges:
        flop_counter.register_flop_formula(getattr(torch.ops.hrnet_fast, name))(_flops)


def define(schema: str) -> None:
    """Adds an operator that has kernels only, for the module that calls it."""
    _registrations.define(schema)


def define_exchange(name: str, kernel: Callable) -> None:
    """Adds the exchange by one backend for CUDA tensors, as an operator of its own: schema, derivatives, FLOPs."""
    _registrations.define(name + SCHEMA)
    _complete(name)
    implement(name, kernel)
    exchanges.append(name)
    if FLOP_COUNTER in sys.modules:  # else all are registered when somebody imports it
        sys.modules[FLOP_COUNTER].register_flop_formula(getattr(torch.ops.hrnet_fast, name))(_flops)


def implement(name: str, kernel: Callable, key: str = "CUDA") -> None:
    """Registers the kernel of an operator for CUDA tensors, or under another dispatch key."""
    _registrations.impl(name, kernel, key)


# torch's counter imports triton on CUDA builds: 100 ms and more that only those who count should pay
on_import(FLOP_COUNTER, _register_flops)
