"""The public operator: validates its arguments, picks a backend, calls it. It does no arithmetic of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.ops import backends
from hrnet_fast.ops.exchange.call import FLOAT_DTYPES, MAX_INPUTS, MODES, ExchangeCall


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
    return backends.run(call, backend)


def exchange_group(rows: Sequence[tuple], mode: str = "bilinear", align_corners: bool = False) -> list[Tensor]:
    """Several exchanges that do not depend on each other, each ended by a ReLU: an exchange unit's outputs.

    Args:
        rows: of each exchange (inputs, weights, bias, size), as ``exchange`` takes them.
        mode: as in ``exchange``, for all of them.
        align_corners: likewise.

    Returns:
        As many results of ``exchange``. On GPUs they come from one launch where possible.
    """
    return backends.run_all([_validate(*row, mode, align_corners, "relu", None) for row in rows])


def _validate(inputs, weights, bias, size, mode, align_corners, activation, projection) -> ExchangeCall:
    # Straight-line code: on small tensors this costs as much as the kernel.
    if isinstance(inputs, Tensor):
        _fail_type("inputs", inputs, "a list of tensors")
    inputs = list(inputs)
    count = len(inputs)
    if not 1 <= count <= MAX_INPUTS:
        raise ValueError(f"inputs: expected 1 to {MAX_INPUTS} tensors, got {count}")
    weights = [None] * count if weights is None else list(weights)
    if len(weights) != count:
        raise ValueError(f"weights: expected one entry beside each of the {count} inputs, got {len(weights)}")
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")
    if align_corners and mode == "nearest":
        raise ValueError(
            "align_corners: only bilinear interpolation has it, got align_corners=True with mode='nearest'"
        )
    if activation != "relu" and activation is not None:
        raise ValueError(f"activation: expected 'relu' or None, got {activation!r}")

    first = inputs[0]
    if not isinstance(first, Tensor):
        _fail_type("inputs[0]", first, "a tensor")
    like = _Like(first)
    shapes = []
    for j, x in enumerate(inputs):
        like.check("inputs[", j, x)
        shape = x.shape
        if len(shape) != 4:
            raise ValueError(f"inputs[{j}]: expected [N, C, H, W], got the shape {list(shape)}")
        if shape[0] != shapes[0][0] if j else False:
            raise ValueError(f"inputs[{j}]: expected batch {shapes[0][0]} as in inputs[0], got {shape[0]}")
        shapes.append(shape)

    height, width = _size(shapes, size)
    c_out = None
    for j, weight in enumerate(weights):
        channels = shapes[j][1]
        if weight is None:
            c_out = channels if c_out is None else c_out
            if channels != c_out:
                raise ValueError(
                    f"inputs[{j}]: without a weight its channels must be the output's {c_out}, got {channels}"
                )
        else:
            like.check("weights[", j, weight)
            c_out = _check_weight("weights[", j, weight, c_out, channels)
    if bias is not None:
        _check_bias("bias", bias, c_out, like)

    projection_bias = None
    if projection is not None:
        if not isinstance(projection, Tensor):
            projection, projection_bias = projection
        like.check("projection", None, projection)
        channels = _check_weight("projection", None, projection, None, c_out)
        if projection_bias is not None:
            _check_bias("projection bias", projection_bias, channels, like)

    allow_tf32 = like.cuda and torch.backends.cuda.matmul.allow_tf32
    return ExchangeCall(inputs, weights, bias, projection, projection_bias, height, width, mode, bool(align_corners),
                        activation == "relu", allow_tf32)  # fmt: skip


class _Like:
    """What every tensor of a call has in common with the first input: dtype and device."""

    __slots__ = ("autocast", "cuda", "device", "dtype")

    def __init__(self, first: Tensor):
        self.device, self.dtype = first.device, first.dtype
        kind = self.device.type
        self.cuda = kind == "cuda"
        self.autocast = kind != "meta" and torch.is_autocast_enabled(kind)  # then dtypes may differ: all are cast
        if self.dtype not in FLOAT_DTYPES:
            self._fail_dtype("inputs[0]", self.dtype)

    def check(self, name: str, index: int | None, x) -> None:
        if not isinstance(x, Tensor):
            _fail_type(_name(name, index), x, "a tensor")
        if x.dtype != self.dtype:
            if x.dtype not in FLOAT_DTYPES:
                self._fail_dtype(_name(name, index), x.dtype)
            if not self.autocast:
                raise TypeError(f"{_name(name, index)}: expected dtype {self.dtype} as inputs[0] has, got {x.dtype}")
        if x.device != self.device:
            raise ValueError(f"{_name(name, index)}: expected device {self.device} as inputs[0] has, got {x.device}")

    @staticmethod
    def _fail_dtype(name: str, dtype: torch.dtype):
        raise TypeError(f"{name}: expected one of {', '.join(map(str, FLOAT_DTYPES))}, got {dtype}")


def _name(name: str, index: int | None) -> str:
    return name if index is None else f"{name}{index}]"


def _size(shapes, size) -> tuple[int, int]:
    largest_h = largest_w = 0
    for _, _, h, w in shapes:
        if h < 1 or w < 1:
            raise ValueError(f"inputs: every height and width must be at least 1, got {[list(s) for s in shapes]}")
        largest_h, largest_w = max(largest_h, h), max(largest_w, w)
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


def _check_weight(name, index, weight, c_out, c_in) -> int:
    """Its output channels; they must be c_out, where that is known already."""
    shape = weight.shape
    rank = len(shape)
    fits = (rank == 2 or (rank == 4 and shape[2] == 1 and shape[3] == 1)) and shape[1] == c_in
    if not fits or (c_out is not None and shape[0] != c_out):
        out = "C_out" if c_out is None else c_out
        raise ValueError(
            f"{_name(name, index)}: expected [{out}, {c_in}] or [{out}, {c_in}, 1, 1], got {list(shape)}")  # fmt: skip
    return shape[0]


def _check_bias(name, bias, channels, like):
    like.check(name, None, bias)
    if bias.ndim != 1 or bias.shape[0] != channels:
        raise ValueError(f"{name}: expected [{channels}], got {list(bias.shape)}")
