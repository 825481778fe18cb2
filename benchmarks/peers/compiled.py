"""torch.compile with frozen weights and static shapes, channels_last."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import Job, forms, without_changes
from hrnet_fast.bench.contenders import COMPILED, compile_on_first_call

NAME = COMPILED


def why_not(dtype: torch.dtype) -> str | None:
    """torch.compile needs a C++ compiler, and computes in the network's own dtype."""
    if dtype == torch.int8:
        return "torch.compile does not quantize: torchao does, which is not among the peers"
    from torch._inductor import config, cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return f"torch.compile finds no C++ compiler (tried {config.cpp.cxx})"
    return None


def prepare(job: Job) -> Callable[[], Tensor]:
    """The network, compiled at its first call."""
    network, image = without_changes(job, forms.commuted)
    return compile_on_first_call(network, image)
