"""What people would pick instead of hrnet_fast, each in its best form, and hrnet_fast beside them; one module each.

A module has ``NAME``, ``why_not(dtype)``, which says why it cannot run here (None: it can), and ``prepare(job)``, which
returns a callable that computes the job's network on the job's image, as a tensor [N, ...]. What a peer needs beyond
PyTorch is imported by these functions only. All get the same weights and the same image.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.models import randomize


@dataclass(frozen=True)
class Job:
    """A network and an image for it. Weights and pixels are float32 numbers that ``dtype`` holds exactly.

    In int8 they are not rounded: every contender finds its own scales, from the images for calibration.
    """

    plain: nn.Module  # of create_model(fast=False), in evaluation; nobody changes it
    image: Tensor  # [N, 3, H, W] float32, contiguous
    dtype: torch.dtype  # to compute in
    threads: int
    calibration: Tensor | None = None  # [M, 3, H, W] float32: other images, for the scales of int8; else None

    @classmethod
    def create(
        cls,
        model: str,
        task: str,
        image: Tensor,
        dtype: torch.dtype,
        threads: int,
        batch: int = 1,
        calibration: Tensor | None = None,
    ) -> "Job":
        """Random weights, the same on every machine; ``image`` [1, 3, H, W] is repeated to a batch.

        Raises:
            ValueError: int8 without images for calibration, or another dtype with them.
        """
        if (dtype == torch.int8) != (calibration is not None):
            raise ValueError(f"calibration: expected images for int8 and None for other dtypes, got {dtype}")
        plain = randomize(hf.create_model(model, task=task, fast=False).eval()).requires_grad_(False)
        if dtype != torch.int8:
            plain, image = plain.to(dtype).float(), image.to(dtype).float()
        return cls(plain, image.repeat(batch, 1, 1, 1), dtype, threads, calibration)

    def reference(self) -> Tensor:
        """The network on the image in float64."""
        with torch.inference_mode():
            return copy.deepcopy(self.plain).double()(self.image.double())


def table() -> dict[str, ModuleType]:
    """Every contender by its name, in the order in which they take turns; hrnet_fast comes last."""
    from benchmarks.peers import compiled, eager, fast, onnx_runtime, openvino_runtime, optimized

    return {module.NAME: module for module in (eager, compiled, onnx_runtime, openvino_runtime, fast, optimized)}


def ours() -> tuple[str, ...]:
    """The names of those contenders that are hrnet_fast."""
    from benchmarks.peers import fast, optimized

    return fast.NAME, optimized.NAME


def without_changes(job: Job, make: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, Tensor]:
    """``make`` of a copy of the network, and the image, both in the job's dtype and channels_last."""
    network = make(copy.deepcopy(job.plain)).to(job.dtype).to(memory_format=torch.channels_last)
    return network, job.image.to(job.dtype).contiguous(memory_format=torch.channels_last)
