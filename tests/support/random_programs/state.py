"""Steps that keep something from call to call: buffers, caches, what was seen last."""

import functools
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.random_programs.steps import Step, step

GLOBAL_CACHE: dict[Any, Tensor] = {}
GLOBAL_CALLS: list[int] = [0]


@functools.lru_cache
def ramp(n: int) -> Tensor:
    return torch.linspace(0.5, 1.5, n)


@step(2)
class BufferWritten(Step):
    """A buffer or another tensor of the module is written; what is computed may depend on it."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.way = plan.choice("add", "view", "out", "foreach", "counter", "item", "rebound", "data", "weight", "norm")
        self.used = plan.chance(0.7)
        table = torch.rand(1, c, 1, 1)
        self.register_buffer("table", table) if plan.chance(0.7) else setattr(self, "table", table)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.conv = nn.Conv2d(c, c, 1) if self.way == "weight" else None
        self.makes = [(c, level)]

    def forward(self, x):
        mean = x.mean((0, 2, 3)).view(1, -1, 1, 1)
        if self.way == "add":
            self.table.mul_(0.5).add_(mean)
        elif self.way == "view":
            self.table[:, :2] = mean[:, :2]
        elif self.way == "out":
            torch.add(mean, mean, out=self.table)
        elif self.way == "foreach":
            torch._foreach_mul_([self.table], 1.25)
        elif self.way == "counter":
            self.count += 1
        elif self.way == "item":
            self.table.view(-1)[0] = mean.mean()
        elif self.way == "rebound":
            self.table = self.table * 0.5 + mean
        elif self.way == "data":
            self.table.data.add_(0.25)
        elif self.way == "weight":
            self.conv.weight.clamp_(-0.25, 0.25)
            return [self.conv(x)]
        else:
            x = F.batch_norm(x, self.table.view(-1), torch.ones_like(mean.view(-1)), training=True, momentum=0.5)
        return [x * (1 + self.table + self.count) if self.used else x * 1.5]


@step(2)
class BufferRead(Step):
    """Tensors that are only read: buffers, plain attributes, one number of each, and those of inference_mode."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.register_buffer("mean", torch.rand(1, c, 1, 1))
        self.register_buffer("ready", torch.tensor(True))
        self.register_buffer("scale", torch.tensor(1.5), persistent=False)
        self.plain = [torch.rand(c), {"bias": torch.rand(1, c, 1, 1)}]
        self.way = plan.choice("plain", "item", "flag", "float", "inference", "tied")
        self.conv, self.again = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.again.weight = self.conv.weight
        with torch.inference_mode():
            self.made = nn.Parameter(torch.rand(c, c, 1, 1), requires_grad=False)
        self.makes = [(c, level)]

    def forward(self, x):
        y = (x - self.mean) / (self.mean + 1)
        if self.way == "item":
            return [y * self.scale.item()]
        if self.way == "flag":
            return [y + self.mean if self.ready else y]
        if self.way == "float":
            return [y * float(self.conv.bias[0].abs() + 1)]
        if self.way == "inference":
            return [F.conv2d(y, self.made)]
        if self.way == "tied":
            return [self.again(F.relu(self.conv(y)))]
        return [y * self.plain[0].view(1, -1, 1, 1) + self.plain[1]["bias"]]


@step(2.5)
class Cached(Step):
    """What is computed once and kept: on the module, its class, in a global, in an lru_cache."""

    table: dict[Any, Tensor] = {}  # noqa: RUF012

    def set_up(self, plan):
        self.makes = [self.read(plan)]
        self.where = plan.choice("grid", "once", "class", "global", "lru", "dict", "buffer", "deleted")
        self.grid, self.by_size = None, {}
        if self.where == "buffer":
            self.register_buffer("kept", None, persistent=False)

    def forward(self, x):
        h, w = x.shape[2:]
        if self.where == "grid":
            if self.grid is None or self.grid.shape[-2:] != (h, w):
                ys, xs = torch.linspace(-1, 1, h), torch.linspace(-1, 1, w)
                self.grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij"))[None]
            return [x + self.grid[:, :1] * self.grid[:, 1:]]
        if self.where == "once":
            if self.grid is None:
                self.grid = torch.linspace(0.5, 1.5, x.shape[1]).view(1, -1, 1, 1)
            return [x * self.grid]
        if self.where == "deleted":
            if not hasattr(self, "bias"):
                self.bias = torch.full((1, 1, 1, 1), 0.5)
            y = x + self.bias
            del self.bias
            return [y]
        if self.where == "buffer":
            if self.kept is None or self.kept.shape[-1] != w:
                self.kept = torch.arange(w, dtype=torch.float32) / 7
            return [x + self.kept]
        if self.where == "lru":
            return [x * ramp(w)]
        place = {"class": type(self).table, "global": GLOBAL_CACHE, "dict": self.by_size}[self.where]
        if (h, w) not in place:
            place[h, w] = torch.linspace(0, 1, w).expand(h, w) * torch.linspace(0, 1, h)[:, None]
        return [x + place[h, w]]


@step(2)
class Remembered(Step):
    """Attributes that each call sets: features for others to read, counters, the last result."""

    calls = 0
    last = None

    def set_up(self, plan):
        self.makes = [self.read(plan)]
        self.way = plan.choice(
            "features", "append", "calls", "calls read", "last", "last read", "name", "global", "lock"
        )
        self.features, self.kept, self.by_name = [], [1], {"a": [2]}
        self.flag, self.unshared = "before", None

    def forward(self, x):
        if self.way == "features":
            self.features = [x, x[:, :2], F.relu(x)]
            return [self.features[2] + self.features[0]]
        if self.way == "append":
            self.kept.append(x)
            self.by_name["a"].append(x.mean())
            self.by_name["x"] = x.detach()
        elif self.way.startswith("calls"):
            self.calls += 1
            return [x * (1 + 0.1 * self.calls)] if self.way == "calls read" else [x * 2]
        elif self.way == "last read":
            last, self.last = self.last, x.mean((0, 2, 3)).view(1, -1, 1, 1)
            return [x if last is None else x + last]
        elif self.way == "last":
            self.last = x.shape[2:], x
        elif self.way == "name":
            self.flag, self.__dict__["by hand"] = "after", x.shape[2]
        elif self.way == "global":
            GLOBAL_CALLS[0] += 1
        else:
            self.unshared = self.unshared or threading.Lock()
            with self.unshared:
                return [x * 1.25]
        return [x * 1.5]
