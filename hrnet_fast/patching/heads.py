"""Heads that convolve the concatenation of all streams: official HRNetV2, mmseg's FCN head, HRFPN."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.nn.folds import FoldCache, why_not_fold, why_not_foldable
from hrnet_fast.nn.hrfpn import reduce_streams
from hrnet_fast.nn.module_fingerprint import altered
from hrnet_fast.nn.segmentation_head import exchange_concat, exchange_head, fold_concat_head, is_conv1x1

_NETWORK = {
    "conv1",
    "bn1",
    "conv2",
    "bn2",
    "relu",
    "layer1",
    *(f"transition{k}" for k in (1, 2, 3)),
    *(f"stage{k}" for k in (2, 3, 4)),
}


class _Head(NamedTuple):
    """A 1x1 convolution over a concatenation, and what follows it."""

    owner: nn.Module  # whose tensors are folded
    conv: nn.Conv2d
    norm: nn.Module
    activation: nn.Module
    dropout: nn.Module | None
    classifier: nn.Module


def _run(head: _Head, folds: FoldCache, streams: list[Tensor], align_corners: bool) -> Tensor:
    def foldable() -> bool:
        inactive = head.dropout is None or not head.dropout.training
        return inactive and why_not_fold(head.conv, head.norm) is None

    channels = [x.shape[1] for x in streams]
    plan = folds.current(
        head.owner, foldable, lambda: fold_concat_head(head.conv, head.norm, head.classifier, channels)
    )
    if plan is not None:
        y = exchange_head(plan, streams, align_corners)
        return y if plan.projection is not None else head.classifier(y)
    y = head.activation(head.norm(exchange_concat(head.conv, streams, align_corners)))
    return head.classifier(y if head.dropout is None else head.dropout(y))


def _leaves(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if next(m.children(), None) is None]


def _why_not_stem(leaves: list[nn.Module]) -> str | None:
    """Why these are not a 1x1 convolution, a norm that can be folded and a ReLU; None where they are."""
    if len(leaves) != 3 or not is_conv1x1(leaves[0]) or type(leaves[2]) is not nn.ReLU:
        return (
            f"it begins with {', '.join(type(m).__name__ for m in leaves)}, not with a 1x1 convolution, norm and ReLU"
        )
    return why_not_foldable(leaves[0], leaves[1])


def _why_hooked(modules: list[nn.Module]) -> str | None:
    return "hooks inside of the head would no longer be called" if altered(modules) else None


def _no_larger(streams: list[Tensor]) -> bool:
    """Whether the first stream has the largest size; the exchange only upsamples."""
    return all(x.shape[2] <= streams[0].shape[2] and x.shape[3] <= streams[0].shape[3] for x in streams)


def _network_head(module: nn.Module) -> nn.Module | None:
    return getattr(module, "last_layer", getattr(module, "head", None))  # the landmark network calls it head


def why_not_network(module: nn.Module) -> str | None:
    """Why a network with a stage4 is not the official HRNetV2 with its head over the concatenation."""
    head = _network_head(module)
    if not isinstance(head, nn.Sequential) or len(head) != 4:
        return "it has no V2 head (last_layer or head: convolution, norm, ReLU, convolution)"
    # the landmark network brings a softmax along that it never calls
    extra = {
        n for n, child in module.named_children() if child is not head and type(child) is not nn.Softmax
    } ^ _NETWORK
    if extra:
        return f"its forward is not that of the official HRNetV2, which has not, or has: {', '.join(sorted(extra))}"
    for k in (2, 3):
        transition = getattr(module, f"transition{k}")
        if any(t is not None for t in list(transition)[:k]):
            return f"transition{k} changes a stream, about which the official repositories disagree"
    return _why_not_stem(list(head)[:3]) or _why_hooked(list(head.modules()))


def network_parts(module: nn.Module) -> list[nn.Module]:
    """The head; all else is called as it is."""
    return [_network_head(module)]


def network_example(module: nn.Module, random: Callable[..., Tensor]) -> tuple[dict[str, nn.Module], tuple]:
    """A small image."""
    return {}, (random(2, module.conv1.in_channels, 64, 96),)


def network_forward(module: nn.Module, plain: Callable, align_corners: bool, folds: FoldCache, x: Tensor) -> Tensor:
    """Image [N, C, H, W] to logits [N, classes, H / 4, W / 4]."""
    head = _network_head(module)
    x = module.relu(module.bn1(module.conv1(x)))
    streams = [module.layer1(module.relu(module.bn2(module.conv2(x))))]
    for transition, stage in (
        (module.transition1, module.stage2),
        (module.transition2, module.stage3),
        (module.transition3, module.stage4),
    ):
        streams = stage([streams[i] if t is None else t(streams[-1]) for i, t in enumerate(transition)])
    return _run(_Head(head, head[0], head[1], head[2], None, head[3]), folds, streams, align_corners)


def why_not_fcn(module: nn.Module) -> str | None:
    """Why a head over resized and concatenated streams is not mmseg's FCNHead with one 1x1 convolution."""
    if not isinstance(getattr(module, "convs", None), nn.Module) or not hasattr(module, "conv_seg"):
        return (
            "it has no convs with conv_seg behind them (heads with 3x3 kernels over the concatenation cannot be split)"
        )
    if getattr(module, "concat_input", False):
        return "concat_input: the concatenation is needed once more"
    return _why_not_stem(_leaves(module.convs)) or _why_hooked([*module.convs.modules(), *_tail(module)])


