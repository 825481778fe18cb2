"""All contenders by their names, in the order of their turns: those of the package, other engines, forms on GPUs."""

import torch

from benchmarks.peers import onnx_runtime, openvino_runtime
from hrnet_fast.bench import contenders as shipped
from hrnet_fast.bench import measure
from hrnet_fast.bench.contenders import CHANNELS_LAST, COMPILED, FAST, FOLDED, OPTIMIZED, Form, always

ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
BACKENDS = {f"{FAST} {name}": {"HRNET_FAST_BACKEND": name} for name in ("triton", "cuda")}
EPILOGUES = {
    f"{FAST} {name}": {"HRNET_FAST_CUDNN_EPILOGUE": value} for name, value in (("conv2d", "0"), ("cuDNN epilogue", "1"))
}
MODES = {f"{COMPILED} default": ("default", 30.0), f"{COMPILED} max-autotune": ("max-autotune-no-cudagraphs", 90.0)}

_fast = shipped.TABLE[FAST].prepare
TABLE: dict[str, Form] = {
    **{name: form for name, form in shipped.TABLE.items() if not form.ours},
    ONNX_RUNTIME: Form(onnx_runtime.prepare, onnx_runtime.unsupported_reason),
    OPENVINO: Form(openvino_runtime.prepare, openvino_runtime.unsupported_reason),
    **{name: form for name, form in shipped.TABLE.items() if form.ours},
    **{name: Form(_fast, always, True, settings=settings) for name, settings in (BACKENDS | EPILOGUES).items()},
    **{
        name: Form(shipped.compiled(shipped.best_plain, mode), shipped.no_compiler, needs=needs)
        for name, (mode, needs) in MODES.items()
    },
}
ENGINES = (CHANNELS_LAST, COMPILED, ONNX_RUNTIME, OPENVINO, FAST, OPTIMIZED)
# What is quick to prepare comes first: time may run out.
GPU_OPERATORS, GPU_NETWORKS = (FOLDED, FAST, *BACKENDS, *MODES), (FOLDED, FAST, *EPILOGUES, *MODES)


def ours() -> tuple[str, ...]:
    """The names of those contenders that are hrnet_fast."""
    return shipped.ours(TABLE)


def resident_peak(case: measure.Case, contender: str, threads: int) -> int | None:
    """Bytes that this process needs with one contender of a case."""
    torch.set_num_threads(threads)
    return measure.resident_peak(case, contender, TABLE)
