"""A network as a program of torch.export in PyTorch's own operators, for any batch and size, with BatchNorm folded."""

import copy
import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hrnet_fast.export.emit import Emitted
from hrnet_fast.network import record as network
from hrnet_fast.network.integers import Factor, Integers, multiplied
from hrnet_fast.network.names import names
from hrnet_fast.network.nodes import Constants, Graph, Refused
from hrnet_fast.network.passes import Choice, no_streams, steps_of
from hrnet_fast.network.passes.fold_norms import NORMS
from hrnet_fast.network.sizes import Sizes
from hrnet_fast.network.sums import Step, Sum, Weight
from hrnet_fast.nn.module_fingerprint import why_closed
from hrnet_fast.runtime.calibration import Calibration

MULTIPLE = 32  # pixels: what the sides of an image must be divisible by where upsampling doubles sizes exactly
# What is recorded: odd and even, high and wide, small and large, for networks that branch on sizes. A batch of 1 would
# not do, since torch treats it in another way.
_BATCHES = 2, 3, 5, 4
_SIZES = (67, 94), (133, 75), (101, 158), (1024, 768)


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
    # in int8: of each convolution's weight, by its name in the program, what it multiplies and becomes; and the same
    # network with everything rounded that is to be rounded, in float32
    integers: dict[str, Integers] = {}  # noqa: RUF012
    rounded: nn.Module | None = None


def record(
    model: nn.Module,
    choose: Choice = no_streams,
    size: tuple[int, int] | None = None,
    in_chans: int | None = None,
    calibration: Calibration | None = None,
) -> Recorded:
    """Records a network in evaluation and float32.

    Args:
        model: one of ``create_model``, a patched one, or any other network that takes one image [N, C, H, W].
        choose: of the channels that a head's 1x1 convolution over concatenated streams makes, how many of the streams
            get it before their upsampling, the lowest resolution first (``all_streams``, ``no_streams``, or what
            ``preferences.choice`` returns).
        size: (H, W) in pixels for a graph of one size, which some runtimes run faster; None: any size.
        in_chans: channels of the image; None: those of the first convolution.
        calibration: what convolutions multiply, for int8; None: all in float32.

    Raises:
        TypeError: not an nn.Module.
        ValueError: the network is compiled or scripted, refuses the size, cannot be recorded, or holds operators that
            are not PyTorch's own; or the calibration is of another one.
    """
    plain = in_evaluation(model)
    like = next((p for p in plain.parameters() if p.dim() == 4), None)
    if like is None:
        raise ValueError("model: it has no convolution, so that it cannot be an HRNet")
    channels = like.shape[1] if in_chans is None else in_chans
    emitted, steps, multiple, shape = _emitted(plain, like, channels, choose, size)
    integers, rounded = {}, None
    if calibration is not None:
        factors = _factors(plain, emitted.graph, steps, calibration)
        rounded = Emitted(emitted.graph, steps, emitted.sizes, factors)
        integers = {emitted.kernels[w]: Integers.of(w.kernel(), w.shift(), f) for w, f in factors.items()}
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device)
    program = _export(emitted, example, multiple, size)
    count = len(program.graph_signature.user_outputs)
    return Recorded(program, example, multiple, size, _names(model, count), *_counts(steps), integers, rounded)


def _factors(model: nn.Module, graph: Graph, steps: list[Step], calibration: Calibration) -> dict[Weight, Factor]:
    name_of = names(model, steps)
    return {w: Factor.of(*calibration.of(name_of[w], w.shape[1])) for w in multiplied(graph, steps)}


def _emitted(
    model: nn.Module, like: Tensor, channels: int, choose: Choice, size: tuple[int, int] | None
) -> tuple[Emitted, list[Step], int, torch.Size]:
    """The network in PyTorch's operators, its steps, what sides must be a multiple of, and the shape of an image."""
    if size is not None:
        ways = [(1, [size] * len(_BATCHES))]
    else:
        ways = [(1, _SIZES), (MULTIPLE, [(h // 8 * MULTIPLE, w // 8 * MULTIPLE) for h, w in _SIZES])]
    constants, reasons = Constants(), []
    for multiple, sizes in ways:
        images = [like.new_empty(n, channels, h, w) for n, (h, w) in zip(_BATCHES, sizes)]  # never read
        try:
            # called twice once, to find out whether a call changes what the next one computes
            graphs = [network.record(model, (x,), constants=constants, calls=2 - bool(k)) for k, x in enumerate(images)]
            _check(graphs)
            steps = steps_of(graphs[0], choose)
            return Emitted(graphs[0], steps, Sizes(graphs)), steps, multiple, images[0].shape
        except Refused as refused:
            reasons.append(refused)
    raise ValueError(_why(reasons, size))


def in_evaluation(model: nn.Module) -> nn.Module:
    """The network in evaluation and float32: itself, or a copy where it is in another state.

    Raises:
        TypeError: not an nn.Module.
        ValueError: it is compiled or scripted already, or has no weights yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    reason = _why_closed(model)
    if reason is not None:
        raise ValueError(f"model: {reason}")
    floating = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    if all(t.dtype == torch.float32 for t in floating) and not any(m.training for m in model.modules()):
        return model
    return copy.deepcopy(model).eval().float()


def _why_closed(model: nn.Module) -> str | None:
    for name, module in model.named_modules():
        place = f" ({name})" if name else ""
        closed = None if isinstance(module, torch.fx.GraphModule) else why_closed(module)  # graphs are recorded again
        if closed is not None:
            return f"it is {closed}{place}: export the model that it was made from"
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        return "its parameters are on the meta device: load its weights first"
    return None


def _check(graphs: Sequence[Graph]) -> None:
    if any(g.writes for g in graphs):
        raise Refused("it writes into its image")
    foreign = {str(n.operator) for n in graphs[0].nodes if getattr(n.operator, "namespace", "aten") != "aten"}
    if foreign:
        raise Refused(f"it calls operators that other runtimes do not have: {', '.join(sorted(foreign))}")


def _why(reasons: list[Refused], size: tuple[int, int] | None) -> str:
    if size is not None and reasons[0].raised:
        return f"size {size[0]}x{size[1]}: the network does not take it ({reasons[0]})"
    found = list(dict.fromkeys(map(str, reasons)))
    hint = "" if size is not None else "; with a size it may be possible"
    return f"model: it cannot be recorded ({'; for multiples of 32: '.join(found)}){hint}"


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


def _counts(steps: Sequence[Step]) -> tuple[int, int, int]:
    """Norms that were folded, norms that were not, and heads that were taken apart."""
    sums = [s for s in steps if isinstance(s, Sum)]
    folded = {norm for s in sums for weight in s.weights() for norm in weight.norms}
    calls = sum(not isinstance(s, Sum) and s.node.operator in NORMS for s in steps)
    commuted = sum(any(up.weight is not None and up.weight.inputs is not None for up in s.ups) for s in sums)
    return len(folded), calls, commuted


def _names(model: nn.Module, count: int) -> list[str]:
    task = (getattr(model, "recipe", None) or {}).get("task")
    if task == "segmentation_ocr" and count == 2:
        return ["auxiliary", "logits"]
    name = {
        "segmentation": "logits",
        "classification": "logits",
        "pose": "heatmaps",
        "detection": "level",
        "features": "stream",
    }.get(task, "output")
    return [name] if count == 1 else [f"{name}{k}" for k in range(count)]