def _tail(module: nn.Module) -> list[nn.Module]:
    return [m for m in (module.conv_seg, getattr(module, "dropout", None)) if m is not None]


def fcn_example(module: nn.Module, random: Callable[..., Tensor]) -> tuple[dict[str, nn.Module], tuple]:
    """Streams of halving sizes, which have odd ones among them."""
    channels = dict(zip(module.in_index, _split(module, module.convs, len(module.in_index)), strict=True))
    return {}, ([random(2, channels.get(i, 1), max(1, 20 >> i), max(1, 28 >> i)) for i in range(max(channels) + 1)],)


def _split(module: nn.Module, reduction: nn.Module, count: int) -> list[int]:
    """Channels of each stream: in_channels where the module keeps a list, else HRNet's C, 2C, 4C, ..."""
    total, known = _leaves(reduction)[0].in_channels, getattr(module, "in_channels", None)
    if isinstance(known, (list, tuple)):
        return list(known)
    return [(total << j) // (2**count - 1) for j in range(count)]


def fcn_forward(module: nn.Module, plain: Callable, settings: Any, folds: FoldCache, inputs: list[Tensor]) -> Tensor:
    """Streams [N, C_j, H_j, W_j] to logits [N, classes, H_0, W_0]."""
    streams = [inputs[i] for i in module.in_index]
    if not _no_larger(streams):
        return plain(module, inputs)
    dropout = getattr(module, "dropout", None)
    head = _Head(module, *_leaves(module.convs), dropout, module.conv_seg)
    return _run(head, folds, streams, bool(module.align_corners))


def why_not_hrfpn(module: nn.Module) -> str | None:
    """Why a module with a reduction_conv is not the HRFPN of HRNet-Object-Detection or mmdet."""
    leaves = _leaves(module.reduction_conv)
    if len(leaves) != 1 or not is_conv1x1(leaves[0]):
        return f"reduction_conv is {', '.join(type(m).__name__ for m in leaves)}, not a 1x1 convolution"
    if not all(hasattr(module, name) for name in ("pooling", "in_channels")) or _levels(module) is None:
        return "it has not the attributes of an HRFPN: in_channels, pooling, fpn_conv or fpn_convs"
    return _why_hooked(list(module.reduction_conv.modules()))


def _levels(module: nn.Module) -> list[nn.Module] | None:
    levels = getattr(module, "fpn_convs", getattr(module, "fpn_conv", None))
    if isinstance(levels, nn.ModuleList):
        return list(levels)
    return None if levels is None else [levels] * 5  # share_conv of the official code


def hrfpn_example(module: nn.Module, random: Callable[..., Tensor]) -> tuple[dict[str, nn.Module], tuple]:
    """Streams that are large enough for every level."""
    size = 2 << max(len(_levels(module)), len(module.in_channels))
    return {}, ([random(1, c, size >> j, size >> j) for j, c in enumerate(module.in_channels)],)


def hrfpn_forward(module: nn.Module, plain: Callable, settings: Any, folds: FoldCache, inputs: list[Tensor]):
    """Streams [N, C_j, H >> j, W >> j] to a tuple of levels [N, C_out, H >> i, W >> i]."""
    (conv,), size = _leaves(module.reduction_conv), inputs[0].shape[2:]
    fits = all((x.shape[2] << j, x.shape[3] << j) == tuple(size) for j, x in enumerate(inputs))
    weights = folds.current(module.reduction_conv, lambda: is_conv1x1(conv), lambda: _split_weight(conv, inputs))
    checkpointing = getattr(module, "with_cp", getattr(module, "with_checkpoint", False)) and torch.is_grad_enabled()
    if not fits or checkpointing:
        return plain(module, inputs)
    reduced = exchange_concat(conv, inputs, False) if weights is None else reduce_streams(inputs, *weights)
    pooled = [reduced] + [
        module.pooling(reduced, kernel_size=2**i, stride=2**i) for i in range(1, len(_levels(module)))
    ]
    return tuple(level(x) for level, x in zip(_levels(module), pooled, strict=True))


def _split_weight(conv: nn.Conv2d, inputs: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
    pieces = conv.weight.detach().split([x.shape[1] for x in inputs], dim=1)
    return [w.contiguous() for w in pieces], None if conv.bias is None else conv.bias.detach()
