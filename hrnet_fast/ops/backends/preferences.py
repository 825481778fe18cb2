"""Exceptions to the order of the table of backends, for GPUs: by architecture and kind of exchange.

``measured`` names the GPU and the file of results that a row follows from. None: nobody has measured it; the order is
then that of the counts of bytes and launches.
"""

from typing import NamedTuple

from hrnet_fast.ops.exchange.call import ExchangeCall


class Row(NamedTuple):
    """From this compute capability on, a kind of exchange is asked of these backends in turn; the others follow."""

    capability: tuple[int, int]
    kind: str  # "weightless", "exchange", "head", "backward" or "convolution"
    backends: tuple[str, ...]
    measured: str | None


# The first row that fits decides.
GPU = (
    Row((8, 0), "weightless", ("triton", "cuda"), None),
    Row((8, 0), "head", ("triton", "cuda"), None),
)
# How folded convolutions with a ReLU behind them run: bias, ReLU and residual sum in cuDNN's epilogue, or by kernels of
# their own. The counts of launches and bytes speak for the epilogue, cuDNN's heuristics have spoken against it.
EPILOGUE, CONV2D = "cuDNN epilogue", "conv2d"
CONVOLUTION = (Row((7, 5), "convolution", (EPILOGUE, CONV2D), None),)


def kind(call: ExchangeCall) -> str:
    """Which class of shapes a call belongs to: what its kernel would spend its time on."""
    if call.projection is not None:
        return "head"
    if not any(weight is not None for weight in call.weights):
        return "weightless"  # training, and heads without a convolution: bound by memory
    full = (call.height, call.width)
    whole = any(w is not None and tuple(x.shape[2:]) == full for x, w in zip(call.inputs, call.weights))
    return "head" if whole else "exchange"


def arrange(names: list[str], kind: str, capability: tuple[int, int]) -> list[str]:
    """The names in their order, but those that a row has in the row's order, in the places which they have together."""
    row = _row(capability, kind)
    wanted = iter([name for name in row if name in names])
    return [next(wanted) if name in row else name for name in names]


def convolution(capability: tuple[int, int]) -> str:
    """What a folded convolution with a ReLU is asked of first: EPILOGUE or CONV2D."""
    return next(iter(_row(capability, "convolution")), CONV2D)


def _row(capability: tuple[int, int], wanted: str) -> tuple[str, ...]:
    rows = (*GPU, *CONVOLUTION)
    return next((row.backends for row in rows if capability >= row.capability and row.kind == wanted), ())
