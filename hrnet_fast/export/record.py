"""A network as a graph of PyTorch's own operators, for any batch and size, with BatchNorm folded."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hrnet_fast.call import MAX_INPUTS
from hrnet_fast.export.plain_form import plain_form
from hrnet_fast.export.rewrite import commute_heads, drop_dropouts, fold_norms

MULTIPLE = 32  # pixels: what the sides of an image must be divisible by where upsampling doubles sizes exactly
_BATCH, _SIZE, _ODD_SIZE = 2, (64, 96), (67, 94)  # what is recorded; any would do


Choice = Callable[[int], int]


def all_streams(channels: int) -> int:
    """Every stream's convolution comes before its upsampling."""
    return MAX_INPUTS


def no_streams(channels: int) -> int:
    """The convolution over the concatenation, as in the official code."""
    return 0


class Recorded(NamedTuple):
    """A recorded network."""

    program: ExportedProgram
    example: Tensor  # [N, C, H, W], what it was recorded with
    multiple: int  # the sides of an image must be multiples of it; 1 where any size will do
    size: tuple[int, int] | None  # the only size that it takes; None: any
    outputs: list[str]
    folded: int  # BatchNorms that went into their convolutions
    unfolded: int  # BatchNorms that did not follow a convolution
    commuted: int  # 1x1 convolutions over a concatenation that were moved in front of the upsamplings


def record(
    model: nn.Module, choose: Choice = no_streams, size: tuple[int, int] | None = None, in_chans: int | None = None
) -> Recorded:
    """Records a network in evaluation.

    Args:
        model: one of ``create_model``, a patched one, or any other network that takes one image [N, C, H, W].
        choose: of the channels that a head's 1x1 convolution over concatenated streams makes, how many of the streams
            get it before their upsampling, the lowest resolution first (``all_streams``, ``no_streams``, or what
            ``preferences.choice`` returns).
        size: (H, W) in pixels for a graph of one size, which some runtimes run faster; None: any size.
        in_chans: channels of the image; None: those of the first convolution.

    Raises:
        TypeError: not an nn.Module.
        ValueError: the network is compiled or scripted, refuses the size, cannot be recorded, or holds operators that
            are not PyTorch's own.
    """
    plain = plain_form(model)
    like = next((p for p in plain.parameters() if p.dim() == 4), None)
    if like is None:
        raise ValueError("model: it has no convolution, so that it cannot be an HRNet")
    channels = like.shape[1] if in_chans is None else in_chans

    def image(height: int, width: int) -> Tensor:
        return torch.randn(_BATCH, channels, height, width, generator=torch.Generator().manual_seed(0)).to(like.device)

    multiple = 1 if size is not None or _why_refused(plain, image(*_ODD_SIZE)) is None else MULTIPLE
    example = image(*(size or _SIZE))
    reason = _why_refused(plain, example)
    if reason is not None:
        raise ValueError(f"size {example.shape[2]}x{example.shape[3]}: the network does not take it ({reason})")
    program = _export(plain, example, multiple, size)
    _check_operators(program)
    graph = program.module()
    drop_dropouts(graph)
    folded = fold_norms(graph)
    commuted = commute_heads(graph, choose)
    counted = Counter(str(node.target) for node in graph.graph.nodes)
    program = _export(graph, example, multiple, size)  # the graph once more: shapes and guards of what it is now
    count = len(program.graph_signature.user_outputs)
    return Recorded(program, example, multiple, size, _names(model, count), folded, counted["aten.batch_norm.default"],
                    commuted)  # fmt: skip


def _why_refused(model: nn.Module, image: Tensor) -> str | None:
    try:
        with torch.no_grad():
            model(image)
    except (RuntimeError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


def _export(model: nn.Module, example: Tensor, multiple: int, size: tuple[int, int] | None) -> ExportedProgram:
    dims: dict = {0: Dim("batch", min=1)}
    if size is None and multiple == 1:
        dims |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    elif size is None:
        dims |= {2: multiple * Dim("rows", min=1), 3: multiple * Dim("columns", min=1)}
    quiet = logging.getLogger("torch")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            return torch.export.export(model, (example,), dynamic_shapes=(dims,))
    except Exception as error:  # whatever the many parts of torch.export raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(f"model: torch.export cannot record it ({reason})") from error
    finally:
        quiet.setLevel(level)


def _check_operators(program: ExportedProgram) -> None:
    foreign = {
        str(node.target)
        for node in program.graph.nodes
        if node.op == "call_function"
        and getattr(node.target, "namespace", "aten") not in ("aten", "prims", "_operator")
    }
    if foreign:
        raise ValueError(f"model: it calls operators that other runtimes do not have: {', '.join(sorted(foreign))}")


def _names(model: nn.Module, count: int) -> list[str]:
    task = (getattr(model, "recipe", None) or {}).get("task")
    if task == "segmentation_ocr" and count == 2:
        return ["auxiliary", "logits"]
    name = {"segmentation": "logits", "classification": "logits", "pose": "heatmaps", "detection": "level",
            "features": "stream"}.get(task, "output")  # fmt: skip
    return [name] if count == 1 else [f"{name}{k}" for k in range(count)]
