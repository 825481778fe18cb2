"""Whole programs: steps in a row, arguments and results in many forms."""

import collections
import contextlib
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from support.random_programs.computing import Convolution
from support.random_programs.state import GLOBAL_CACHE, GLOBAL_CALLS, Cached, ramp
from support.random_programs.steps import STEPS, Plan, Step

CLASSES = 5  # of the integers that some programs take

Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass
class Sample:
    first: Any
    second: Any = None


@dataclasses.dataclass
class Prediction:
    logits: Tensor
    more: Any = None


INPUTS = ("image",) * 10 + (
    "keyword",
    "two",
    "mask",
    "mapping",
    "list",
    "tuple",
    "named",
    "dataclass",
    "bytes",
    "classes",
)
RESULTS = ("tensor",) * 3 + ("list", "list", "tuple", "dict", "ordered", "named", "dataclass", "mixed", "nested")


class Program(nn.Module):
    """See the file's docstring; ``inputs`` and ``results`` are the forms of the arguments and of what is returned."""

    def __init__(self, seed: int):
        super().__init__()
        plan = Plan(seed)
        self.seed, self.inputs, self.results = seed, plan.choice(*INPUTS), plan.choice(*RESULTS)
        self.shared = plan.choice("nothing", "nothing", "twice", "view", "image", "parameter")
        self.surrounding = plan.choice(*["nothing"] * 12, "capture", "scale", "before")
        plan.maps.append((3, 0))
        if self.inputs in ("two", "mapping", "list", "tuple", "named", "dataclass"):
            plan.maps.append((3, 0))
        self.embedding = nn.Embedding(CLASSES, 3) if self.inputs == "classes" else None
        steps: list[Step] = []
        kinds, weights = list(STEPS), list(STEPS.values())
        for k in range(plan.random.randrange(4, 11)):
            kind = Convolution if k == 1 else plan.random.choices(kinds, weights)[0]
            steps.append(kind(plan))
            plan.maps += steps[-1].makes
        self.steps = nn.ModuleList(steps)
        self.last = nn.Conv2d(plan.maps[-1][0], 4, 1)

    def forward(self, image=None, other=None, *, mask=None, gain=1.0, classes=None):
        maps, scale = self.take(image, other)
        image = maps[0]
        if mask is not None:
            maps[0] = image * mask * gain
        if classes is not None:
            maps[0] = image + self.embedding(classes)[:, :, None, None]
        rest = []
        for each in self.steps:
            made = each(*[maps[k] for k in each.reads])
            maps += made[: len(each.makes)]
            rest += made[len(each.makes) :]
        logits = self.last(maps[-1])
        return self.give(logits if scale is None else logits * scale, image, [*maps[1:-1][-3:], *rest])

    def take(self, image, other):
        if isinstance(image, dict):
            return [image["image"], image["meta"][0]], image["meta"][1]
        if isinstance(image, Sample):
            return [image.first, image.second], None
        if isinstance(image, (list, tuple)):
            return list(image), None
        if image.dtype == torch.uint8:
            image = image.float() / 256
        return [image] if other is None else [image, other], None

    def give(self, logits, image, rest):
        if self.results == "tensor":
            return logits
        shared = {"nothing": [], "twice": [logits], "view": [logits[:, 1:], logits.permute(0, 2, 3, 1)],
                  "image": [image, image[:, :1]], "parameter": [self.last.weight, self.last.bias[:2]]}  # fmt: skip
        rest = [*rest, *shared[self.shared]]
        size = logits.shape[2:]
        return {
            "list": lambda: [logits, *rest],
            "tuple": lambda: (logits, *rest),
            "dict": lambda: {"logits": logits, **{f"rest {k}": y for k, y in enumerate(rest)}},
            "ordered": lambda: collections.OrderedDict(rest=rest, logits=logits),
            "named": lambda: Pair(logits, rest),
            "dataclass": lambda: Prediction(logits, {"aux": rest}),
            "mixed": lambda: (logits, None, 3, "a name", 2.5, rest, True),
            "nested": lambda: {"a": [(logits, {"size": tuple(size)}), rest], 1: {}, "none": (None, [])},
        }[self.results]()


