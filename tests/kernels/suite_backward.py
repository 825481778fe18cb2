"""The backward kernel in Triton's interpreter against torch's derivatives, and that every run gives the same bits."""

import pytest
import torch

from hrnet_fast.kernels import configurations
from hrnet_fast.ops.backends import triton
from hrnet_fast.ops.exchange import autograd
from hrnet_fast.tolerances import OPERATOR, relative_error
from ops.test_backward import LAYOUTS, MODES, make
from support.exhaustive import chosen

# of ops/test_backward.py, but that the interpreter takes a time for every pixel of a window: no large reductions
SHAPES = (
    ((1, 24, 34, 20), ((17, 10), (9, 5))),  # several tiles
    ((3, 1, 7, 5), ((3, 5), (7, 1))),
    ((1, 5, 1, 1), ((1, 1),)),
    ((1, 70, 5, 11), ((3, 5), (2, 3))),  # several blocks of channels
    ((1, 7, 9, 3), ((8, 2), (5, 3), (3, 1), (9, 3), (2, 2), (1, 1), (3, 3), (4, 1))),
)


def check(shape, sizes, dtype, mode, layout, masked, same):
    g, y = make(shape, dtype, layout)
    flat = [n for size in sizes for n in size]
    output = y if masked else None
    exact = None if output is None else output.float()
    expected = autograd.exchange_backward(g.float(), exact, flat, *mode, same)
    found = triton.compute_backward(g, output, flat, *mode, same)
    assert len(found) == len(expected) == len(sizes) + same
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == dtype
        assert a.is_contiguous(memory_format=layout)
        assert relative_error(a, b) < OPERATOR[dtype], shape
    if same:  # nothing is rounded
        assert torch.equal(found[-1], torch.where(y > 0, g, 0))
    return found


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mode", chosen(MODES.values(), lambda _, mode: mode == ("bilinear", False)), ids=MODES)
def test_against_torch(mode, layout, monkeypatch):
    """With larger tiles than those of GPUs: the interpreter takes a time for every tile, whatever its size."""
    for key in ((True, 4), (False, 4)):
        monkeypatch.setitem(configurations.UP_BACKWARD, key, configurations.Tile(16, 16, 64, 1, 4, None))
    for index, (shape, sizes) in enumerate(SHAPES):
        check(shape, sizes, torch.float32, mode, layout, masked=index % 2 == 0, same=index % 2 == 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    for layout in LAYOUTS.values():
        check((1, 10, 8, 12), ((4, 6), (2, 3)), dtype, ("bilinear", False), layout, True, True)


def test_same_bits():
    first, second = (
        check((1, 40, 8, 6), ((4, 3), (2, 2)), torch.float32, ("bilinear", False), torch.channels_last, True, True)
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


def test_nan_and_infinity_pass_as_in_torch():
    y = torch.tensor([[[[float("nan"), 0.0], [1.0, 0.0]]]])
    g = torch.tensor([[[[2.0, float("inf")], [3.0, float("nan")]]]])
    low, same = triton.compute_backward(g, y, [1, 1], "nearest", False, True)
    assert same.tolist() == [[[[2.0, 0.0], [3.0, 0.0]]]]
    assert low.item() == 5.0


def test_an_infinite_gradient_stays_in_its_window():
    g = torch.randn(1, 2, 16, 16)
    g[0, 0, 3, 5] = float("inf")
    (low,) = triton.compute_backward(g, None, [4, 4], "bilinear", False, False)
    expected = autograd.exchange_backward(g, None, [4, 4], "bilinear", False, False)[0]
    assert torch.equal(low.isinf(), expected.isinf())
    assert not low.isnan().any()
