"""Gradient checkpointing for each multi-resolution module: its inside is computed again in the backward pass."""

import contextlib
import functools

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def enable(model: nn.Module) -> nn.Module:
    """Checkpoint the bottlenecks of stage 1 and the modules of stages 2 to 4 while the model trains; returns it."""
    for name in ("layer1", "stage2", "stage3", "stage4"):
        for module in getattr(model, name):
            module.forward = functools.partial(_run, module, module.forward)
    return model


def _run(module: nn.Module, forward, x):
    if not module.training:
        return forward(x)
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    contexts = functools.partial(_contexts, norms)
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _contexts(norms):
    return contextlib.nullcontext(), _statistics_kept(norms)


@contextlib.contextmanager
def _statistics_kept(norms):
    """The second forward pass of a step must not count for the running statistics."""
    kept = [(n, n.momentum, n.num_batches_tracked) for n in norms]
    for n in norms:
        n.momentum = 0.0
        n.num_batches_tracked = None
    try:
        yield
    finally:
        for n, momentum, tracked in kept:
            n.momentum, n.num_batches_tracked = momentum, tracked
