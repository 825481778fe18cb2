"""An exchange unit's convolutions and norms in training on the CPU: those of one stream side by side.

One wide convolution takes less time than several narrow ones, forward and back, reads its input once, and needs no sum
of gradients; one kernel does the norms and ReLUs behind it. Each convolution and norm keeps its own parameters and
statistics.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrnet_fast.nn.module_fingerprint import OF_CONV, OF_NORM, altered
from hrnet_fast.ops.batch_norm_relu import batch_norm
from hrnet_fast.ops.library import extension_error
from hrnet_fast.ops.transforms import ordinary


class Step(NamedTuple):
    """A convolution, the norm behind it, and whether a ReLU follows."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    relu: bool

    def joins(self) -> bool:
        """Whether it is one that ``Joined`` computes."""
        conv, norm = self.conv, self.norm
        if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or altered((conv, norm)):
            return False
        if norm.track_running_stats == (norm.running_mean is None):
            return False
        return conv.bias is None and conv.groups == 1 and conv.padding_mode == "zeros" and norm.affine

    def settings(self) -> tuple:
        """Steps that start from one tensor and have the same settings become one."""
        return (*(getattr(self.conv, k) for k in OF_CONV), *(getattr(self.norm, k) for k in OF_NORM))


class Joined:
    """Steps that start from one tensor, as one."""

    def __init__(self, steps: Sequence[Step]):
        conv, norm = steps[0].conv, steps[0].norm
        self._geometry = conv.stride, conv.padding, conv.dilation
        self._convs = [vars(step.conv)["_parameters"] for step in steps]
        self._norms = [step.norm for step in steps]
        self._parameters = [vars(n)["_parameters"] for n in self._norms]
        self._buffers = [vars(n)["_buffers"] for n in self._norms]
        self._widths = [step.conv.out_channels for step in steps]
        self._relu = [step.relu for step in steps]
        self._training, self._tracks, self._eps = norm.training, norm.track_running_stats, norm.eps
        self._momentum = norm.momentum

    def serves(self) -> bool:
        """Whether the parameters and statistics of this moment are there, and torch's own."""
        tensors = [holder["weight"] for holder in self._convs]
        tensors += [holder[name] for holder in self._parameters for name in ("weight", "bias")]
        if self._tracks:
            tensors += [holder[name] for holder in self._buffers for name in ("running_mean", "running_var")]
        return all(t is not None for t in tensors) and ordinary(tensors)

    def __call__(self, x: Tensor) -> list[Tensor]:  # [N, C, H, W], channels_last
        y = F.conv2d(x, _joined(self._convs, "weight"), None, *self._geometry)
        y = y.contiguous(memory_format=torch.channels_last)
        count = y.numel() // y.shape[1]
        given = None
        wide = torch.promote_types(y.dtype, torch.float32)
        if not self._training and self._tracks:
            given = tuple(_joined(self._buffers, name).to(wide) for name in ("running_mean", "running_var"))
        elif count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {y.size()}")
        weight, bias = (_joined(self._parameters, name).to(wide) for name in ("weight", "bias"))
        parts, moments = batch_norm(y, weight, bias, self._widths, self._relu, self._eps, given)
        if self._training and self._tracks:
            with torch.no_grad():
                self._update(*moments, count)
        return parts

    def _update(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Running statistics as nn.BatchNorm2d keeps them."""
        counters = [b["num_batches_tracked"] for b in self._buffers if b["num_batches_tracked"] is not None]
        if counters:
            torch._foreach_add_(counters, 1)
        for name, batch in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
            running = [b[name] for b in self._buffers]
            found = batch.to(running[0].dtype).split(self._widths)
            if self._momentum is not None:
                torch._foreach_lerp_(running, found, self._momentum)
                continue
            for buffers, old, new in zip(self._buffers, running, found, strict=True):  # the average of all batches
                tracked = buffers["num_batches_tracked"]
                old.lerp_(new, 0.0 if tracked is None else 1 / float(tracked))


def _joined(holders: list[dict], name: str) -> Tensor:
    return holders[0][name] if len(holders) == 1 else torch.cat([holder[name] for holder in holders])


class Chains(NamedTuple):
    """What the paths that leave one stream begin with, and how those of several steps go on."""

    first: list[tuple[Joined, list[int]]]  # with the outputs that they lead to
    rest: dict[int, list[Joined]]

    def serve(self) -> bool:
        """Whether all of them can be computed so at this moment."""
        return all(step.serves() for step in (*(j for j, _ in self.first), *(j for r in self.rest.values() for j in r)))

    def __call__(self, x: Tensor) -> dict[int, Tensor]:
        """By output, what the chain that leads there makes of x [N, C, H, W]."""
        found = {i: y for joined, targets in self.first for i, y in zip(targets, joined(x), strict=True)}
        for i, steps in self.rest.items():
            for step in steps:
                found[i] = step(found[i])[0]
        return found


def chains(paths: dict[int, Sequence[Step]]) -> Chains:
    """Joins the first steps of chains from one stream, given by output; leaves out those that must run as modules."""
    paths = {i: steps for i, steps in paths.items() if all(step.joins() for step in steps)}
    alike: dict[tuple, list[int]] = {}
    for i, steps in paths.items():
        alike.setdefault(steps[0].settings(), []).append(i)
    first = [(Joined([paths[i][0] for i in targets]), targets) for targets in alike.values()]
    return Chains(first, {i: [Joined([step]) for step in steps[1:]] for i, steps in paths.items() if len(steps) > 1})


def may_join(x: Tensor) -> bool:
    """Whether streams like x are served: channels_last on the CPU, outside of torch.compile."""
    if x.device.type != "cpu" or extension_error is not None or torch.compiler.is_compiling():
        return False
    return x.numel() > 0 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
