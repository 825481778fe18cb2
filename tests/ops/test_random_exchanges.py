"""Random exchanges, forward and back, against the reference in float64: shapes with zeros, any strides, every dtype.

HRNET_FAST_FUZZ is the number of cases, by default a few hundred; a case is made from its number alone.
"""

import os
import random

import pytest
import torch

import hrnet_fast as hf
from hrnet_fast.ops import library
from hrnet_fast.tolerances import OPERATOR

pytestmark = pytest.mark.skipif(library.extension_error is not None, reason=str(library.extension_error))

CASES = int(os.environ.get("HRNET_FAST_FUZZ", 400))
BATCH = 50  # cases of one test
MODES = ("bilinear", False), ("bilinear", True), ("nearest", False)


def strided(x, draw):
    """x in other places of memory; where it is expanded, with other values."""
    for _ in range(draw.randint(0, 2)):
        way = draw.choice(("permuted", "sliced", "expanded", "unusual", "channels_last"))
        if way == "permuted":
            order = draw.sample(range(x.dim()), x.dim())
            x = x.permute(order).contiguous().permute([order.index(d) for d in range(x.dim())])
        elif way == "sliced":
            d, step = draw.randrange(x.dim()), draw.randint(1, 3)
            larger = x.new_zeros([n * step + 3 if k == d else n for k, n in enumerate(x.shape)])
            index = [slice(2, 2 + n * step, step) if k == d else slice(None) for k, n in enumerate(x.shape)]
            larger[tuple(index)] = x
            x = larger[tuple(index)]
        elif way == "expanded":
            d = draw.randrange(x.dim())
            x = x.narrow(d, 0, 1).expand(x.shape) if x.numel() else x
        elif way == "unusual":  # nothing says what the stride along a single element is
            x = x.as_strided(x.shape, [draw.randint(0, 50) if n == 1 else s for n, s in zip(x.shape, x.stride())])
        elif x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
    return x


class Problem:
    """One exchange, and a gradient of its result."""

    def __init__(self, seed, backward):
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.level = draw.choice(torch.ops.hrnet_fast.cpu_capabilities().split())
        self.dtype = draw.choice(list(OPERATOR))
        half = self.dtype.itemsize == 2

        def size(most, zeros=0.06):
            return 0 if draw.random() < zeros else draw.randint(1, most)

        def tensor(*shape):
            x = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
            return strided(x, draw)

        wide = draw.choice((1, 3, 9, 40))
        batch, out, height, width = size(3), size(wide), draw.randint(1, 14), draw.randint(1, 14)
        mode, corners = draw.choice(MODES)
        # a half-precision result rounded to 0 has no gradient, and one in front of a projection is rounded again
        relu = draw.random() < 0.6 and not (backward and half)
        self.settings = {"size": (height, width), "mode": mode, "align_corners": corners}
        self.activation = "relu" if relu else None
        inputs, weights = [], []
        for _ in range(draw.choice((1, 2, 3, 4, 8))):
            weighted = draw.random() < 0.6
            h, w = (height, width) if draw.random() < 0.4 else (draw.randint(1, height), draw.randint(1, width))
            channels = size(wide) if weighted else out
            inputs.append(tensor(batch, channels, h, w))
            weights.append(tensor(out, channels, *draw.choice(((), (1, 1)))) if weighted else None)
        projected = draw.random() < 0.3 and not (backward and half)
        rows = size(wide)
        self.tensors = {
            "inputs": inputs,
            "weights": weights,
            "bias": tensor(out) if draw.random() < 0.7 else None,
            "projection": tensor(rows, out) if projected else None,
            "projection_bias": tensor(rows) if projected and draw.random() < 0.7 else None,
        }
        self.upstream = tensor(batch, rows if projected else out, height, width)

    def leaves(self):
        found = [*self.tensors["inputs"], *self.tensors["weights"], *list(self.tensors.values())[2:]]
        return [t for t in found if t is not None]

    def run(self, convert, backend, gradient, activation):
        """The result, or the gradients of all tensors."""
        leaves = [convert(t).detach().requires_grad_(gradient) for t in self.leaves()]
        given = iter(leaves)
        inputs, weights, *rest = [
            [None if t is None else next(given) for t in (value if isinstance(value, list) else [value])]
            for value in self.tensors.values()
        ]
        (bias,), (projection,), (projection_bias,) = rest
        y = hf.exchange(
            inputs,
            weights,
            bias,
            projection=None if projection is None else (projection, projection_bias),
            activation=activation,
            backend=backend,
            **self.settings,
        )
        return torch.autograd.grad(y, leaves, convert(self.upstream)) if gradient else [y]

    def check(self, gradient):
        found = self.run(lambda t: t, "cpu", gradient, self.activation)
        exact = self.run(torch.Tensor.double, "reference", gradient, self.activation)
        # what was added up: of a sum that cancels out, rounding errors are not small
        summands = self.run(lambda t: t.double().abs(), "reference", gradient, None)
        for a, b, s in zip(found, exact, summands, strict=True):
            assert a.shape == b.shape
            assert a.dtype == self.dtype
            assert float((a.double() - b).norm()) <= OPERATOR[self.dtype] * float(s.norm()), vars(self)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("begin", range(0, CASES, BATCH))
def test_random_exchanges(begin, backward, monkeypatch):
    for seed in range(begin, min(begin + BATCH, CASES)):
        problem = Problem(seed, backward)
        monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", problem.level)
        problem.check(backward)
