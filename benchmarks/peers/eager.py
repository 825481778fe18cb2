"""Plain PyTorch, channels_last, BatchNorm folded."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import Job, forms, without_changes

NAME = "eager channels_last"


def why_not(dtype: torch.dtype) -> str | None:
    """It runs wherever PyTorch does, in floating point."""
    return "plain modules have no scales for int8" if dtype == torch.int8 else None


def prepare(job: Job) -> Callable[[], Tensor]:
    """The folded network."""
    network, image = without_changes(job, forms.folded)
    return lambda: network(image)
