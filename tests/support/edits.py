"""What users do to a model: each edit is given a model and a random.Random, and does the same to equal models."""

import copy
import functools

import torch
from torch import nn


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


EDITS = (activation, upsample_settings, upsample_replaced, geometry, own_forward, own_method, hook, removed_hook,
         parametrized, weight_norm, eps, norm_replaced, norm_of_the_batch, norm_without_statistics, more_in_a_path,
         bias_added, weights_loaded, weight_replaced, weight_written, module_replaced, optimizer_step, averaged,
         subclass, double, observed, swapped, frozen)  # fmt: skip
