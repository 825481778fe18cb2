"""What torch is doing around a call, where only its own operators will do; cheaper autograd functions."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_functorch = torch._C._are_functorch_transforms_active
_VMAP, _GRAD = torch._C._functorch.TransformType.Vmap, torch._C._functorch.TransformType.Grad
_ORDINARY = {Tensor, torch.nn.Parameter, type(None)}
_OLD_VMAP = torch._C._dispatch_key_parse("VmapMode")  # torch.autograd.grad(is_grads_batched=True)


def transformed() -> bool:
    """Whether forward-mode derivatives or vmap are under way, which kernels do not know: standard operators do.

    Reverse-mode derivatives, those of torch.func too, are the kernels' own. The usual answer costs 0.1 us.
    """
    if forward_ad._current_level >= 0:
        return True
    return _functorch() and (torch.compiler.is_compiling() or any(kind != _GRAD for kind in _transforms()))


def batched() -> bool:
    """Whether vmap is under way, which knows no memory format but the contiguous one."""
    if _functorch():
        return torch.compiler.is_compiling() or _VMAP in _transforms()
    return not torch.compiler.is_compiling() and torch._C._dispatch_tls_is_dispatch_key_included(_OLD_VMAP)


def ordinary(given: Tensor | Sequence[Tensor | None]) -> bool:
    """Whether tensors are torch's own, as in every graph; of other classes only standard operators are known."""
    if torch.compiler.is_compiling() or (type(given) is list and _ORDINARY.issuperset(map(type, given))):
        return True
    kinds = set(map(type, given)) if isinstance(given, (list, tuple)) else {type(given)}
    return kinds <= _ORDINARY or all(k in _ORDINARY or k.__module__.startswith("torch._subclasses.") for k in kinds)


def foreign_mode() -> bool:
    """Whether a mode of somebody's own is on, for functions or operators; those of torch change no result."""
    functions, operators = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
    if not functions and not operators:
        return False
    modes = *_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()
    return any(type(mode).__module__.partition(".")[0] != "torch" for mode in modes)


def below_autograd(operator, *arguments):
    """Calls an operator of this package for tensors that carry no tangent, where nobody wants a gradient.

    What the operators have registered for everybody else, in Python, costs 10 us a call, passing it by 0.6 us.
    """
    if torch.compiler.is_compiling():  # a graph has the operator, whoever runs it
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def traced() -> bool:
    """Whether images and sizes are stand-ins: under torch.jit.trace and torch.fx.symbolic_trace."""
    return torch.jit.is_tracing() or is_fx_symbolic_tracing()


def _transforms() -> list:
    return [layer.key() for layer in torch._C._functorch.get_interpreter_stack() or ()]


def apply(function: type[Function], *arguments):
    """``function.apply`` of a function with setup_context.

    torch binds the arguments of such a function to its signature at every call, which costs 20 to 40 us. Only
    torch.func transforms need that form; everything else gets the same function in the form whose forward takes the
    context.
    """
    if torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return _with_context(function).apply(*arguments)


@functools.cache
def _with_context(function: type[Function]) -> type[Function]:
    class WithContext(Function):
        @staticmethod
        def forward(ctx, *arguments):
            output = function.forward(*arguments)
            function.setup_context(ctx, arguments, output)
            return output

        backward = staticmethod(function.backward)

    WithContext.__name__ = WithContext.__qualname__ = function.__name__  # for profilers and grad_fn
    return WithContext