def build(seed: int) -> Program:
    """The program of this seed, in evaluation, with weights that show errors."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        program = Program(seed)
        for name, tensor in program.state_dict(keep_vars=True).items():
            if tensor.is_inference():
                continue
            with torch.no_grad():
                if name.endswith("running_mean"):
                    tensor.normal_(0, 0.3)
                elif name.endswith("running_var"):
                    tensor.uniform_(0.5, 2)
                elif isinstance(tensor, nn.Parameter) and tensor.dim() == 4:
                    tensor.normal_(0, (1.5 / tensor[0].numel()) ** 0.5)
                elif isinstance(tensor, nn.Parameter) and name.endswith("bias"):
                    tensor.normal_(0, 0.3)
                elif isinstance(tensor, nn.Parameter) and tensor.dim() == 1:
                    tensor.uniform_(0.5, 1.5).mul_(torch.rand_like(tensor).sub(0.2).sign())
    return program.eval()


def kinds(program: Program) -> list[str]:
    """What the program is made of, as 'Write/by_foreach'."""
    ways = (getattr(s, "way", None) or getattr(s, "where", None) or getattr(s, "write", None) for s in program.steps)
    ways = [getattr(way, "__name__", way) for way in ways]
    names = [
        f"{type(s).__name__}/{way}" if way else type(s).__name__ for s, way in zip(program.steps, ways, strict=True)
    ]
    return [f"takes {program.inputs}", f"gives {program.results}", f"hook {program.surrounding}", *names]


def arguments(program: Program, batch: int, height: int, width: int) -> tuple[tuple, dict[str, Any]]:
    """The same arguments every time, in memory of their own."""
    generator = torch.Generator().manual_seed(1000 * height + 10 * width + batch)

    def image() -> Tensor:
        return torch.randint(0, 256, (batch, 3, height, width), generator=generator) / 256

    first, second = image(), image()
    return {
        "image": lambda: ((first,), {}),
        "keyword": lambda: ((), {"image": first}),
        "two": lambda: ((first, second), {}),
        "mask": lambda: ((first,), {"mask": second[:, :1] > 0.25, "gain": 1.5}),
        "mapping": lambda: (({"image": first, "meta": [second, 0.5 + second[:, :1, :1, :1], "a name"]},), {}),
        "list": lambda: (([first, second],), {}),
        "tuple": lambda: (((first, second),), {}),
        "named": lambda: ((Pair(first, second),), {}),
        "dataclass": lambda: ((Sample(first, second),), {}),
        "bytes": lambda: (((first * 256).to(torch.uint8),), {}),
        "classes": lambda: ((first,), {"classes": torch.arange(batch) % CLASSES}),
    }[program.inputs]()


@contextlib.contextmanager
def surroundings(program: Program):
    """Registers the global hooks that the program wants; afterwards the globals of the steps are as they were."""
    seen: list[Any] = []
    hooks = nn.modules.module
    if program.surrounding == "capture":
        handle = hooks.register_module_forward_hook(lambda module, args, output: seen.append(output))
    elif program.surrounding == "scale":
        handle = hooks.register_module_forward_hook(lambda m, args, y: y * 1.25 if isinstance(m, nn.Conv2d) else None)
    elif program.surrounding == "before":
        handle = hooks.register_module_forward_pre_hook(lambda m, args: args[0] + 1 if isinstance(m, nn.ReLU) else None)
    else:
        handle = contextlib.nullcontext()
    try:
        yield
    finally:
        getattr(handle, "remove", lambda: None)()
        GLOBAL_CACHE.clear()
        Cached.table.clear()
        GLOBAL_CALLS[0] = 0
        ramp.cache_clear()
