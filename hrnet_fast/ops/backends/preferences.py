"""Which backend serves a call by default: for tensors on GPUs by architecture and kind of exchange, one table.

``measured`` names the GPU and the file of results that a row follows from. None: nobody has measured it; the order is
then that of the counts of bytes and launches.
"""

from typing import NamedTuple

from hrnet_fast.ops.exchange.call import ExchangeCall

CPU = ("cpu", "reference")


class Row(NamedTuple):
    """From this compute capability on, a kind of exchange is asked of these backends in turn."""

    capability: tuple[int, int]
    kind: str  # "weightless", "exchange", "head", "backward" or "convolution"
    backends: tuple[str, ...]
    measured: str | None


# The first row that fits decides.
GPU = (
    Row((8, 0), "weightless", ("triton", "cuda", "reference"), None),
    Row((8, 0), "exchange", ("cuda", "triton", "reference"), None),
    Row((8, 0), "head", ("triton", "cuda", "reference"), None),
    Row((8, 0), "backward", ("cuda", "triton"), None),
    Row((7, 5), "weightless", ("cuda", "reference"), None),
    Row((7, 5), "exchange", ("cuda", "reference"), None),
    Row((7, 5), "head", ("cuda", "reference"), None),
    Row((7, 5), "backward", ("cuda",), None),
)
# How folded convolutions with a ReLU behind them run: bias, ReLU and residual sum in cuDNN's epilogue, or by kernels of
# their own. The counts of launches and bytes speak for the epilogue, cuDNN's heuristics have spoken against it.
EPILOGUE, CONV2D = "cuDNN epilogue", "conv2d"
CONVOLUTION = (Row((7, 5), "convolution", (EPILOGUE, CONV2D), None),)
OTHER = ("reference",)  # devices without kernels of ours


def kind(call: ExchangeCall) -> str:
    """Which class of shapes a call belongs to: what its kernel would spend its time on."""
    if call.projection is not None:
        return "head"
    if not any(weight is not None for weight in call.weights):
        return "weightless"  # training, and heads without a convolution: bound by memory
    full = (call.height, call.width)
    whole = any(w is not None and tuple(x.shape[2:]) == full for x, w in zip(call.inputs, call.weights))
    return "head" if whole else "exchange"


def order(call: ExchangeCall, capability: tuple[int, int] | None = None) -> tuple[str, ...]:
    """The names of the backends for a call, most wanted first; ``capability`` of the GPU where tensors are on one."""
    device = call.inputs[0].device.type
    if device == "cpu":
        return CPU
    if device != "cuda" or capability is None:
        return OTHER
    return _row(capability, kind(call)) or OTHER


def backward(capability: tuple[int, int]) -> tuple[str, ...]:
    """The names of the backends whose backward is asked, most wanted first."""
    return _row(capability, "backward")


def convolution(capability: tuple[int, int]) -> str:
    """What a folded convolution with a ReLU is asked of first: EPILOGUE or CONV2D."""
    return next(iter(_row(capability, "convolution")), CONV2D)


def _row(capability: tuple[int, int], wanted: str) -> tuple[str, ...]:
    rows = (*GPU, *CONVOLUTION)
    return next((row.backends for row in rows if capability >= row.capability and row.kind == wanted), ())
