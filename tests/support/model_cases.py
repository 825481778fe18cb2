"""What the tests of whole models share: images, pairs of a plain and a fast model, and how they are compared."""

import torch

import hrnet_fast as hf
from hrnet_fast.models import randomize
from hrnet_fast.tolerances import relative_error

SMALL = "hrnet_w18_small_v1"


def image(size=(64, 96), batch=2, channels=3, dtype=torch.float32):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(4)).to(dtype)


def pair(name=SMALL, **kwargs):
    """A plain and a fast model with the same random weights."""
    plain = randomize(hf.create_model(name, fast=False, **kwargs)).eval()
    fast = hf.create_model(name, fast=True, **kwargs).eval()
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def flat(outputs):
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def assert_equal(fast, plain, x, tolerance=1e-5):
    with torch.no_grad():
        outputs, expected = flat(fast(x)), flat(plain(x))
    assert len(outputs) == len(expected)
    for y, reference in zip(outputs, expected, strict=True):
        assert relative_error(y, reference) < tolerance
        assert 0.05 < reference.abs().mean() < 50  # otherwise the comparison says little
