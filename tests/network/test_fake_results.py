"""Fake tensors: formulas give what torch's own mode gives, which is set up only where one is missing."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hrnet_fast.network.fake_results import Fakes, fake, result_of

aten = torch.ops.aten
SHAPE = (2, 4, 6, 7)
TRANSPOSED = (168, 1, 28, 4)  # strides of channels_last


def about(out):
    """What later operators may ask of a result."""
    results = out if isinstance(out, (list, tuple)) else [out]
    return [(tuple(t.shape), t.stride(), t.dtype, t.device) for t in results]


def cases():
    """Operators and their arguments; a shape, dtype and strides stand for a tensor."""
    x = (SHAPE, torch.float32, None)
    wide = (SHAPE, torch.float64, None)
    lying = (SHAPE, torch.float32, TRANSPOSED)
    empty = ((2, 0, 6, 7), torch.float32, None)
    other = ((2, 3, 6, 7), torch.float32, None)
    vector = ((4,), torch.float32, None)
    for image, stride, padding, dilation in itertools.product((x, lying), (1, 2, 3), (0, 1), (1, 2)):
        weight = ((5, 4, 3, 3), torch.float32, None)
        yield (
            aten.convolution.default,
            (image, weight, None, [stride] * 2, [padding + 1] * 2, [dilation] * 2, False, [0, 0], 1),
        )
    yield (
        aten.convolution.default,
        (x, ((4, 5, 3, 3), torch.float32, None), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    )
    for image, training in itertools.product((x, lying), (False, True)):
        yield aten.native_batch_norm.default, (image, vector, vector, vector, vector, training, 0.1, 1e-5)
    for image in (x, lying, empty):
        yield aten.relu.default, (image,)
        yield aten.add.Tensor, (image, image)
        yield aten.cat.default, ([image, image], 1)
    for term in (wide, lying, ((1, 4, 1, 1), torch.float32, None), 2.0):
        yield aten.add.Tensor, (x, term)
    for images, dim in itertools.product(([x, other], [x], [x, empty], [x, wide], [lying, lying]), (1, -3)):
        yield aten.cat.default, (images, dim)
    for dim in (0, 2, -1):
        yield aten.cat.default, ([x, x], dim)
    for image in (x, lying):
        yield aten.upsample_bilinear2d.default, (image, [12, 15], True)
        yield aten.upsample_nearest2d.default, (image, [3, 9])


def filled(mode, x):
    if isinstance(x, list):
        return [filled(mode, y) for y in x]
    is_tensor = isinstance(x, tuple) and len(x) == 3 and isinstance(x[1], torch.dtype)
    return fake(mode, x[0], x[1], torch.device("cpu"), x[2]) if is_tensor else x


@pytest.mark.parametrize(("func", "args"), list(cases()))
def test_formulas(func, args):
    mode, whole = Fakes(), FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        ours = result_of(mode, func, tuple(filled(mode, x) for x in args), {})
    with whole:
        theirs = func(*(filled(whole, x) for x in args))
    assert about(ours) == about(theirs)


@pytest.mark.parametrize("more", [{}, {"layout": None}, {"dtype": None}, {"memory_format": torch.channels_last}])
def test_what_batch_norm_makes(more):
    mode, whole = Fakes(), FakeTensorMode(allow_non_fake_inputs=True)
    kwargs = {"dtype": torch.uint8, "layout": torch.strided, "device": torch.device("cpu"), "pin_memory": False, **more}
    shape = [2, 3, 4, 5] if "memory_format" in more else [0]
    with mode:
        ours = result_of(mode, aten.empty.memory_format, (shape,), kwargs)
    with whole:
        theirs = aten.empty.memory_format(shape, **kwargs)
    assert about(ours) == about(theirs)


def test_the_mode_is_set_up_when_an_operator_needs_it():
    mode, whole = Fakes(), FakeTensorMode(allow_non_fake_inputs=True)
    x = fake(mode, SHAPE, torch.float32, torch.device("cpu"))
    with mode:
        assert x.device.type == "cpu" and "fake_tensor_converter" not in vars(mode)
        y = torch.sigmoid(x)
    assert y.shape == SHAPE and vars(whole).keys() <= vars(mode).keys()
    with pytest.raises(AttributeError, match="nothing_like_it"):
        mode.nothing_like_it  # noqa: B018


LATE = """
import sys, torch, hrnet_fast
from hrnet_fast.network.record import record
from hrnet_fast.network.nodes import Constants
from torch._subclasses.fake_tensor import FakeTensor
model = hrnet_fast.create_model("hrnet_w18_small_v1").eval()
record(model, (torch.empty(1, 3, 64, 64),), constants=Constants(), calls=2)
late = [name for name in ("torch._dynamo", "sympy") if name in sys.modules]
assert not late, f"recording an HRNet imports {late}"
import gc
network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Sigmoid())
record(network, (torch.empty(1, 3, 8, 8),), constants=Constants())
left = [x for x in gc.get_objects() if type(x) is FakeTensor]
assert "torch._dynamo" in sys.modules and not left, left
"""


def test_an_hrnet_is_recorded_without_what_takes_long_to_import():
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
