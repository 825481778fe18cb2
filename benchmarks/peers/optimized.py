"""hrnet_fast.optimize of the fast model."""

from collections.abc import Callable

import torch
from torch import Tensor

import hrnet_fast as hf
from benchmarks.peers import Job, fast
from hrnet_fast.bench.contenders import OPTIMIZED

NAME = OPTIMIZED


def why_not(dtype: torch.dtype) -> str | None:
    """This version of hrnet_fast has to have it."""
    return None if getattr(hf, "optimize", None) else "this version of hrnet_fast has no optimize"


def prepare(job: Job) -> Callable[[], Tensor]:
    """The engine, with the job's image in its dtype and channels_last as example and input."""
    image = job.image.to(job.dtype).contiguous(memory_format=torch.channels_last)
    engine = hf.optimize(fast.same_weights(job.plain), image, dtype=job.dtype)
    return lambda: engine(image)
