"""What can be patched: one adapter per kind of module, whoever wrote it, told apart by structure."""

import inspect
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from hrnet_fast.nn.folded_exchange import (
    current_plan,
    exchange_streams,
    is_identity,
    is_upsampling,
    why_not_down,
    why_not_up,
)
from hrnet_fast.nn.folds import FoldCache
from hrnet_fast.nn.module_fingerprint import altered
from hrnet_fast.patching import blocks, heads
from hrnet_fast.patching.blocks import why_strangers
from hrnet_fast.patching.class_swap import Adapter, register

# The attributes by which the styles of exchange units that are known are told apart; what they do is found by trying.
STYLES = {
    "timm": ("num_branches", "num_in_chs", "fuse_act"),
    "official": ("num_branches", "num_inchannels", "relu"),
    "OpenMMLab": ("num_branches", "in_channels", "multiscale_output", "relu"),
    "simple-HRNet": ("stage", "output_branches", "relu"),
}


class UnitSettings(NamedTuple):
    """What an exchange unit's upsampling is."""

    mode: str
    scaled: bool  # by powers of two, in an Upsample of its own; else to the size of the higher stream
    align_corners: bool | tuple[str, str]  # or the module and the name of the global that says so at the time of a call
    overwrites: bool  # the list that it gets then holds what the branches made of the streams


def _style(module: nn.Module) -> str:
    return next((name for name, marks in STYLES.items() if all(hasattr(module, mark) for mark in marks)), "another")


def _activation(module: nn.Module) -> str | None:
    """The name of the child that is no branch and no path; None where its forward calls F.relu."""
    others = [name for name, _ in module.named_children() if name not in ("branches", "fuse_layers")]
    relus = [name for name in others if type(getattr(module, name)) is nn.ReLU]
    return next(iter([*relus, *others]), None)


def _why_not_unit(module: nn.Module) -> str | None:
    rows, branches = module.fuse_layers, getattr(module, "branches", None)
    activation = _activation(module)
    if branches is None and hasattr(module, "module_type"):
        return "Lite-HRNet adds up in its first stream in place, and doubles it: that is no HRNet exchange"
    if not isinstance(branches, nn.ModuleList):
        return "it has not the attributes of an HRNet module: branches and fuse_layers, lists of modules"
    if len(branches) == 1:
        return "it has one branch: nothing is exchanged"
    if not isinstance(rows, nn.ModuleList) or not all(
        isinstance(r, nn.ModuleList) and len(r) == len(branches) for r in rows
    ):
        return "fuse_layers is not a list of rows with one path from each branch"
    if activation is not None and type(getattr(module, activation)) is not nn.ReLU:
        return f"{activation} is a {type(getattr(module, activation)).__name__}, not a ReLU"
    if any(getattr(m, "stride", 1) not in (1, (1, 1)) for m in branches.modules()):
        return "a branch changes the size of its stream"
    for i, row in enumerate(rows):
        for j, path in enumerate(row):
            reason = _why_not_path(path, i, j)
            if reason is not None:
                return f"fuse_layers.{i}.{j}: {reason}"
    if len({_upsampling(path) for i, row in enumerate(rows) for path in list(row)[i + 1 :]}) != 1:
        return "its up paths are upsampled in different ways"
    hooked = [name for name, m in rows.named_modules() if altered([m])]
    if hooked or (activation is not None and altered([getattr(module, activation)])):
        return f"hooks on {f'fuse_layers.{hooked[0]}' if hooked else activation} would no longer be called"
    return why_strangers(module, {"branches", "fuse_layers", activation})


def _unit_parts(module: nn.Module) -> list[nn.Module]:
    activation = _activation(module)
    return [module.fuse_layers, *([] if activation is None else [getattr(module, activation)])]


def _why_not_path(path: nn.Module | None, i: int, j: int) -> str | None:
    if i == j:
        return None if is_identity(path) else f"it is a {type(path).__name__}, not the identity"
    if j < i:
        return None if path is not None else "it is missing"
    reason = why_not_up(path)
    if reason is None and len(path) > 2:
        scale = getattr(path[2], "scale_factor", None)
        if (
            len(path) > 3
            or not is_upsampling(path[2])
            or getattr(path[2], "size", None)
            or scale not in (2 ** (j - i), (2 ** (j - i),) * 2)
        ):
            return f"its upsampling is {path[2:]}, expected one by {2 ** (j - i)}"
        if path[2].mode not in ("nearest", "bilinear"):
            return f"its upsampling has mode {path[2].mode!r}"
    return reason


def _upsampling(path: nn.Sequential) -> tuple[str, bool] | None:
    return (path[2].mode, bool(path[2].align_corners)) if len(path) > 2 else None


