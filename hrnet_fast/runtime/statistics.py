"""What the numbers of an image between two layers are like, and from where on they may be cut off in 8 bits."""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 4096
_SAMPLES = 1 << 16  # for the histogram, of each image of a batch: all numbers would take as long as the network
_CHUNK = 1 << 15  # stays in the cache, and torch does not wake its threads for so few
_SMALLEST = 2.0**-100  # of a histogram's top: BINS / top must be a float32
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of all numbers of one value in a network, over some images; the sum of two is that of all their images.

    The histogram's top is a power of two, so that it grows exactly: by adding neighbouring bins. What comes out does
    not depend on the order of the images.

    Attributes:
        least, largest: of the numbers.
        total: [channels] float64, the sum of each channel.
        pixels: that were summed.
        zeros: exact zeros among the numbers of the histogram; every scale has them exactly.
        counts: [BINS] int64, how many of the others have their absolute value in each of the equal parts of (0, top].
        top: a power of two.
    """

    least: float
    largest: float
    total: Tensor
    pixels: int
    zeros: int
    counts: Tensor
    top: float

    @classmethod
    def of(cls, x: Tensor) -> "Statistics":
        """Of an image [N, C, H, W] of a floating dtype, without empty dimensions.

        Raises:
            ValueError: it holds NaN or Inf.
        """
        flat = x.float().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        least, largest = (v.item() for v in torch.aminmax(flat.view(-1)))
        if not (math.isfinite(least) and math.isfinite(largest)):
            raise ValueError("NaN or Inf")
        top = max(2.0 ** math.frexp(max(-least, largest))[1], _SMALLEST)
        # the factor is a power of two, and the product exact; rounded up, zeros alone become 0, and 1 is the first bin
        bins = torch.zeros(BINS + 1, dtype=torch.int64, device=x.device)
        for part in flat.view(-1)[:: _stride(flat.numel(), _SAMPLES * x.shape[0])].split(_CHUNK):
            bins += torch.bincount(part.abs().mul_(BINS / top).ceil_().int(), minlength=BINS + 1)
        return cls(least, largest, flat.sum(0).double(), flat.shape[0], int(bins[0]), bins[1:], top)

    def __add__(self, other: "Statistics") -> "Statistics":
        """Of both.

        Raises:
            ValueError: they have different numbers of channels.
        """
        if self.total.shape != other.total.shape:
            raise ValueError(f"{self.total.numel()} channels and {other.total.numel()}")
        top = max(self.top, other.top)
        return Statistics(
            min(self.least, other.least),
            max(self.largest, other.largest),
            self.total + other.total,
            self.pixels + other.pixels,
            self.zeros + other.zeros,
            self._counts_up_to(top) + other._counts_up_to(top),
            top,
        )

    def _counts_up_to(self, top: float) -> Tensor:
        joined = min(int(top / self.top), BINS)
        if joined == 1:
            return self.counts
        counts = torch.zeros_like(self.counts)
        counts[: BINS // joined] = self.counts.view(-1, joined).sum(1)
        return counts

    @property
    def is_signed(self) -> bool:
        """Whether there are negative numbers."""
        return self.least < 0

    def mean(self) -> Tensor:
        """Of each channel, [channels] float32."""
        return (self.total / self.pixels).float()

    def high(self, ranges: str) -> float:
        """The absolute value from which on numbers are cut off, positive; ``ranges`` as ``check_ranges`` takes it."""
        most = max(-self.least, self.largest)
        if most == 0:
            return 1.0  # all are zero, which any range has
        if ranges == "max" or not self.counts.any():  # the sample may have missed the few that are not zero
            return most
        k = self._best_edge() if ranges == "mse" else self._percentile(float(ranges[:-1]) / 100)
        return min((k + 1) * self.top / BINS, most)

    def _best_edge(self) -> int:
        """The bin whose upper edge T gives the least squared error: of rounding below T, of cutting off above it."""
        levels = 127 if self.is_signed else 255
        edges = torch.arange(1, BINS + 1, dtype=torch.float64)  # in bins
        counts, x = self.counts.double(), edges - 0.5
        rounded = counts.cumsum(0) * (edges / levels) ** 2 / 12

        def above(each: Tensor) -> Tensor:  # the sum over the bins behind each edge
            return each.flip(0).cumsum(0).flip(0) - each

        cut = above(counts * x**2) - 2 * edges * above(counts * x) + edges**2 * above(counts)
        return int((rounded + cut).argmin())

    def _percentile(self, share: float) -> int:
        """The bin up to whose upper edge this share of the numbers lies, zeros among them."""
        upto = self.counts.cumsum(0)
        wanted = max(1, math.ceil(share * (self.zeros + int(upto[-1])) - 1e-6) - self.zeros)
        return int(torch.searchsorted(upto, min(wanted, int(upto[-1]))))


def check_ranges(ranges: str) -> None:
    """Raises ValueError unless it is "mse", "max" or a percentage like "99.99%"."""
    found = _PERCENT.fullmatch(ranges) if isinstance(ranges, str) else None
    if ranges not in ("mse", "max") and not (found and 0 < float(found[1]) <= 100):
        raise ValueError(f"ranges: expected 'mse', 'max' or a percentage like '99.99%', got {ranges!r}")


def _stride(numbers: int, samples: int) -> int:
    """Every how many numbers to take, for so many samples at most: of every channel and column equally many."""
    stride = max(1, -(-numbers // samples))
    while math.gcd(stride, numbers) > 1:  # with a common factor it could meet the same few channels again and again
        stride += 1
    return stride
