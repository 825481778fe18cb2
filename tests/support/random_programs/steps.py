"""What steps are made of: the plan that is drawn, the table of steps, a convolution in the many ways to write it."""

import random
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

STEPS: dict[type, float] = {}  # class -> how often it is drawn
DEEPEST = 2  # maps are as large as the image, or a half or a fourth of it


class Plan:
    """What is drawn, and the maps that there are so far: channels and level (the image's size halved so often)."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.maps: list[tuple[int, int]] = []

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def choice(self, *options: Any) -> Any:
        return self.random.choice(options)

    def channels(self) -> int:
        return self.choice(3, 4, 5, 6, 7, 8, 9, 12, 16)

    def pick(self, fits: Any = lambda c, level: True) -> int:
        """A map that fits, late ones rather than early ones."""
        fitting = [k for k, (c, level) in enumerate(self.maps) if fits(c, level)]
        return fitting[max(self.random.randrange(len(fitting)), self.random.randrange(len(fitting)))]


class Step(nn.Module):
    """Reads the maps ``reads`` and returns ``[*maps, *other results]``, maps of the channels and levels ``makes``."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.reads: list[int] = []
        self.makes: list[tuple[int, int]] = []
        self.set_up(plan)

    def set_up(self, plan: Plan) -> None:
        self.read(plan)

    def read(self, plan: Plan, fits: Any = lambda c, level: True) -> tuple[int, int]:
        self.reads.append(plan.pick(fits))
        return plan.maps[self.reads[-1]]


def step(weight: float = 1.0):
    def register(kind: type) -> type:
        STEPS[kind] = weight
        return kind

    return register


class ConvNorm(nn.Module):
    """Convolution, perhaps a norm, perhaps an activation, in one of the many ways to write it."""

    def __init__(
        self, plan: Plan, c_in: int, c_out: int, stride: int = 1, kernel: int | None = None, act: bool | None = None
    ):
        super().__init__()
        kernel = kernel or plan.choice(1, 3, 3, 3, 5)
        dilation = 2 if kernel == 3 and stride == 1 and plan.chance(0.1) else 1
        groups = c_in if c_in == c_out and plan.chance(0.15) else 1
        norm = plan.choice("batch", "batch", "batch", "group", "none")
        mode = "reflect" if kernel == 3 and dilation == 1 and plan.chance(0.05) else "zeros"
        self.conv = nn.Conv2d(
            c_in,
            c_out,
            kernel,
            stride,
            dilation * (kernel // 2),
            dilation,
            groups,
            bias=norm == "none" or plan.chance(0.3),
            padding_mode=mode,
        )
        self.norm = nn.BatchNorm2d(c_out, affine=plan.chance(0.9)) if norm == "batch" else None
        if norm == "group":
            self.norm = nn.GroupNorm(plan.choice(*(g for g in range(1, c_out + 1) if c_out % g == 0)), c_out)
        acts = (
            nn.ReLU(),
            nn.ReLU(inplace=True),
            F.relu,
            F.relu_,
            F.relu,
            nn.ReLU6(),
            nn.GELU(),
            F.silu,
            nn.LeakyReLU(0.1),
        )
        act = plan.chance(0.7) if act is None else act
        self.act = plan.choice(*acts) if act else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = y if self.norm is None else self.norm(y)
        return y if self.act is None else self.act(y)


def upsampled(y: Tensor, like: Tensor, mode: str) -> Tensor:
    if mode == "nearest":
        return F.interpolate(y, size=like.shape[2:], mode="nearest")
    return F.interpolate(y, size=like.shape[2:], mode="bilinear", align_corners=mode == "corners")
