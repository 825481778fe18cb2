"""hrnet_fast.optimize of the fast model."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

import hrnet_fast as hf
from benchmarks.peers import Job, fast
from hrnet_fast.bench.contenders import OPTIMIZED

NAME = OPTIMIZED


def why_not(dtype: torch.dtype) -> str | None:
    """This version of hrnet_fast has to have it, and for int8 its calibration."""
    optimize = getattr(hf, "optimize", None)
    if optimize is None:
        return "this version of hrnet_fast has no optimize"
    if dtype == torch.int8 and "calibration" not in inspect.signature(optimize).parameters:
        return "this version of hrnet_fast.optimize has no int8"
    return None


def prepare(job: Job) -> Callable[[], Tensor]:
    """The engine, with the job's image channels_last as example and input: in its dtype, for int8 in float32."""
    if job.dtype == torch.int8:
        image = job.image.contiguous(memory_format=torch.channels_last)
        engine = hf.optimize(fast.same_weights(job.plain), image, dtype=torch.int8, calibration=job.calibration)
    else:
        image = job.image.to(job.dtype).contiguous(memory_format=torch.channels_last)
        engine = hf.optimize(fast.same_weights(job.plain), image, dtype=job.dtype)
    return lambda: engine(image)
