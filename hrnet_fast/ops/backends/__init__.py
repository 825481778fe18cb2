"""The table of backends, and the choice among them.

Each backend is a module with two functions: ``why_not(call) -> str | None`` says why it cannot serve a call (None: it
can; ``why_not(None)`` asks about the machine alone), and ``run(call) -> Tensor`` serves it. It may have more:
``run_together`` with ``why_not_together``, ``backward`` with ``why_not_backward``, and ``interpolate_argmax`` with
``why_not_argmax``.

"auto" takes the first of ``TABLE`` that has no objection. ``preferences`` holds the exceptions, for kinds of exchanges.
"""

import os
from types import ModuleType

import torch
from torch import Tensor

from hrnet_fast.ops import library
from hrnet_fast.ops.backends import cpu, cuda, gpu, preferences, reference, triton
from hrnet_fast.ops.exchange import autograd
from hrnet_fast.ops.exchange.call import BackendFailed, ExchangeCall
from hrnet_fast.ops.transforms import ordinary, transformed

TABLE: dict[str, ModuleType] = {"cpu": cpu, "cuda": cuda, "triton": triton, "reference": reference}


def choose(call: ExchangeCall, name: str = "auto") -> ModuleType:
    """The backend that serves ``call``.

    Raises:
        ValueError: ``name`` is not in the table.
        RuntimeError: the named backend cannot serve the call.
    """
    argument = "backend"
    if name == "auto":
        name, argument = os.environ.get("HRNET_FAST_BACKEND") or "auto", "HRNET_FAST_BACKEND"
    others = call.bias, call.projection, call.projection_bias
    kernels = not transformed() and ordinary([*call.inputs, *call.weights, *others])
    if name == "auto" and not kernels:
        return reference
    if name == "auto":
        device = call.inputs[0].device
        for candidate in _arranged(preferences.kind(call), device) if device.type == "cuda" else TABLE:
            if TABLE[candidate].why_not(call) is None:
                return TABLE[candidate]
    if name not in TABLE:
        raise ValueError(f"{argument}: expected 'auto' or one of {', '.join(map(repr, TABLE))}, got {name!r}")
    reason = TABLE[name].why_not(call)
    if not kernels and name != "reference":
        reason = (
            "in forward-mode differentiation and vmap, and for tensors of a class that is not torch's, only standard "
            "operators are used; take backend='auto'"
        )
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot serve this call: {reason}")
    return TABLE[name]


def _arranged(kind: str, device: torch.device) -> list[str]:
    """The names of the table in the order in which a kind of exchange asks them on a GPU."""
    return preferences.arrange(list(TABLE), kind, gpu.capability(gpu.index_of(device)))


def run(call: ExchangeCall, name: str = "auto") -> Tensor:  # [N, C_out or C_p, H, W]
    """Serves ``call``. A backend of "auto" that turns out not to work here makes room for the next.

    Raises:
        ValueError: ``name`` is not in the table.
        RuntimeError: the named backend cannot serve the call.
    """
    if name == "auto" and call.inputs[0].is_cuda and torch.compiler.is_compiling() and not transformed():
        # a graph keeps the operator, which chooses when it runs: what the machine has cannot be traced
        return (
            autograd.differentiable(call) if call.needs_grad else torch.ops.hrnet_fast.exchange_fwd(*call.arguments())
        )
    while True:
        backend = choose(call, name)
        try:
            return backend.run(call)
        except BackendFailed:
            if name != "auto" or os.environ.get("HRNET_FAST_BACKEND"):
                raise


def run_all(calls: list[ExchangeCall]) -> list[Tensor]:
    """Serves calls that do not depend on each other, in one launch where a backend can."""
    if calls and calls[0].inputs[0].is_cuda and not torch.compiler.is_compiling():
        backend = choose(calls[0])
        together = getattr(backend, "run_together", None)
        # one launch for all, also for those that another backend would serve first by themselves
        fit = together is not None and all(backend.why_not(c) is None for c in calls)
        if fit and backend.why_not_together(calls) is None:
            try:
                return together(calls)
            except BackendFailed:
                pass  # the calls one by one find the next backend
    return [run(call) for call in calls]


def _on_gpu(*arguments) -> Tensor:
    """The operator on CUDA tensors, as graphs and autograd call it."""
    return run(ExchangeCall.from_arguments(*arguments))


def _backward_on_gpu(grad: Tensor, *rest) -> list[Tensor]:
    """exchange_backward on CUDA tensors: by the first kernel that can, else in standard operators."""
    if grad.numel() == 0:  # a launch of nothing is an error
        return autograd.exchange_backward(grad, *rest)
    for name in _arranged("backward", grad.device):
        backend = TABLE[name]
        if hasattr(backend, "backward") and backend.why_not_backward(grad) is None:
            try:
                return backend.backward(grad, *rest)
            except BackendFailed:
                pass  # the next one
    return autograd.exchange_backward(grad, *rest)


for _name in library.OPERATORS:
    library.implement(_name, _on_gpu)
for _name in library.BACKWARD_OPERATORS:
    library.implement(_name, _backward_on_gpu)
