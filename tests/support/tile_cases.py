"""Networks drawn at random for programs on matrix tiles: sums of convolutions, and exchanges."""

import random
from collections.abc import Callable

from torch import Tensor, nn, randn
from torch.nn import functional as F

CHANNELS = (1, 2, 3, 16, 17, 18, 21, 22, 32, 33, 36, 48, 50, 63, 64, 65)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _size(chance: random.Random) -> tuple[int, int, int]:
    """Batch, height and width."""
    return chance.randrange(1, 4), chance.randrange(1, 40), chance.randrange(1, 40)


def _width(chance: random.Random, most: int) -> int:
    return chance.choice([*CHANNELS, chance.randrange(1, most)])


class Sums(nn.Module):
    """Convolutions of images of one size, added to one more image; ``twice``: and another convolution of the sum.

    ``before`` is called on every image that is multiplied.
    """

    def __init__(self, channels, c_out, kernel, stride, residual, relu, twice=False, before: Callable = _unchanged):
        super().__init__()
        self.channels, self.c_out, self.stride, self.before = channels, c_out, stride, before
        self.convs = nn.ModuleList(nn.Conv2d(c, c_out, kernel, stride, kernel // 2) for c in channels)
        self.next = nn.Conv2d(c_out, c_out, 3, padding=1) if twice else None
        self.residual, self.relu = residual, relu

    @classmethod
    def drawn(cls, chance: random.Random, twice: bool = False, before: Callable = _unchanged) -> "Sums":
        channels = [_width(chance, 90) for _ in range(chance.randrange(1, 5))]
        kernel, stride = chance.choice([1, 3]), chance.choice([1, 2])
        residual, relu, again = (chance.random() < 0.5 for _ in range(3))
        return cls(channels, _width(chance, 150), kernel, stride, residual, relu, twice and again, before)

    def forward(self, *images):
        y = images[-1] if self.residual else None
        for conv, x in zip(self.convs, images):
            x = conv(self.before(x))
            y = x if y is None else y + x
        y = y.relu() if self.relu else y
        if self.next is None:
            return y
        z = self.next(y)
        return (y + z).relu() if self.residual else z

    def images(self, chance: random.Random) -> list[Tensor]:
        n, h, w = _size(chance)
        images = [randn(n, c, h, w) for c in self.channels]
        if self.residual:
            images.append(randn(n, self.c_out, (h - 1) // self.stride + 1, (w - 1) // self.stride + 1))
        return images


class Exchange(nn.Module):
    """An exchange: images of its size and smaller ones, with and without weights; a convolution of the result or none.

    ``before`` is called on every image but the first.
    """

    def __init__(self, chance: random.Random, before: Callable = _unchanged):
        super().__init__()
        self.mode, self.before = chance.choice(["nearest", "bilinear", "corners"]), before
        c = _width(chance, 150)
        self.channels = [c, *(chance.choice([c, c, chance.randrange(1, 100)]) for _ in range(chance.randrange(1, 6)))]
        self.weights = nn.ModuleList(
            nn.Identity() if k == c and chance.random() < 0.5 else nn.Conv2d(k, c, 1) for k in self.channels[1:]
        )
        lasts = [nn.Conv2d(c, chance.randrange(1, 40), 1), nn.Conv2d(c, 7, 3, padding=1), nn.Identity()]
        self.last = chance.choice(lasts)

    def forward(self, first, *others):
        corners = {} if self.mode == "nearest" else {"align_corners": self.mode == "corners"}
        y = first
        for weight, x in zip(self.weights, others):
            x = weight(self.before(x))
            if x.shape != first.shape:
                x = F.interpolate(x, first.shape[2:], mode="nearest" if not corners else "bilinear", **corners)
            y = y + x
        return self.last(y.relu())

    def images(self, chance: random.Random) -> list[Tensor]:
        n, h, w = _size(chance)
        sizes = [(h, w)]
        for _ in self.weights:
            anything = (chance.randrange(1, h + 1), chance.randrange(1, w + 1))
            sizes.append(chance.choice([(h, w), (-(-h // 2), -(-w // 2)), (-(-h // 4), -(-w // 4)), anything]))
        return [randn(n, c, *size) for c, size in zip(self.channels, sizes)]
