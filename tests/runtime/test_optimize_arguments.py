"""hf.optimize of networks with several arguments and results, and what calls must have in common with the example."""

import dataclasses
from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.tolerances import relative_error

Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Result:
    logits: Tensor
    extra: dict
    nothing: None = None


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.rgb, self.dct = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(5, 8, 1)
        self.register_buffer("classes", torch.arange(3))

    def forward(self, images, tokens=None, *, scale=1.0):
        y = torch.relu(self.rgb(images.first) + self.dct(images.second["dct"]))
        if tokens is not None:
            y = y * (tokens.float().mean() + 1)
        return Result(y * scale, {"classes": self.classes, "sizes": [y.mean((2, 3)), y.shape[2]], "name": "x"})


def arguments(size=(16, 24), tokens=(3, 4)):
    h, w = size
    pair = Pair(torch.randn(2, 3, h, w), {"dct": torch.randn(2, 5, h, w)})
    return (pair, torch.tensor(tokens))


def test_nested_arguments_and_results():
    model = Several().eval()
    fast = hf.optimize(model, arguments(), kwargs={"scale": 2.0})
    assert fast.engine in ("planned", "torch")
    for size, tokens, scale in (((16, 24), (3, 4), 2.0), ((17, 9), (1, 7), 2.0), ((16, 24), (5, 5), 0.5)):
        args = arguments(size, tokens)
        y, expected = fast(*args, scale=scale), model(*args, scale=scale)
        assert type(y) is Result and y.nothing is None and y.extra["name"] == "x"
        assert relative_error(y.logits, expected.logits) < 1e-5
        assert torch.equal(y.extra["classes"], model.classes) and y.extra["classes"] is not model.classes
        assert y.extra["sizes"][1] == size[0]
        assert relative_error(y.extra["sizes"][0], expected.extra["sizes"][0]) < 1e-5
    assert fast.preparations[0].shape == ((2, 3, 16, 24), (2, 5, 16, 24), (2,))


WRONG = {
    "structure": (lambda f, a: f(a[0]), ValueError, "structure"),
    "keyword": (lambda f, a: f(*a, scales=1.0), ValueError, "scale"),
    "dtype": (lambda f, a: f(a[0], a[1].float(), scale=1.0), TypeError, "argument 1: expected torch.int64"),
    "channels": (
        lambda f, a: f(Pair(a[0].first[:, :2], a[0].second), a[1], scale=1.0),
        ValueError,
        r"argument 0\[0\]: expected 3",
    ),
    "rank": (lambda f, a: f(Pair(a[0].first[0], a[0].second), a[1], scale=1.0), ValueError, r"expected \[N, C, H, W\]"),
    "no tensor": (lambda f, a: f(*a, scale=torch.ones(())), TypeError, "scale: expected no tensor"),
    "unhashable": (lambda f, a: f(*a, scale={1.0}), TypeError, "hashable"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_arguments_than_the_example(name):
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        call(hf.optimize(Several().eval(), arguments(), kwargs={"scale": 1.0}), arguments())


class WritesItsImage(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x[:, :3].sub_(0.5).div_(0.25)
        return self.conv(x)


def test_what_is_written_into_the_image_is_written():
    model, x = WritesItsImage().eval(), torch.rand(1, 3, 16, 16)
    fast = hf.optimize(model, x.clone())
    for twin in (x.clone(), x.clone().contiguous(memory_format=torch.channels_last)):
        a, b = twin.clone(), twin
        with torch.no_grad():
            expected = model(a)
        assert relative_error(fast(b), expected) < 1e-5
        assert relative_error(b, a) < 1e-6
