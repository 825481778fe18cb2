"""A made-up GPU: fake tensors on ``cuda:N``, on any build of torch, with or without CUDA."""

import contextlib
import ctypes
import sys
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

# DeviceType as in c10/core/DeviceType.h, and how many slots its tables of devices have at least
CPU, CUDA, SLOTS = 0, 1, 20
REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry


@contextlib.contextmanager
def made_up_gpu(**arguments):
    """FakeTensorMode(**arguments), in which tensors may be on ``cuda:N``.

    A few methods of tensors (contiguous, to, indexing) set the current device first, even of fake tensors. A CUDA build
    without a GPU gets a guard that does nothing from FakeTensorMode; a CPU build has none to set it with and raises "not
    linked with support for cuda devices". There the CPU's guard, which does nothing either, stands in meanwhile. It knows
    no current GPU: write "cuda:0" where "cuda" would do on a CUDA build. And the results of convolutions have the memory
    format that cuDNN gives them.
    """
    with _cuda_build(), FakeTensorMode(**arguments) as mode:
        yield mode


@contextlib.contextmanager
def _cuda_build():
    if torch.backends.cuda.is_built():
        yield
        return
    name = "libc10.dylib" if sys.platform == "darwin" else "libc10.so"
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
    guards = (ctypes.c_void_p * SLOTS).in_dll(library, REGISTRY)
    before = guards[CUDA]
    guards[CUDA] = guards[CPU]
    try:
        with mock.patch("torch._C._conv_determine_backend_memory_format", _as_cudnn):
            yield
    finally:
        guards[CUDA] = before


def _as_cudnn(image, weight, backend):
    innermost = any(
        x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x in (image, weight)
    )
    return torch.channels_last if innermost and image.dtype != torch.float64 else torch.contiguous_format
