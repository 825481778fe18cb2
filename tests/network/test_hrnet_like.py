"""Random HRNet-like networks go through hf.optimize in each dtype: right at every size, the model unchanged."""

import copy

import pytest
import torch

from hrnet_fast.runtime import ways
from hrnet_fast.tolerances import MODEL, relative_error
from support.exhaustive import sampled
from support.hrnet_like import HEADS, STYLES, Network, build
from support.judge import INTERNAL, called, leaves, leaves_differ, optimized
from support.snapshot import differences, snapshot, strangers

# not 22 and 26: attention over large logits, of which PyTorch's own half precision is at the edge of the tolerance
NETWORKS = [seed for seed in range(62) if seed not in (22, 26)]
SIZES = ((1, 64, 96), (2, 96, 64), (1, 75, 53))  # the last one fits no upsampling by a scale
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def image(size):
    batch, height, width = size
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def assert_near(got, expected, dtype, about):
    """Of the dtype that was asked for, as near to float64 as hrnet_fast/tolerances.py says."""
    ours, theirs = leaves(got), leaves(expected)
    assert [path for path, _ in ours] == [path for path, _ in theirs], about
    for (path, y), (_, reference) in zip(ours, theirs, strict=True):
        if not isinstance(reference, torch.Tensor):
            assert y is reference, f"{about}, {path}"
            continue
        assert y.dtype == dtype and y.shape == reference.shape, f"{about}, {path}: {y.dtype} {list(y.shape)}"
        assert relative_error(y, reference) < MODEL[dtype], f"{about}, {path}"


@pytest.mark.parametrize("seed", sampled(NETWORKS, 8))
def test_every_size_and_dtype(seed):
    network = build(seed)
    exact = copy.deepcopy(network).double()
    expected = [called(exact, (image(size).double(),), {}) for size in SIZES]
    before = snapshot(network)
    for dtype in DTYPES:
        fast = optimized(network, (image(SIZES[0]),), {}, dtype=dtype)
        assert not differences(before, snapshot(network)), network.extra_repr()
        assert fast.reason is None or (fast.reason.strip() and not INTERNAL.search(fast.reason)), fast.reason
        kept = []
        for size, (reference, error) in zip(SIZES, expected, strict=True):
            x = image(size)
            result, own = called(fast, (x,), {})
            about = f"{network.extra_repr()}, {size}, {dtype}, {fast.engine}: {own}"
            assert type(own) is type(error), about
            assert torch.equal(x, image(size)), about
            if error is None:
                assert_near(result, reference, dtype, about)
                kept.append((result, reference, about))
        for result, reference, about in kept:  # no later call has written over them
            assert_near(result, reference, dtype, f"after other calls: {about}")
        assert not differences(before, snapshot(network)) and not strangers(network), network.extra_repr()


@pytest.mark.parametrize("seed", sampled(NETWORKS, 6))
def test_every_size_in_int8(seed, monkeypatch):
    """Right at every size, or another dtype runs and the reason says why; calibrated on images of two sizes."""

    def pays(run, tensors):
        return 1.0 if run.products == torch.int8 else 2.0

    monkeypatch.setattr(ways, "milliseconds", pays)
    network = build(seed)
    exact = copy.deepcopy(network).double()
    before = snapshot(network)
    images = [torch.randn(2, 3, *size[1:], generator=torch.Generator().manual_seed(seed)) for size in SIZES[:2]]
    fast = optimized(network, (image(SIZES[0]),), {}, dtype=torch.int8, calibration=images)
    assert not differences(before, snapshot(network)), network.extra_repr()
    assert fast.reason is None or (fast.reason.strip() and not INTERNAL.search(fast.reason)), fast.reason
    for size in SIZES:
        x = image(size)
        reference, error = called(exact, (x.double(),), {})
        result, own = called(fast, (x,), {})
        about = f"{network.extra_repr()}, {size}, {fast.engine}, {fast.reason}: {own}"
        assert type(own) is type(error), about
        for (path, y), (_, expected) in zip(leaves(result), leaves(reference), strict=True):
            if isinstance(expected, torch.Tensor) and expected.is_floating_point():
                assert y.dtype == torch.float32 and relative_error(y, expected) < MODEL[torch.int8], f"{about}, {path}"
    assert not differences(before, snapshot(network)) and not strangers(network), network.extra_repr()


@pytest.mark.parametrize("seed", sampled(NETWORKS[::3], 4))
def test_networks_are_lively(seed):
    """What they give varies from pixel to pixel, and in half precision PyTorch itself is right."""
    network, again = build(seed), build(seed)
    expected, error = called(copy.deepcopy(network).double(), (image(SIZES[0]).double(),), {})
    assert error is None
    assert not leaves_differ(called(network, (image(SIZES[0]),), {})[0], called(again, (image(SIZES[0]),), {})[0], True)
    for _, y in leaves(expected):
        if isinstance(y, torch.Tensor) and y.dim() == 4:
            assert y.std((0, 2, 3)).mean() > 0.05 * y.abs().mean() > 0, network.extra_repr()
    for dtype in DTYPES:
        result, _ = called(copy.deepcopy(network).to(dtype), (image(SIZES[0]).to(dtype),), {})
        assert_near(result, expected, dtype, f"{network.extra_repr()}, {dtype}")


def test_all_styles_and_heads_are_drawn():
    networks = [Network(seed) for seed in NETWORKS]
    assert {n.style for n in networks} == set(STYLES)
    assert {n.head_kind for n in networks} == set(HEADS)
    assert {len(n.channels) for n in networks} == {2, 3, 4}
