"""Steps that branch by the size or the values of an image, and steps with hooks on them."""

import functools
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.random_programs.steps import ConvNorm, Step, step


@step(3)
class SizeBranch(Step):
    """Python decides by sizes."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.way = plan.choice("pad", "one", "large", "ratio", "float", "odd", "area", "wide", "tensor", "loop")
        self.multiple, self.limit = plan.choice(2, 4, 8, 32), plan.choice(10, 20, 35)
        self.conv = ConvNorm(plan, c, c)
        self.makes = [(c, level)]

    def forward(self, x):
        n, _, h, w = x.shape
        if self.way == "pad":
            if h % self.multiple or w % self.multiple:
                bottom, right = -h % self.multiple, -w % self.multiple
                return [self.conv(F.pad(x, (0, right, 0, bottom)))[..., :h, :w]]
            return [self.conv(x)]
        if self.way == "one":
            return [self.conv(x[0][None]) if x.shape[0] == 1 else self.conv(x) * 2]
        if self.way == "large":
            return [self.conv(x) if h > self.limit else x - 1]
        if self.way == "ratio":
            return [F.interpolate(x, scale_factor=0.5, mode="nearest").mean() + x]
        if self.way == "float":
            return [x * (h * 1.5 / w) + x.sum() / float(h * w)]
        if self.way == "odd":
            if h % 2 and w % 2 and self.multiple > 4:
                raise ValueError(f"{h}x{w} is odd")
            return [self.conv(x)]
        if self.way == "area":
            return [self.conv(x) * (n * h * w) ** 0.5 / 50 + max(h, w) // 3 * 0.05]
        if self.way == "wide":
            return [x.transpose(2, 3).flip(2).transpose(2, 3) if w >= h else x + 1]
        if self.way == "tensor":
            return [x * torch.tensor([h, w]).float().mean() / torch.tensor(float(w))]
        y = x
        for k in range(0, h, 16):
            y = y + x[:, :, k : k + 1]
        return [y]


@step(2.5)
class Values(Step):
    """Python looks at values: numbers, branches, shapes that depend on them."""

    def set_up(self, plan):
        self.way = plan.choice("item", "branch", "tolist", "boolean", "nonzero", "numpy", "numpy write", "pointer",
                               "from numpy", "argmax", "topk", "one hot", "random", "where", "format")  # fmt: skip
        self.reads.append(0)  # the image, exact
        self.makes = [self.read(plan)]

    def forward(self, image, x):
        if self.way == "item":
            return [x * (1 + abs(x.mean().item()))]
        if self.way == "branch":
            return [x * 0 if x.max() > 1e9 else x * 1.5]
        if self.way == "tolist":
            return [x + sum(x.mean((0, 2, 3)).tolist())]
        if self.way == "boolean":
            return [x * 1, image.flatten()[image.flatten() > 0.5037]]
        if self.way == "nonzero":
            return [x * 1, (image > 0.7513).nonzero()]
        if self.way == "numpy":
            return [x + float(x.detach().numpy().max())]
        if self.way == "numpy write":
            y = x * 2
            y.numpy()[:, 0] = 0.5
            return [y]
        if self.way == "from numpy":
            return [x + torch.from_numpy(image.numpy() * 0.5).mean()]
        if self.way == "pointer":
            return [x + (x.data_ptr() != 0)]
        if self.way == "argmax":
            return [x * 1, image.argmax(1)]
        if self.way == "topk":
            values, places = torch.topk(x.flatten(1), 2)
            return [x + values[:, :1, None, None], places.clamp(max=0)]
        if self.way == "one hot":
            classes = (image[:, :1, 0, 0] > 0.5037).long()
            return [x * 1, F.one_hot(classes, 2) if image.shape[0] > 1 else F.one_hot(classes)]
        if self.way == "random":
            return [x + torch.rand_like(x)]
        if self.way == "where":
            return [torch.where(x > 0, x, x * 0.25)]
        return [x * len(f"{x.shape} {x.dtype}")]


@step(2.5)
class Hooked(Step):
    """Layers with hooks, with a forward of their own, or parametrized."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.layer = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU())
        self.way = plan.choice("capture", "double", "before", "keywords", "forward", "weight norm", "write", "partial")
        getattr(self, "hook_" + self.way.replace(" ", "_"))()
        self.makes = [(c, level)]

    def hook_capture(self):
        seen: list[Tensor] = []
        self.layer[0].register_forward_hook(lambda module, args, output: seen.append(output))
        self.look = lambda: seen

    def hook_double(self):
        self.layer[1].register_forward_hook(lambda module, args, output: output * 2)

    def hook_before(self):
        self.layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))

    def hook_keywords(self):
        self.layer.register_forward_hook(lambda module, args, kwargs, output: output + args[0].mean(), with_kwargs=True)

    def hook_forward(self):
        conv = self.layer[0]
        conv.forward = types.MethodType(lambda module, x: F.conv2d(x, module.weight * 2, module.bias, padding=1), conv)

    def hook_weight_norm(self):
        torch.nn.utils.parametrizations.weight_norm(self.layer[0])

    def hook_write(self):
        def write(module, args, output):
            output[:, :1].add_(1)

        self.layer[0].register_forward_hook(write)

    def hook_partial(self):
        store: dict[str, Tensor] = {}
        self.layer[2].register_forward_hook(functools.partial(keep, store, "relu"))

    def forward(self, x):
        return [self.layer(x)]


def keep(store: dict[str, Any], name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
    store[name] = output


@step(0.7)
class InferenceMode(Step):
    def set_up(self, plan):
        c, level = self.read(plan)
        self.conv = ConvNorm(plan, c, c)
        self.makes = [(c, level)]

    @torch.inference_mode()
    def forward(self, x):
        y = self.conv(x)
        y[:, :2].mul_(2)
        return [y]
