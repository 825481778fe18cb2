"""OpenVINO on the CPU; in int8 quantized by NNCF, which is its own program for that."""

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.peers import forms
from hrnet_fast.bench.contenders import Problem

if TYPE_CHECKING:
    import openvino

CAPABILITY = {torch.float32: "FP32", torch.bfloat16: "BF16", torch.float16: "FP16", torch.int8: "INT8"}
PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}  # of INFERENCE_PRECISION_HINT


def unsupported_reason(dtype: torch.dtype) -> str | None:
    """It has to be installed, and to compute in the dtype on this CPU instead of quietly in another."""
    needed = ("openvino", "onnx", *(("nncf",) if dtype == torch.int8 else ()))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: pip install {' '.join(missing)}"
    name = CAPABILITY.get(dtype)
    return (
        None if name in _capabilities() else f"it does not compute in {str(dtype).removeprefix('torch.')} on this CPU"
    )


def prepare(problem: Problem) -> Callable[[], Tensor]:
    """A model with static shapes, for latency, on as many pinned threads as torch has; input and output not copied."""
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": True, "INFERENCE_PRECISION_HINT": _precision(problem.dtype),
    }  # fmt: skip
    core = openvino.Core()
    with forms.onnx_file(problem) as path:
        model = core.read_model(path)
        model.reshape(list(problem.image.shape))
        if problem.dtype == torch.int8:
            model = quantized(model, problem)
        compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    pixels = problem.image.numpy()
    request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))

    def call() -> Tensor:
        request.infer()
        return torch.from_numpy(request.get_output_tensor(0).data)

    call.keep = pixels
    return call


def _capabilities() -> list[str]:
    import openvino

    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _precision(dtype: torch.dtype) -> str:
    if dtype != torch.int8:
        return PRECISION[dtype]
    # For what NNCF leaves in floating point. Measured with AMX: for w18 segmentation at 512x512 bf16 takes 10 % less
    # time than f32, for w18 at 224x224 and w32 pose the same within noise. The error is the same.
    return "bf16" if "BF16" in _capabilities() else "f32"


def quantized(model: "openvino.Model", problem: Problem) -> "openvino.Model":
    """The model after NNCF's post-training quantization, in whose graph the scales are.

    PERFORMANCE makes all scales symmetric. MIXED, with zero points for activations, takes as long within noise and has
    the same error.
    """
    import nncf

    with forms.quiet():
        images = nncf.Dataset([part.numpy() for part in forms.calibration_batches(problem)])
        return nncf.quantize(model, images, preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=images.get_length())
