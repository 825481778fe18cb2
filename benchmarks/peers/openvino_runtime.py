"""OpenVINO on the CPU."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import Job, forms

NAME = "OpenVINO"
PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}  # of INFERENCE_PRECISION_HINT


def why_not(dtype: torch.dtype) -> str | None:
    """It has to be installed, and to compute in the dtype on this CPU instead of quietly in another."""
    missing = [name for name in ("openvino", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: pip install {' '.join(missing)}"
    import openvino

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    name = {torch.float32: "FP32", torch.bfloat16: "BF16", torch.float16: "FP16"}.get(dtype)
    return None if name in able else f"it does not compute in {str(dtype).removeprefix('torch.')} on this CPU"


def prepare(job: Job) -> Callable[[], Tensor]:
    """A model with static shapes, for latency, on as many pinned threads as torch has; input and output not copied."""
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": job.threads,
        "ENABLE_CPU_PINNING": True, "INFERENCE_PRECISION_HINT": PRECISION[job.dtype],
    }  # fmt: skip
    core = openvino.Core()
    with forms.onnx_file(job) as path:
        model = core.read_model(path)
        model.reshape(list(job.image.shape))
        compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    pixels = job.image.numpy()
    request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))

    def call() -> Tensor:
        request.infer()
        return torch.from_numpy(request.get_output_tensor(0).data)

    call.keep = pixels
    return call
