"""The CUDA kernels' own source (csrc/cuda), compiled by the host's compiler and run as coroutines: no GPU is needed."""

import ctypes
import os
import shlex
import subprocess
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
MODES = {("nearest", False): 0, ("nearest", True): 0, ("bilinear", False): 1, ("bilinear", True): 2}
DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
MAX_INPUTS, MAX_OUTPUTS = 8, 4
INTS = ctypes.POINTER(ctypes.c_int)


class Input(ctypes.Structure):
    """As in csrc/cuda/problem.h, as are the next two."""

    _fields_ = [("data", ctypes.c_void_p), ("weight", ctypes.c_void_p), ("h", ctypes.c_int), ("w", ctypes.c_int),
                ("k", ctypes.c_int), ("row_scale", ctypes.c_float), ("column_scale", ctypes.c_float),
                ("patch", ctypes.c_int)]  # fmt: skip


class Output(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("input", Input * MAX_INPUTS),
                *((name, ctypes.c_int) for name in ("count", "n", "channels", "h", "w", "tiles_y", "tiles_x",
                                                    "channel_block", "channel_blocks", "vector", "pitch")),
                ("first_block", ctypes.c_uint)]  # fmt: skip


class Launch(ctypes.Structure):
    _fields_ = [
        ("output", Output * MAX_OUTPUTS),
        ("count", ctypes.c_int),
        ("mode", ctypes.c_int),
        ("relu", ctypes.c_bool),
    ]


class Target(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("h", ctypes.c_int), ("w", ctypes.c_int), ("row_scale", ctypes.c_float),
                ("column_scale", ctypes.c_float), ("row_window", ctypes.c_int), ("column_window", ctypes.c_int),
                ("first_block", ctypes.c_uint), ("items", ctypes.c_int64)]  # fmt: skip


class BackwardLaunch(ctypes.Structure):
    _fields_ = [("grad", ctypes.c_void_p), ("output", ctypes.c_void_p), ("target", Target * (MAX_INPUTS + 1)),
                *((name, ctypes.c_int) for name in ("count", "n", "channels", "h", "w", "vector", "mode"))]  # fmt: skip


class Host:
    """The compiled library."""

    def __init__(self, folder: Path):
        path = folder / "cuda_on_host.so"
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        flags = ["-std=c++17", "-O2", "-shared", "-fPIC"]
        source = HERE / "cuda_on_host" / "exchange.cpp"
        subprocess.run([*compiler, *flags, f"-I{source.parent}", source, "-o", path], check=True)
        self.library = ctypes.CDLL(str(path))
        assert self.library.size_of_launch() == ctypes.sizeof(Launch)
        assert self.library.size_of_backward_launch() == ctypes.sizeof(BackwardLaunch)
        for function in (self.library.channels_last_element, self.library.planar_element):
            function.restype = ctypes.c_int64

    def exchange_sums(self, inputs, counts, weights, weighted, biases, biased, sizes, channels_last, mode, align_corners,
                      relu, allow_tf32) -> list[Tensor]:  # fmt: skip
        """The operator hrnet_fast::exchange_sums."""
        launch = Launch(count=len(counts), mode=MODES[mode, align_corners], relu=relu)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, w, b, outputs = iter(inputs), iter(weights), iter(biases), []
        for i, count in enumerate(counts):
            q, channels = launch.output[i], None
            for j in range(count):
                image = next(x)
                assert image.is_contiguous(memory_format=layout)
                weight = next(w) if weighted[i] >> j & 1 else None
                q.input[j] = Input(data=image.data_ptr(), weight=None if weight is None else weight.data_ptr(),
                                   h=image.shape[2], w=image.shape[3], k=image.shape[1])  # fmt: skip
                channels = channels or (image.shape[1] if weight is None else weight.shape[0])
            h, width = sizes[2 * i : 2 * i + 2]
            out = torch.empty((image.shape[0], channels, h, width), dtype=image.dtype, memory_format=layout)
            outputs.append(out.fill_(float("nan")))
            q.bias = next(b).data_ptr() if biased[i] else None
            q.data, q.count, q.n, q.channels, q.h, q.w = out.data_ptr(), count, image.shape[0], channels, h, width
        self.library.exchange(ctypes.byref(launch), DTYPES[inputs[0].dtype], int(channels_last), int(allow_tf32))
        return outputs

    def exchange_backward_sums(self, grad, output, sizes, channels_last, mode, align_corners) -> list[Tensor]:
        """The operator hrnet_fast::exchange_backward_sums."""
        n, c, h, w = grad.shape
        layout = torch.channels_last if channels_last else torch.contiguous_format
        launch = BackwardLaunch(grad=grad.data_ptr(), output=None if output is None else output.data_ptr(), n=n,
                                channels=c, h=h, w=w, mode=MODES[mode, align_corners], count=len(sizes) // 2)  # fmt: skip
        results = []
        for j in range(launch.count):
            low_h, low_w = sizes[2 * j : 2 * j + 2]
            out = torch.empty((n, c, low_h, low_w), dtype=grad.dtype, memory_format=layout)
            results.append(out.fill_(float("nan")))
            launch.target[j] = Target(data=out.data_ptr(), h=low_h, w=low_w)
        self.library.exchange_backward_of(ctypes.byref(launch), DTYPES[grad.dtype], int(channels_last))
        return results

    def sources(self, mode: int, in_size: int, out_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """i0, i1, w0, w1 of every output position."""
        integers = [(ctypes.c_int * out_size)() for _ in range(2)]
        floats = [(ctypes.c_float * out_size)() for _ in range(2)]
        self.library.sources(mode, in_size, out_size, *integers, *floats)
        return tuple(torch.tensor(list(values)) for values in (*integers, *floats))

    def largest_patch(self, mode: int, low: tuple[int, int], full: tuple[int, int]) -> tuple[int, bool]:
        """The pixels of the largest patch, and whether all fit into what shared memory has for them."""
        fits = ctypes.c_int()
        return self.library.largest_patch(mode, *low, *full, ctypes.byref(fits)), bool(fits.value)

    def coverage(self, n: int, channels: int, h: int, w: int, channels_last: bool) -> Tensor:
        """How many times each element of the output is computed."""
        visits = torch.zeros(n * channels * h * w, dtype=torch.int32)
        pointer = ctypes.cast(visits.data_ptr(), INTS)
        self.library.coverage(n, channels, h, w, int(channels_last), pointer)
        return visits
