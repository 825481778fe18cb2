"""Where a head's 1x1 convolution belongs: before the upsampling or behind it, runtime by runtime, as measured."""

from typing import NamedTuple

OF_ONNX = ("onnxruntime", "openvino")  # what a file of ONNX is written for where nothing is said
RUNTIMES = (*OF_ONNX, "inductor")


class Row(NamedTuple):
    """A head's convolution that makes ``channels`` or more (up to the next row of the runtime) moves ``streams``."""

    runtime: str
    channels: int  # that the convolution over the concatenation makes: 15 times the network's width
    streams: int  # that are moved, the lowest resolutions first; 0: none
    gain: float  # median time of the plain export over that of this one, round by round
    source: str  # the case in benchmarks/results/export/


TABLE: tuple[Row, ...] = (
    Row("onnxruntime", 270, 1, 1.00, "export-w18-512x512-onnxruntime"),
    Row("onnxruntime", 720, 1, 1.16, "export-w48-512x512-onnxruntime"),
    Row("openvino", 270, 1, 1.02, "export-w18-512x512-openvino"),
    Row("openvino", 720, 2, 1.06, "export-w48-512x512-openvino"),
)


def choice(runtime: str | None):
    """Of the channels of a head's convolution, how many streams to move for a runtime; None: whichever runs ONNX."""
    runtimes = OF_ONNX if runtime is None else (runtime,)

    def streams(channels: int) -> int:
        return min(_streams(name, channels) for name in runtimes)

    return streams


def _streams(runtime: str, channels: int) -> int:
    rows = [row for row in TABLE if row.runtime == runtime and row.channels <= channels]
    return max(rows, key=lambda row: row.channels).streams if rows else 0
