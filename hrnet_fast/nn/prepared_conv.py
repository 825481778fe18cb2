"""A convolution prepared for inference: through oneDNN with the weights reordered once, or plain PyTorch."""

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from hrnet_fast.nn import cudnn_epilogue
from hrnet_fast.ops.backends.gpu import first_line
from hrnet_fast.ops.exchange.call import is_channels_last

# The best weight layout depends on the input's size, and a wrong one costs up to a hundred times the convolution itself
# (it is then reordered slowly at every call). So there is one layout for each of the sizes that came last.
_KEPT_SIZES = 4


@functools.cache
def why_not_onednn() -> str | None:
    """Why torch's own oneDNN operators cannot be used here; None where they can. They are private, hence the checks."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    for name in ("_convolution_pointwise", "_reorder_convolution_weight"):
        if not hasattr(torch.ops.mkldnn, name):
            return f"this PyTorch has no torch.ops.mkldnn.{name}"
    try:
        x, weight = torch.ones(1, 16, 8, 8), torch.ones(16, 16, 3, 3)
        geometry = (1, 1), (2, 2), (1, 1), 1
        prepared, expected = _reorder(weight, *geometry, x.shape), F.conv2d(x, weight, stride=2, padding=1)
        y = _convolve(x, prepared, None, *geometry, "relu")
        z = _convolve_add_relu(x, -2 * expected, prepared, None, *geometry)
        if not torch.equal(y, expected) or z.any():
            return "torch.ops.mkldnn._convolution_pointwise computes something else than conv2d"
    except Exception as error:  # a changed schema, an unsupported processor: conv2d always works
        return f"torch.ops.mkldnn cannot be called as in PyTorch 2.11 to 2.13 ({error})"
    return None


@functools.cache
def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    dtypes = [torch.float32]
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
        if supported is not None and supported():
            dtypes.append(dtype)
    return tuple(dtypes)


def _reorder(weight, padding, stride, dilation, groups, size) -> Tensor:
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, list(size))


def _convolve(x, weight, bias, padding, stride, dilation, groups, attribute) -> Tensor:
    op = torch.ops.mkldnn._convolution_pointwise.default
    return op(x, weight, bias, padding, stride, dilation, groups, attribute, [], "")


def _convolve_add_relu(x, other, weight, bias, padding, stride, dilation, groups) -> Tensor:
    op = torch.ops.mkldnn._convolution_pointwise.binary
    return op(x, other, weight, bias, padding, stride, dilation, groups, "add", 1.0, "relu", [], "")


def _register_flops() -> None:
    """Lets FlopCounterMode see the oneDNN convolution, which PyTorch itself only meets inside compiled code."""

    def formula(x, *arguments, out_shape=None, **kwargs) -> int:
        weight = arguments[1 if len(arguments) > 9 else 0]  # the overload with a summand has it first
        return conv_flop_count(x, weight, out_shape, transposed=False)

    # this PyTorch may have no such operator, or somebody else may have registered a formula
    with contextlib.suppress(AttributeError, RuntimeError):
        register_flop_formula(torch.ops.mkldnn._convolution_pointwise)(formula)


_register_flops()


class PreparedConv:
    """A convolution with fixed weights, its bias and, if asked for, a ReLU behind it.

    On the CPU in float32, bfloat16 or float16 and where no gradient is wanted it runs through the oneDNN operators that
    Inductor uses, with weights in oneDNN's own layout; the result is then channels_last whatever the layout of the
    input (also for a contiguous input this is faster than conv2d, the conversion included). On NVIDIA GPUs bias, ReLU
    and residual sum are in cuDNN's epilogue where hrnet_fast.nn.cudnn_epilogue has no objection. Everywhere else, under
    compilation, tracing or a tensor subclass, it is F.conv2d and relu, which keep the input's layout.

    Args:
        weight: [O, I / groups, kh, kw].
        bias: [O] or None.
        stride, padding, dilation: (vertical, horizontal), in pixels.
        groups: as in F.conv2d.
        relu_from: ReLU on the output channels from this one on; 0: on all of them; None: on none.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        relu_from: int | None = None,
    ):
        self.weight, self.bias = weight, bias
        self.groups = groups
        self._geometry = stride, padding, dilation, groups
        self.relu_from = relu_from
        self._prepared: dict[tuple, tuple[Tensor, Tensor | None]] = {}
        self._last: Tensor | None = None  # the weight with channels innermost, for GPUs
        self._failure: str | None = None  # why cuDNN's epilogue could not compute this very convolution

    def __call__(self, x: Tensor) -> Tensor:  # [N, I, H, W] -> [N, O, H', W']
        if self.why_plain(x) is None:
            y = self._onednn(x)
        elif self.relu_from == 0 and self.why_not_epilogue(x) is None:
            return self._on_gpu(x)
        else:
            y = F.conv2d(x, self._weight_for(x), self.bias, *self._geometry)
            if self.relu_from == 0:
                y = F.relu(y)
        if self.relu_from:
            y[:, self.relu_from :].relu_()
        return y

    def add_relu(self, x: Tensor, other: Tensor) -> Tensor:  # [N, I, H, W], [N, O, H', W'] -> [N, O, H', W']
        """relu(convolution(x) + other), without the ReLU of ``relu_from``; the sum is rounded once in an epilogue.

        Raises:
            RuntimeError: the shape of ``other`` is not that of the convolution's result.
        """
        # oneDNN itself does not look at the shape of the summand, and would read beyond it
        fits = type(other) is type(x) and other.dtype == x.dtype and tuple(other.shape) == self._output_shape(x)
        if fits and self.why_plain(x) is None:
            return self._onednn(x, other)
        if fits and other.device == x.device and self.why_not_epilogue(x) is None:
            return self._on_gpu(x, other)
        return F.relu(F.conv2d(x, self._weight_for(x), self.bias, *self._geometry) + other)

    def why_not_epilogue(self, x: Tensor) -> str | None:
        """Why bias, ReLU and residual sum of this input are not in cuDNN's epilogue; None where they are."""
        if not x.is_cuda or type(x) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "the input is no plain tensor on an NVIDIA GPU"
        return self._failure or cudnn_epilogue.why_not(x, self.weight, self.groups)

    def _on_gpu(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        weight = self._weight_for(x)
        try:
            if other is None:
                return cudnn_epilogue.convolve_relu(x, weight, self.bias, *self._geometry)
            last = other.contiguous(memory_format=torch.channels_last)
            return cudnn_epilogue.convolve_add_relu(x, last, weight, self.bias, *self._geometry)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # no engine of cuDNN for this geometry
            self._failure = f"cuDNN cannot ({first_line(error)})"
            return self(x) if other is None else self.add_relu(x, other)

    def _weight_for(self, x: Tensor) -> Tensor:
        """The weight with its channels innermost if the input's are, on a GPU: cuDNN would convert every time."""
        if not x.is_cuda or type(x) is not Tensor or torch.compiler.is_compiling() or not is_channels_last(x):
            return self.weight
        if self._last is None:
            with torch.inference_mode(False), torch.no_grad():
                last = self.weight.detach().contiguous(memory_format=torch.channels_last)
            if torch.cuda.is_current_stream_capturing():
                return last  # in the graph's memory: nothing is in it before a replay
            self._last = last
        return self.weight if self.weight.requires_grad and torch.is_grad_enabled() else self._last

    def _output_shape(self, x: Tensor) -> tuple[int, ...]:
        stride, padding, dilation, _ = self._geometry
        sides = zip(x.shape[2:], self.weight.shape[2:], stride, padding, dilation)
        return (x.shape[0], self.weight.shape[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides))

    def why_plain(self, x: Tensor) -> str | None:
        """Why conv2d serves this input instead of oneDNN; None where oneDNN does."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "graphs are recorded in standard operators"
        if not x.is_cpu or not self.weight.is_cpu or type(x) is not Tensor:
            return f"the input is a {type(x).__name__} on {x.device}, the weight on {self.weight.device}"
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype not in _onednn_dtypes() or x.dtype == torch.float64 or (dtype == x.dtype != self.weight.dtype):
            return f"oneDNN has no convolution of {x.dtype} with a weight of {self.weight.dtype} here"
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return "a gradient is wanted"
        if x.numel() == 0 or x.dim() != 4 or x.shape[1] != self.weight.shape[1] * self.groups:
            return f"the input is {list(x.shape)}"
        if not torch.backends.mkldnn.enabled:
            return "torch.backends.mkldnn.enabled is False"
        return why_not_onednn()

    def _onednn(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        key = (x.shape, x.dtype, torch.get_num_threads())
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepare(x)
            while len(self._prepared) >= _KEPT_SIZES:
                self._prepared.pop(next(iter(self._prepared)), None)
            self._prepared[key] = prepared
        x = x.contiguous(memory_format=torch.channels_last)
        stride, padding, dilation, groups = self._geometry
        if other is None:
            attribute = "relu" if self.relu_from == 0 else "none"
            return _convolve(x, *prepared, padding, stride, dilation, groups, attribute)
        other = other.contiguous(memory_format=torch.channels_last)
        return _convolve_add_relu(x, other, *prepared, padding, stride, dilation, groups)

    def _prepare(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.inference_mode(False), torch.no_grad():
            weight = self.weight.to(x.dtype).contiguous(memory_format=torch.channels_last)
            bias = None if self.bias is None else self.bias.to(x.dtype)
            stride, padding, dilation, groups = self._geometry
            return _reorder(weight, padding, stride, dilation, groups, x.shape), bias
