"""The public operator: validates its arguments, picks a backend, calls it. It does no arithmetic of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast import backends
from hrnet_fast.call import FLOAT_DTYPES, MAX_INPUTS, MODES, ExchangeCall


def exchange(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor | None] | None = None,
    bias: Tensor | None = None,
    *,
    size: tuple[int, int] | None = None,
    mode: str = "bilinear",
    align_corners: bool = False,
    activation: str | None = "relu",
    backend: str = "auto",
    projection: Tensor | tuple[Tensor, Tensor | None] | None = None,
) -> Tensor:
    """HRNet's multi-resolution exchange in one operator: ``act(bias + sum_j up_size(W_j x_j))``.

    This is the fusion of the repeated multi-scale fusions of HRNet (Wang et al., "Deep High-Resolution Representation
    Learning for Visual Recognition", section 3.2) with BatchNorm folded into the 1x1 convolutions W_j. The 1x1
    convolution runs at each input's own resolution, before the upsampling, as in the official code. Equivalent to::

        y = sum(F.interpolate(x if w is None else F.conv2d(x, w), size, mode=mode) for x, w in zip(inputs, weights))
        y = F.relu(y + bias[:, None, None])

    Args:
        inputs: 1 to 8 tensors [N, C_j, H_j, W_j] of one floating dtype and device, contiguous or channels_last or any
            other strides.
        weights: beside each input a 1x1 convolution weight [C_out, C_j] or [C_out, C_j, 1, 1], or None for the
            identity (then C_j == C_out). None for the whole list: all identities.
        bias: [C_out], the sum of the biases of all convolutions.
        size: (H, W) of the result in pixels; by default that of the input that is largest both ways.
        mode: "bilinear" or "nearest", as in torch.nn.functional.interpolate.
        align_corners: as in torch.nn.functional.interpolate; bilinear only.
        activation: "relu" or None.
        backend: "auto", or the name of a backend of ``hrnet-fast info``. The environment variable HRNET_FAST_BACKEND
            stands in for "auto".
        projection: a 1x1 convolution that follows, as a weight [C_p, C_out(, 1, 1)] or a pair (weight, bias [C_p]).
            The C_out-channel tensor in front of it is then never written to memory.

    Returns:
        [N, C_out, H, W] ([N, C_p, H, W] with a projection), in the inputs' dtype and in the memory format of the first
        input that is (H, W) already. Under autocast: in the autocast dtype.

    Raises:
        ValueError: shapes, sizes, devices or modes that do not fit together.
        TypeError: arguments that are not tensors, not of a floating dtype, or of different dtypes.
        RuntimeError: a backend was named that cannot serve the call; the message says why.
    """
    call = _validate(inputs, weights, bias, size, mode, align_corners, activation, projection)
    return backends.choose(call, backend).run(call)


def _validate(inputs, weights, bias, size, mode, align_corners, activation, projection) -> ExchangeCall:
    inputs = list(inputs) if not isinstance(inputs, Tensor) else _fail_type("inputs", inputs, "a list of tensors")
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise ValueError(f"inputs: expected 1 to {MAX_INPUTS} tensors, got {len(inputs)}")
    weights = [None] * len(inputs) if weights is None else list(weights)
    if len(weights) != len(inputs):
        raise ValueError(f"weights: expected one entry beside each of the {len(inputs)} inputs, got {len(weights)}")
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")
    if align_corners and mode == "nearest":
        raise ValueError("align_corners: only bilinear interpolation has it, got align_corners=True with mode='nearest'")
    if activation not in ("relu", None):
        raise ValueError(f"activation: expected 'relu' or None, got {activation!r}")

    first = inputs[0]
    if not isinstance(first, Tensor):
        _fail_type("inputs[0]", first, "a tensor")
    device, dtype = first.device, first.dtype
    autocast = torch.is_autocast_enabled(device.type)
    shapes = [x.shape if isinstance(x, Tensor) else _fail_type(f"inputs[{j}]", x, "a tensor")
              for j, x in enumerate(inputs)]  # fmt: skip
    for j, x in enumerate(inputs):
        if len(shapes[j]) != 4:
            raise ValueError(f"inputs[{j}]: expected [N, C, H, W], got the shape {list(shapes[j])}")
        _check_like(f"inputs[{j}]", x, dtype, device, autocast)
        if shapes[j][0] != shapes[0][0]:
            raise ValueError(f"inputs[{j}]: expected batch {shapes[0][0]} as in inputs[0], got {shapes[j][0]}")

    height, width = _size(shapes, size)
    c_out = shapes[0][1] if weights[0] is None else _out_channels(weights[0], 0)
    for j, (weight, shape) in enumerate(zip(weights, shapes, strict=True)):
        if weight is None:
            if shape[1] != c_out:
                raise ValueError(f"inputs[{j}]: without a weight its channels must be the output's {c_out}, got {shape[1]}")
            continue
        _check_like(f"weights[{j}]", weight, dtype, device, autocast)
        _check_weight(f"weights[{j}]", weight, c_out, shape[1])
    if bias is not None:
        _check_bias("bias", bias, c_out, dtype, device, autocast)

    projection_bias = None
    if projection is not None:
        if not isinstance(projection, Tensor):
            projection, projection_bias = projection
        _check_like("projection", projection, dtype, device, autocast)
        _check_weight("projection", projection, _out_channels(projection, "projection"), c_out)
        if projection_bias is not None:
            _check_bias("projection bias", projection_bias, projection.shape[0], dtype, device, autocast)

    allow_tf32 = device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    return ExchangeCall(inputs, weights, bias, projection, projection_bias, height, width, mode, bool(align_corners),
                        activation == "relu", allow_tf32)  # fmt: skip


def _size(shapes, size) -> tuple[int, int]:
    largest_h, largest_w = max(s[2] for s in shapes), max(s[3] for s in shapes)
    if min(min(s[2], s[3]) for s in shapes) < 1:
        raise ValueError(f"inputs: every height and width must be at least 1, got {[list(s) for s in shapes]}")
    if size is None:
        if not any(s[2] == largest_h and s[3] == largest_w for s in shapes):
            sizes = [tuple(s[2:]) for s in shapes]
            raise ValueError(f"size: required, because no input is the largest both ways: the inputs are {sizes}")
        return largest_h, largest_w
    try:
        height, width = size
    except (TypeError, ValueError):
        raise ValueError(f"size: expected (height, width), got {size!r}") from None
    if height < largest_h or width < largest_w:
        raise ValueError(f"size: {(height, width)} is smaller than an input of {(largest_h, largest_w)}; "
                         "the exchange only upsamples")  # fmt: skip
    return height, width


def _fail_type(name, value, expected):
    raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


def _check_like(name, x, dtype, device, autocast):
    if not isinstance(x, Tensor):
        _fail_type(name, x, "a tensor")
    if x.dtype != dtype and not autocast:
        raise TypeError(f"{name}: expected dtype {dtype} as inputs[0] has, got {x.dtype}")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected one of {', '.join(map(str, FLOAT_DTYPES))}, got {x.dtype}")
    if x.device != device:
        raise ValueError(f"{name}: expected device {device} as inputs[0] has, got {x.device}")


def _out_channels(weight, name):
    if not isinstance(weight, Tensor):
        _fail_type(f"weights[{name}]" if isinstance(name, int) else name, weight, "a tensor or None")
    return weight.shape[0] if weight.ndim else 0


def _check_weight(name, weight, c_out, c_in):
    shape = weight.shape
    if len(shape) not in (2, 4) or shape[0] != c_out or shape[1] != c_in or any(s != 1 for s in shape[2:]):
        raise ValueError(f"{name}: expected [{c_out}, {c_in}] or [{c_out}, {c_in}, 1, 1], got {list(shape)}")


def _check_bias(name, bias, channels, dtype, device, autocast):
    _check_like(name, bias, dtype, device, autocast)
    if bias.ndim != 1 or bias.shape[0] != channels:
        raise ValueError(f"{name}: expected [{channels}], got {list(bias.shape)}")
