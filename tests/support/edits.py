"""Edits of a model, each of which does the same to two models of one structure; and how their calls are compared."""

import contextlib
import copy
import functools
import random

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import hrnet_fast as hf
from hrnet_fast.nn.plain_mode import standard_operators
from hrnet_fast.tolerances import relative_error
from support.families import official, openmmlab, simple_hrnet

CHANNELS = [4, 6, 8]
UNITS = (official.NearestModule, official.SizedModule, official.AlignedModule, official.PoseModule, openmmlab.HRModule,
         openmmlab.FaceModule, openmmlab.SegModule, simple_hrnet.StageModule)  # fmt: skip


def streams(batch=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, c, 16 >> j, 24 >> j, generator=generator) for j, c in enumerate(CHANNELS)]


def randomized(model):
    """Weights, scales and statistics that show what the model does."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() == 4:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith(("running_var", "weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.3)
    return model


def unit(cls, seed=0):
    torch.manual_seed(seed)
    return randomized(cls(CHANNELS)).eval()


class Own(nn.Module):
    """Parts of our own networks, one after the other."""

    def __init__(self):
        super().__init__()
        from hrnet_fast.models.hrnet import FAST, HighResolutionModule

        settings = {"mode": "bilinear", "align_corners": False, "momentum": 0.1}
        self.stage = HighResolutionModule(CHANNELS, 1, FAST, **settings)
        self.head = hf.SegmentationHead(CHANNELS, 5)

    def forward(self, x):
        x = self.stage(x)
        return [*x, self.head(x)]


# each edit is given a model and a random.Random


def some(model, draw, kind, where=lambda m: True):
    found = [m for _, m in model.named_modules() if isinstance(m, kind) and where(m)]
    return draw.choice(found) if found else None


def replace(model, old, new):
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
                return


def is_plain(m):
    return type(m) is nn.Conv2d


def is_upsample(m):
    return hasattr(m, "scale_factor") and hasattr(m, "mode")


def activation(model, draw):
    new = draw.choice([nn.Identity(), nn.LeakyReLU(0.3), nn.GELU(), nn.ReLU6(), nn.Hardtanh()])
    if (old := some(model, draw, nn.ReLU)) is not None:
        replace(model, old, new)


def upsample_settings(model, draw):
    for m in [m for m in model.modules() if is_upsample(m)][: draw.choice([1, None])]:
        m.mode, m.align_corners = draw.choice(
            [("bilinear", True), ("bilinear", False), ("nearest", None), ("bicubic", False)]
        )


def upsample_replaced(model, draw):
    old = some(model, draw, nn.Module, is_upsample)
    if old is not None:
        mode = "bilinear" if old.mode == "nearest" else "nearest"
        replace(model, old, nn.Upsample(scale_factor=old.scale_factor, mode=mode))


def geometry(model, draw):
    conv = some(model, draw, nn.Conv2d, lambda m: m.kernel_size == (3, 3))
    if draw.random() < 0.5:
        conv.dilation = conv.padding = (2, 2)
    else:
        conv.padding_mode, conv._reversed_padding_repeated_twice = "reflect", (1, 1, 1, 1)


def own_forward(model, draw):
    module = some(model, draw, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU))
    module.forward = functools.partial(lambda m, x: type(m).forward(m, x) * 1.5, module)


def own_method(model, draw):
    """Of those that a forward calls."""
    conv = some(model, draw, nn.Conv2d)
    conv._conv_forward = functools.partial(lambda m, *args: type(m)._conv_forward(m, *args) * 1.5, conv)


def hook(model, draw):
    module = some(model, draw, nn.Module, lambda m: not list(m.children()))
    if draw.random() < 0.5:
        module.register_forward_hook(lambda m, args, y: y * 1.25)
    else:
        module.register_forward_pre_hook(lambda m, args: args[0] + 0.5)


def removed_hook(model, draw):
    module = some(model, draw, nn.Conv2d)
    module.register_forward_hook(lambda m, args, y: y * 2).remove()


def parametrized(model, draw):
    class Half(nn.Module):
        def forward(self, w):
            return w * 0.5

    nn.utils.parametrize.register_parametrization(some(model, draw, nn.Conv2d, is_plain), "weight", Half())


def weight_norm(model, draw):
    conv = some(model, draw, nn.Conv2d, is_plain)
    nn.utils.parametrizations.weight_norm(conv)
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(1.5)


def eps(model, draw):
    some(model, draw, nn.BatchNorm2d).eps = 0.5


def norm_replaced(model, draw):
    old = some(model, draw, nn.BatchNorm2d)
    replace(
        model, old, draw.choice([nn.GroupNorm(2, old.num_features), nn.Identity(), nn.InstanceNorm2d(old.num_features)])
    )


def norm_of_the_batch(model, draw):
    some(model, draw, nn.BatchNorm2d).train()


def norm_without_statistics(model, draw):
    norm = some(model, draw, nn.BatchNorm2d)
    norm.running_mean = norm.running_var = None
    norm.track_running_stats = False


def more_in_a_path(model, draw):
    path = some(model, draw, nn.Sequential, lambda m: len(m) > 1 and isinstance(m[0], nn.Conv2d))
    if path is not None:
        path.append(draw.choice([nn.Tanh(), nn.LeakyReLU(0.5), nn.AvgPool2d(3, 1, 1)]))


def bias_added(model, draw):
    conv = some(model, draw, nn.Conv2d, lambda m: m.bias is None)
    conv.bias = nn.Parameter(torch.linspace(-1, 1, conv.out_channels))


def weights_loaded(model, draw):
    torch.manual_seed(draw.randrange(1000))
    model.load_state_dict(
        {k: v + 0.2 * torch.rand_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    )


def weight_replaced(model, draw):
    conv = some(model, draw, nn.Conv2d)
    conv.weight = nn.Parameter(conv.weight.detach() * -0.7)


def weight_written(model, draw):
    with torch.no_grad():
        some(model, draw, nn.Conv2d).weight.mul_(1.3)


def module_replaced(model, draw):
    old = some(model, draw, (nn.ModuleList, nn.Sequential), lambda m: any(True for _ in m.parameters()))
    new = copy.deepcopy(old)
    with torch.no_grad():
        for p in new.parameters():
            p.mul_(0.8)
    replace(model, old, new)


def optimizer_step(model, draw):
    kind = draw.choice(
        [
            lambda p: torch.optim.SGD(p, 0.1),
            lambda p: torch.optim.AdamW(p, 0.05, fused=True),
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
            lambda p: torch.optim.Adam(p, 0.05, foreach=True),
            lambda p: torch.optim.Adagrad(p, 0.1, fused=True),
            lambda p: torch.optim.RMSprop(p, 0.01),
        ]
    )
    parameters = list(model.parameters())
    for k, p in enumerate(parameters):
        p.grad = torch.linspace(-1, 1, p.numel(), dtype=p.dtype).view(p.shape) * (1 + k % 3)
    kind(parameters).step()
    for p in parameters:
        p.grad = None


def averaged(model, draw):
    with torch.no_grad():
        for p in model.parameters():
            p.lerp_(torch.full_like(p, 0.1), 0.3)


def subclass(model, draw):
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    some(model, draw, nn.Conv2d).__class__ = Scaled


def double(model, draw):
    model.double()


def observed(model, draw):
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    torch.ao.quantization.prepare(model, inplace=True)


def swapped(model, draw):
    conv = some(model, draw, nn.Conv2d)
    torch.utils.swap_tensors(conv.weight, nn.Parameter(conv.weight.detach() * 0.6))


def frozen(model, draw):
    model.requires_grad_(False)


def frozen_but_one(model, draw):
    frozen(model, draw)
    weight_replaced(model, draw)


EDITS = (activation, upsample_settings, upsample_replaced, geometry, own_forward, own_method, hook, removed_hook,
         parametrized, weight_norm, eps, norm_replaced, norm_of_the_batch, norm_without_statistics, more_in_a_path,
         bias_added, weights_loaded, weight_replaced, weight_written, module_replaced, optimizer_step, averaged,
         subclass, double, observed, swapped, frozen, frozen_but_one)  # fmt: skip


# ------------------------------------------------------------------------------------------- what is around a call


class Functions(TorchFunctionMode):
    """Somebody's own mode, which changes what functions give."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        return y * 1.2 if function in (F.conv2d, F.relu) else y


