"""What the cases share: the record of a case, its inputs, its random weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hrnet_fast.bench import report
from hrnet_fast.bench.contenders import channels_last
from hrnet_fast.bench.harness import Prepared

SEED = 2
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    ``measure(budget, compiled, progress)`` returns its record; ``prepare()`` what it is made of, without torch.compile.
    """

    name: str
    description: str
    dtype: str
    baseline: str
    prepare: Callable[[], Prepared]
    measure: Callable[[float, bool, Callable | None], report.Case]


def streams(c: int, count: int, height: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """What ``count`` parallel streams hand to an exchange: [1, c * 2^j, height / 2^j, width / 2^j], channels_last."""
    generator = torch.Generator().manual_seed(SEED)
    # behind a ReLU, as in the network
    made = [torch.randn(1, c << j, height >> j, width >> j, generator=generator).relu() for j in range(count)]
    return channels_last([x.to(dtype) for x in made])


def randomize(module: nn.Module) -> nn.Module:
    """Weights that keep activations of order 1, and BatchNorms whose folding changes every number."""
    generator = torch.Generator().manual_seed(SEED)

    def fill(tensor: Tensor, mean: float, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation + mean)

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                fill(layer.weight, 0.0, layer.weight[0].numel() ** -0.5)
            elif isinstance(layer, nn.BatchNorm2d):
                for tensor, mean in ((layer.weight, 1.0), (layer.bias, 0.0), (layer.running_mean, 0.0)):
                    fill(tensor, mean, 0.2)
                layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.5)
    return module
