"""ONNX Runtime on the CPU; in int8 quantized by its own tools."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers import forms
from hrnet_fast.bench.contenders import Problem


def unsupported_reason(dtype: torch.dtype) -> str | None:
    """It has to be installed, and has convolutions for float32 and int8 alone."""
    missing = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: pip install {' '.join(missing)}"
    if dtype not in (torch.float32, torch.int8):
        return f"its CPU provider has no convolution in {str(dtype).removeprefix('torch.')}"
    return None


def prepare(problem: Problem) -> Callable[[], Tensor]:
    """A session with all graph optimisations, with input and output bound to memory that is there already."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    # Its threads spin between operators, which it needs; spinning on after the run would slow down whoever comes next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with forms.onnx_file(problem) as path:
        if problem.dtype == torch.int8:
            path = quantized(path, problem)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    image, output = problem.image, torch.empty(session.get_outputs()[0].shape)
    binding = session.io_binding()
    binding.bind_input(session.get_inputs()[0].name, "cpu", 0, np.float32, list(image.shape), image.data_ptr())
    binding.bind_output(session.get_outputs()[0].name, "cpu", 0, np.float32, list(output.shape), output.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return output

    call.keep = image  # the binding has its address only
    return call


def quantized(path: Path, problem: Problem) -> Path:
    """A file beside ``path``: the network with 8-bit weights, a scale for each output channel, and 8-bit images.

    Images are unsigned: signed ones take it 2.4 to 3.6 times as long on x86, with the same error.
    """
    from onnxruntime import InferenceSession, quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(forms.calibration_batches(problem))

        def get_next(self) -> dict | None:
            part = next(self.left, None)
            return None if part is None else {name: part.numpy()}

    prepared, made = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    with forms.quiet():
        quant_pre_process(str(path), str(prepared))
        quantization.quantize_static(
            str(prepared), str(made), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )  # fmt: skip
    return made