class Operators(TorchDispatchMode):
    """The same for operators."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        return y * 1.2 if function is torch.ops.aten.convolution.default else y


@contextlib.contextmanager
def replaced(holder, name):
    """A function or method of torch, somebody else's for a while: it gives 1.2 times as much."""
    original, own = getattr(holder, name), name in vars(holder)

    def scaled(*args, **kwargs):
        y = original(*args, **kwargs)
        return [z * 1.2 for z in y] if isinstance(y, list) else y * 1.2

    setattr(holder, name, scaled)
    try:
        yield
    finally:
        setattr(holder, name, original) if own else delattr(holder, name)


REPLACED = (
    *((F, name) for name in ("conv2d", "batch_norm", "relu", "interpolate")),
    *((torch, name) for name in ("batch_norm", "relu", "relu_", "cat")),
    *((torch._C._nn, name) for name in ("upsample_nearest2d", "upsample_bilinear2d")),
    *((nn.Conv2d, name) for name in ("forward", "_conv_forward", "__call__", "_call_impl")),
    *((kind, name) for kind in (nn.BatchNorm2d, nn.ReLU) for name in ("forward", "__call__", "_call_impl")),
    *((nn.Sequential, "forward"), (nn.Upsample, "forward"), (nn.Module, "__call__"), (nn.Module, "_call_impl")),
)  # fmt: skip
AROUND = (Functions, Operators, *(functools.partial(replaced, *place) for place in REPLACED))


def called(edit, model, seed):
    """The kind of the error, where torch refuses an edit; a parametrization that is there already for instance."""
    try:
        edit(model, random.Random(seed))
    except Exception as error:
        return type(error)


def outcome(model, mode, plainly, around=contextlib.nullcontext):
    """What a call gives: results, gradients of the streams and of the parameters; or the error."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    given = [x.to(dtype).requires_grad_(mode != "evaluation") for x in streams()]
    context = standard_operators() if plainly else torch.autocast("cpu", enabled=False)
    try:
        with torch.set_grad_enabled(mode != "evaluation"), context, around():
            torch.manual_seed(0)
            results = list(model([x * 1 for x in given]))
            if mode != "evaluation":
                loss = sum((y * y.detach().cos()).sum() for y in results)
                leaves = [*given, *(p for p in model.parameters() if p.requires_grad)]
                found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
                # of all parameters together: by itself that of a bias in front of a norm is nothing but rounding
                results += [*found[: len(given)], torch.cat([g.flatten() for g in found])]
        return [y.detach() for y in results], None
    except Exception as error:
        return [], error


def fault(one, other, mode, plainly, around=contextlib.nullcontext):
    (expected, error), (got, own) = outcome(one, mode, plainly, around), outcome(other, mode, False, around)
    if type(error) is not type(own):
        return f"{mode}: {own!r} in place of {error!r}"
    worst = max((relative_error(y, z) for y, z in zip(got, expected, strict=True)), default=0.0)
    return f"{mode}: off by {worst:.2g}" if worst > 1e-4 else ""
