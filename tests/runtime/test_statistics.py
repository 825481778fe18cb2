"""Histograms of activations, against the numbers themselves."""

import functools
import itertools
import operator

import pytest
import torch

from hrnet_fast.runtime.statistics import BINS, Statistics, check_ranges


def numbers(kind, count=20_000):
    generator = torch.Generator().manual_seed(len(kind))
    x = torch.randn(count, generator=generator)
    made = {
        "relu": lambda: x.relu(),
        "signed": lambda: 3 * x,
        "long tail": lambda: x.exp() ** 2,
        "outlier": lambda: torch.cat([x.relu(), torch.tensor([500.0])]),
        "uniform": lambda: torch.rand(count, generator=generator) * 7,
        "tiny": lambda: x * 1e-6,
        "few levels": lambda: (torch.rand(count, generator=generator) * 255).round(),
        "mostly zero": lambda: x * (torch.rand(count, generator=generator) > 0.999),
    }[kind]()
    return made.view(1, 1, 1, -1)


KINDS = ("relu", "signed", "long tail", "outlier", "uniform", "tiny", "few levels", "mostly zero")


def squared_error(x, high):
    """Of numbers that are not zero: rounding to steps, whose error is uniform, and cutting off."""
    size = x.double().abs().flatten()
    size = size[size > 0]
    step = high / (127 if x.min() < 0 else 255)
    return ((size <= high).sum() * step**2 / 12 + (size - high).clamp(min=0).square().sum()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_the_least_error_of_the_numbers(kind):
    x = numbers(kind)
    found = Statistics.of(x)
    high, width = found.high("mse"), found.top / BINS
    errors = {k: squared_error(x, k * width) for k in range(BINS // 16, BINS + 1)}
    assert high > width
    assert squared_error(x, high) <= min(errors.values()) * (1 + 1e-3)
    best = min(errors, key=errors.get) * width
    # near the least the error hardly changes
    assert abs(high - min(best, x.abs().max().item())) <= max(width, 0.01 * best)


def test_an_outlier_is_cut_off_only_where_that_pays():
    few, outlier = Statistics.of(numbers("relu")), Statistics.of(torch.full((1, 1, 1, 1), 20.0))
    assert (few + outlier).high("max") == 20
    assert (few + outlier).high("mse") > 18  # one in ten thousand
    many = functools.reduce(operator.add, [few] * 500)
    assert few.high("mse") == pytest.approx(many.high("mse"))
    assert (many + outlier).high("mse") < 5  # one in millions


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_numbers(kind):
    x = numbers(kind)
    found, size = Statistics.of(x), x.abs().double().flatten()
    edges = torch.arange(BINS + 1, dtype=torch.float64) * (found.top / BINS)
    upto = torch.tensor([(size <= e).sum() for e in edges[::64]])
    assert torch.equal(found.counts.cumsum(0)[63::64], upto[1:] - found.zeros)
    assert found.zeros == (size == 0).sum()
    assert found.top / 2 <= size.max() <= found.top
    assert (found.least, found.largest) == (x.min(), x.max())


def test_growth_is_exact_in_any_order():
    generator = torch.Generator().manual_seed(0)
    scales = (1.0, 1000.0, 8.0, 1e-5, 0.0)
    parts = [torch.randn(1, 3, 5, 7, generator=generator) * s for s in scales]
    whole = Statistics.of(torch.cat(parts))
    for order in itertools.permutations(parts):
        found = functools.reduce(operator.add, map(Statistics.of, order))
        assert torch.equal(found.counts, whole.counts)
        same = (whole.top, whole.zeros, whole.least, whole.largest, whole.pixels)
        assert (found.top, found.zeros, found.least, found.largest, found.pixels) == same
        torch.testing.assert_close(found.mean(), whole.mean())
        assert [found.high(r) for r in ("mse", "max", "99%")] == [whole.high(r) for r in ("mse", "max", "99%")]


@pytest.mark.parametrize("channels", [16, 48, 97])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_samples_are_of_every_channel_equally_many(channels, layout):
    x = torch.arange(1.0, channels + 1).view(1, -1, 1, 1).expand(1, channels, 128, 120).contiguous(memory_format=layout)
    found = Statistics.of(x)
    counts = found.counts[found.counts > 0]
    assert len(counts) == channels and counts.max() - counts.min() <= 1
    assert 30_000 < counts.sum() < x.numel() / 2
    assert torch.equal(found.mean(), torch.arange(1.0, channels + 1))


def test_extremes_and_means_are_of_all_numbers():
    x = torch.ones(1, 16, 128, 128).contiguous(memory_format=torch.channels_last)
    for at, value in (((0, 3, 5, 7), -9.0), ((0, 15, 127, 127), 70.0), ((0, 0, 0, 1), 200.0)):
        x[at] = value
    found = Statistics.of(x)
    assert (found.least, found.largest, found.high("max")) == (-9, 200, 200)
    torch.testing.assert_close(found.mean(), x.mean((0, 2, 3)))


@pytest.mark.parametrize("share", [1, 50, 99, 99.9, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_percentiles(kind, share):
    x = numbers(kind)
    found, size = Statistics.of(x), x.abs().double().flatten()
    high, width = found.high(f"{share}%"), found.top / BINS
    assert 0 < high <= size.max()
    assert (size <= high).double().mean() >= share / 100 - 1e-9  # so many are kept
    lower = high - 2 * width  # and not so many by two bins less, unless that keeps nothing but zeros
    assert (size <= lower).double().mean() < share / 100 or lower < size[size > 0].min()


def test_zeros_nan_and_other_channels():
    zero = Statistics.of(torch.zeros(1, 2, 3, 3))
    assert [zero.high(r) for r in ("mse", "max", "99.99%")] == [1.0] * 3 and not zero.is_signed
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.zeros(1, 2, 3, 3)
        x[0, 1, 2, 2] = bad
        with pytest.raises(ValueError, match="NaN or Inf"):
            Statistics.of(x)
    with pytest.raises(ValueError, match="2 channels and 3"):
        zero + Statistics.of(torch.zeros(1, 3, 3, 3))


@pytest.mark.parametrize("x", [1e-38, 1e-30, 1.0, 2.0, 3e37])
def test_any_magnitude(x):
    found = Statistics.of(torch.full((1, 1, 2, 2), x))
    assert found.counts.sum() == 4 and found.high("max") == pytest.approx(x, rel=1e-6, abs=0)
    if x > 1e-30:  # below that it lies in the first bin
        assert found.high("mse") == pytest.approx(x, rel=1e-3, abs=0)


def test_unknown_ranges():
    for ranges in ("mse", "max", "99.99%", "100%"):
        check_ranges(ranges)
    for ranges in ("MSE", "0%", "101%", "99.9", "-1%", "nan%", None, 99.9, ("percentile", 99)):
        with pytest.raises(ValueError, match=r"expected 'mse', 'max' or a percentage like '99.99%', got"):
            check_ranges(ranges)
