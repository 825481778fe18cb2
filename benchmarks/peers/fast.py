"""hrnet_fast's model, channels_last."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import hrnet_fast as hf
from benchmarks.peers import Job, without_changes
from hrnet_fast.bench.contenders import FAST

NAME = FAST


def why_not(dtype: torch.dtype) -> str | None:
    """It runs wherever PyTorch does, in floating point."""
    return "its modules have no scales for int8" if dtype == torch.int8 else None


def prepare(job: Job) -> Callable[[], Tensor]:
    """The fast form with the job's weights."""
    network, image = without_changes(job, same_weights)
    return lambda: network(image)


def same_weights(plain: nn.Module) -> nn.Module:
    """The fast form of a network of create_model."""
    network = hf.create_model(**plain.recipe, fast=True).eval().requires_grad_(False)
    network.load_state_dict(plain.state_dict())
    return network
