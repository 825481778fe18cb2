"""The kernel of interpolate_argmax in Triton's interpreter against torch: sizes, modes, dtypes, ties, NaN."""

import pytest
import torch

from hrnet_fast.kernels import configurations
from hrnet_fast.ops.backends import triton
from ops.test_interpolate_argmax import CASES, CORNERS, LAYOUTS, check, expected, scores


@pytest.fixture(autouse=True)
def _large_tiles(monkeypatch):
    """Larger tiles than those of GPUs: the interpreter takes a time for every tile, whatever its size."""
    for key, blocks in ((True, 32), (False, 8)):
        monkeypatch.setitem(configurations.INTERPOLATE_ARGMAX, key, configurations.Tile(16, 64, blocks, 1, 4, None))


def interpreted(x, size, align_corners=False, dtype=torch.int64):
    return triton.compute_argmax(x, *size, align_corners, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("corners", CORNERS)
@pytest.mark.parametrize("case", CASES)
def test_against_torch(case, corners, layout):
    shape, size = CASES[case]
    x = scores(shape, layout=layout)
    check(interpreted(x, size, CORNERS[corners]), x, size, CORNERS[corners])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_first_of_equal_scores_wins(dtype):
    """Enlarged once: what the result is stored as has no part in the choice."""
    for layout in LAYOUTS:
        x = scores((1, 19, 6, 20), dtype, layout, whole=True)
        for factor, result in ((1, torch.uint8), (1, torch.int32), (1, torch.int64), (4, torch.int64)):
            size = (6 * factor, 20 * factor)
            found = interpreted(x, size, dtype=result)
            assert found.dtype == result
            assert torch.equal(found.long(), expected(x, size))


def test_minus_zero_is_zero():
    x = torch.tensor([-0.0, 0.0, -0.0]).reshape(1, 3, 1, 1)
    assert interpreted(x, (2, 2)).eq(0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_as_in_torch(layout):
    x = scores((1, 40, 7, 20), layout=layout, whole=True)
    x[0, 7, 2, 3] = x[0, 39, 2, 3] = x[0, 33, 5, 12] = float("nan")
    x[0, 9, 5, 17] = x[0, 4, 5, 17] = float("inf")
    x[0, :, 0, 0] = float("-inf")
    for size, truth in (((28, 80), expected(x, (28, 80))), ((7, 20), x.argmax(1))):
        assert torch.equal(interpreted(x, size), truth)
