"""ONNX Runtime on the CPU."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import Job, forms

NAME = "ONNX Runtime"


def why_not(dtype: torch.dtype) -> str | None:
    """It has to be installed, and has convolutions for float32 alone."""
    missing = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: pip install {' '.join(missing)}"
    if dtype != torch.float32:
        return f"its CPU provider has no convolution in {str(dtype).removeprefix('torch.')}"
    return None


def prepare(job: Job) -> Callable[[], Tensor]:
    """A session with all graph optimisations, with input and output bound to memory that is there already."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    options.log_severity_level = 3
    # Its threads spin between operators, which it needs; spinning on after the run would slow down whoever comes next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with forms.onnx_file(job) as path:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    image, output = job.image, torch.empty(session.get_outputs()[0].shape)
    binding = session.io_binding()
    binding.bind_input(session.get_inputs()[0].name, "cpu", 0, np.float32, list(image.shape), image.data_ptr())
    binding.bind_output(session.get_outputs()[0].name, "cpu", 0, np.float32, list(output.shape), output.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return output

    call.keep = image  # the binding has its address only
    return call