def _unit_settings(module: nn.Module) -> Iterable[UnitSettings]:
    upsampling = _upsampling(module.fuse_layers[0][1])
    if upsampling is not None:
        ways = [(upsampling[0], True, upsampling[1])]
    else:
        ways = [("bilinear", False, value) for value in align_corners_of(type(module).forward)]
    return [UnitSettings(*way, overwrites) for overwrites in (True, False) for way in ways]


def align_corners_of(forward: Callable) -> list[bool | tuple[str, str]]:
    """What a forward that calls F.interpolate itself may do: a global of its module that it reads, else both values."""
    function = inspect.unwrap(forward)
    namespace = vars(sys.modules.get(function.__module__, object))
    for name in ("ALIGN_CORNERS", "align_corners"):  # HRNet-OCR, NVIDIA
        if name in function.__code__.co_names and name in namespace:
            return [(function.__module__, name)]
    return [False, True]


def current_align_corners(setting: bool | tuple[str, str]) -> bool:
    """The value at this moment."""
    return setting if isinstance(setting, bool) else bool(getattr(sys.modules[setting[0]], setting[1]))


def _unit_example(module: nn.Module, random: Callable[..., Tensor]) -> tuple[dict[str, nn.Module], tuple]:
    first, count = module.fuse_layers[0], len(module.branches)
    channels = [first[1][0].out_channels, *(path[0].in_channels for path in list(first)[1:])]
    sizes = [2 << (count - j) for j in range(count)]
    streams = [random(2, c, size, size) for c, size in zip(channels, sizes, strict=True)]
    # of branches that change something, to see whether the caller's list is overwritten
    return {"branches": nn.ModuleList(nn.Tanh() for _ in channels)}, (streams,)


def _unit_forward(module: nn.Module, plain: Callable, settings: UnitSettings, folds: FoldCache, x: list[Tensor]):
    rows = module.fuse_layers
    plan = current_plan(rows, folds)
    if not _fits(rows, x, settings.scaled):
        return plain(module, x)
    streams = x if settings.overwrites else list(x)
    for i, branch in enumerate(module.branches):
        streams[i] = branch(streams[i])
    return exchange_streams(rows, plan, folds, streams, settings.mode, current_align_corners(settings.align_corners))


def _fits(rows: nn.ModuleList, streams: list[Tensor], scaled: bool) -> bool:
    """Whether all sizes are those of an HRNet; of others the original forward makes what it makes, or raises."""
    if len(streams) != len(rows[0]):
        return False
    sizes = [tuple(x.shape[2:]) for x in streams]
    for (h, w), (low_h, low_w) in pairwise(sizes):
        if len(rows) > 1 and ((h + 1) // 2, (w + 1) // 2) != (low_h, low_w):
            return False
        if (h, w) != (2 * low_h, 2 * low_w) if scaled else (h < low_h or w < low_w):
            return False
    return True


def _describe_unit(module: nn.Module, settings: UnitSettings) -> str:
    rows, corners = module.fuse_layers, settings.align_corners
    detail = f"{_style(module)} style, {len(rows[0])} streams to {len(rows)}, {settings.mode}"
    if isinstance(corners, tuple):
        detail += f", align_corners read from {corners[0]}.{corners[1]}"
    elif corners:
        detail += ", align_corners"
    kept = {why_not_down(path): f"{i}.{j}" for i, row in enumerate(rows) for j, path in enumerate(row) if j < i}
    reasons = [f"{place}: {reason}" for reason, place in kept.items() if reason is not None]
    return detail + (f"; down paths stay as they are ({reasons[0]})" if reasons else "")


def _describe_head(module: nn.Module, settings: Any) -> str:
    return "1x1 convolution before the upsampling, without the concatenation"


ADAPTERS = register(
    Adapter("exchange unit", lambda m: hasattr(m, "fuse_layers"), _why_not_unit, _unit_settings, _unit_parts,
            _unit_example, _unit_forward, _describe_unit),
    Adapter("HRNetV2", lambda m: hasattr(m, "stage4"), heads.why_not_network,
            lambda m: align_corners_of(type(m).forward), heads.network_parts, heads.network_example,
            lambda m, plain, corners, *rest: heads.network_forward(m, plain, current_align_corners(corners), *rest),
            _describe_head),
    Adapter("FCN head", lambda m: getattr(m, "input_transform", None) == "resize_concat", heads.why_not_fcn,
            lambda m: [None], lambda m: list(m.children()), heads.fcn_example, heads.fcn_forward, _describe_head),
    Adapter("HRFPN", lambda m: hasattr(m, "reduction_conv"), heads.why_not_hrfpn, lambda m: [None],
            lambda m: [m.reduction_conv], heads.hrfpn_example, heads.hrfpn_forward, _describe_head),
    Adapter("residual block", blocks.is_block, blocks.why_not_block, lambda m: [None],
            lambda m: list(m.children()), blocks.block_example, blocks.block_forward, lambda m, settings: "BatchNorm, ReLU and the sum in the convolutions"),
)  # fmt: skip
