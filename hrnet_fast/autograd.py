"""Calls of autograd functions at half of torch's price."""

import functools

import torch
from torch.autograd import Function


def apply(function: type[Function], *arguments):
    """``function.apply`` of a function with setup_context.

    torch binds the arguments of such a function to its signature at every call, which costs 20 to 40 us. Only torch.func
    transforms need that form; everything else gets the same function in the form whose forward takes the context.
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
