"""What operators return, as fake tensors without elements.

torch's own fake tensors take about a millisecond an operator, since they run the operator's Python decompositions, and
setting them up imports torch._dynamo and sympy, which takes longer than all that an HRNet needs. For the operators that
make up an HRNet a formula gives the shape; torch's fake tensors are set up for what is left.
"""

import weakref
from typing import Any

import torch
from torch._functorch import config
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# norms -> the index of the argument that says whether they use the statistics of the batch; None: never
_NORMS = {aten.native_batch_norm.default: 5, aten._native_batch_norm_legit_no_training.default: None}
_EMPTY = {"dtype", "layout", "device", "pin_memory"}
_UPSAMPLINGS = (aten.upsample_bilinear2d.default, aten.upsample_nearest2d.default)


class Fakes(FakeTensorMode):
    """torch's mode for fake tensors, set up when an operator first needs it."""

    _dispatch_key = None  # torch asks whether there is one

    def __init__(self):
        TorchDispatchMode.__init__(self)
        # what making, entering and asking for the device of fake tensors reads; another release may read more, which
        # sets it up and takes longer
        self.allow_meta = config.fake_tensor_allow_meta
        self._allow_unsafe_data_ptr_access = config.fake_tensor_allow_unsafe_data_ptr_access
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        self.in_kernel_invocation = False
        self.enter_stack = []
        self._nothing: weakref.WeakValueDictionary[tuple, FakeTensor] = weakref.WeakValueDictionary()

    def nothing(self, of: Any, dtype: torch.dtype, device: torch.device) -> FakeTensor:
        """A result without elements, one for all calls of an operator: a norm gives three, which nobody reads."""
        found = self._nothing.get((of, dtype, device))
        if found is None:
            found = self._nothing[of, dtype, device] = fake(self, (0,), dtype, device)
        return found

    def __getattr__(self, name: str) -> Any:
        if "fake_tensor_converter" in vars(self) or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        # modules that are imported now may make tensors of their own, which are neither fake nor recorded
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            whole = FakeTensorMode(allow_non_fake_inputs=True)
        for attribute, value in vars(whole).items():
            self.__dict__.setdefault(attribute, value)
        return getattr(self, name)


def fake(mode: FakeTensorMode, shape, dtype: torch.dtype, device: torch.device, strides=None) -> FakeTensor:
    """A tensor without elements; contiguous unless strides are given."""
    guard = torch._C._DisableTorchDispatch()
    try:
        if strides is None:
            meta = torch.empty(tuple(shape), dtype=dtype, device="meta")
        else:
            meta = torch.empty_strided(tuple(shape), strides, dtype=dtype, device="meta")
        # positional: torch releases differ in the first parameter's name
        return FakeTensor(mode, meta, torch.device(device))
    finally:
        del guard


def result_of(mode: Fakes, func: Any, args: tuple, kwargs: dict) -> Any:
    """What an operator returns for such arguments; torch's mode is asked where no formula is known."""
    if func is aten.empty.memory_format:  # of batch_norm, for what training would keep
        dtype, device, dense = kwargs.get("dtype"), kwargs.get("device"), kwargs.get("layout") == torch.strided
        if kwargs.keys() <= _EMPTY and dtype and device and dense:
            if list(args[0]) == [0]:
                return mode.nothing(func, dtype, device)
            return fake(mode, args[0], dtype, device)
    elif func is aten.cat.default:
        shape = _concatenated(*args) if len(args) == 2 and not kwargs else None
        if shape is not None:
            return fake(mode, shape, args[0][0].dtype, args[0][0].fake_device)
    x = args[0] if args else None
    if not kwargs and _is_plain(x):
        if func in _NORMS and not (_NORMS[func] and args[_NORMS[func]]):
            empty = [mode.nothing((func, k), x.dtype, x.fake_device) for k in range(2)]
            return fake(mode, x.shape, x.dtype, x.fake_device), *empty
        shape = _shape(func, x, args)
        if shape is not None and min(shape) > 0:
            return fake(mode, shape, x.dtype, x.fake_device)
    return func(*args, **kwargs)


def _is_plain(x: Any) -> bool:
    """Whether this is a fake image [N, C, H, W] in dense planes."""
    return isinstance(x, FakeTensor) and x.dim() == 4 and x.is_contiguous() and x.stride(3) == 1


def _concatenated(images: list, dim: int) -> tuple[int, ...] | None:
    """The shape of images side by side in their channels."""
    if dim not in (1, -3) or not all(map(_is_plain, images)) or len({(x.dtype, x.fake_device) for x in images}) != 1:
        return None
    (n, _, h, w), channels = images[0].shape, sum(x.shape[1] for x in images)
    alike = all((x.shape[0], *x.shape[2:]) == (n, h, w) for x in images)
    return (n, channels, h, w) if alike and min(n, h, w) > 0 and all(x.shape[1] for x in images) else None


def _shape(func: Any, x: FakeTensor, args: tuple) -> tuple[int, ...] | None:
    if func is aten.convolution.default:
        weight, bias, stride, padding, dilation, transposed, _, groups = args[1:]
        # other layouts and dtypes: torch knows what comes of them, and what raises
        plain = weight.dim() == 4 and weight.is_contiguous() and weight.stride(3) == 1 and weight.dtype == x.dtype
        if not plain or transposed or len(padding) != 2 or weight.shape[1] * groups != x.shape[1]:
            return None
        if bias is not None and bias.dtype != x.dtype:
            return None
        sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation)
        return (x.shape[0], weight.shape[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides))
    if func is aten.relu.default:
        return tuple(x.shape)
    if func is aten.add.Tensor and isinstance(args[1], FakeTensor):
        other = args[1]
        alike = other.shape == x.shape and other.dtype == x.dtype and other.stride() == x.stride()
        return tuple(x.shape) if alike else None
    if func in _UPSAMPLINGS:
        return (*x.shape[:2], *args[1])
    return None
