"""hf.optimize with mean and std: images that are not normalized yet."""

import copy
import itertools

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.tolerances import MODEL
from support.engine_cases import DTYPES, errors, network, plannable
from support.exhaustive import chosen
from support.model_cases import flat

MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


# half of the combinations, in which every two of these meet; the other half is exhaustive
COMBINATIONS = itertools.product(("segmentation", "classification"), DTYPES, ("auto", torch.channels_last))


@pytest.mark.parametrize(
    ("task", "dtype", "layout"),
    chosen(COMBINATIONS, lambda k, _: (k // 6 + k // 2 + k) % 2 == 0, several=True),
    ids=str,
)
def test_images_that_are_not_normalized_yet(task, dtype, layout):
    """Up to the border: padded with zeros behind the normalization is padded with the mean before it."""
    model, pixels = network(task), torch.randint(0, 256, (2, 3, 64, 96)).float()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    optimized = hf.optimize(model, pixels, dtype=dtype, memory_format=layout, mean=MEAN, std=STD)
    y = optimized(pixels)
    assert flat(y)[0].dtype == dtype
    assert max(errors(y, model, (pixels.double() - mean) / std)) < MODEL[dtype]
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(1.5)
    optimized.refresh()
    assert max(errors(optimized(pixels), model, (pixels.double() - mean) / std)) < MODEL[dtype]
    assert max(errors(copy.deepcopy(optimized)(pixels), model, (pixels.double() - mean) / std)) < MODEL[dtype]


@plannable
def test_normalizing_is_free():
    """Where the image goes into convolutions alone no step is added, and the caller's image is read as it is."""
    model, pixels = network(), torch.randint(0, 256, (1, 3, 64, 64)).float()
    with_it = hf.optimize(model, pixels, mean=MEAN, std=STD).preparations[0]
    assert with_it.steps == hf.optimize(model, pixels).preparations[0].steps
    own = hf.optimize(model, pixels, std=STD)  # the other is 0
    assert max(errors(own(pixels), model, pixels.double() / torch.tensor(STD).view(3, 1, 1))) < 1e-5


class ReadsItsImage(nn.Module):
    """An image that not only convolutions read."""

    def __init__(self):
        super().__init__()
        self.network = network("features")

    def forward(self, image):
        return [*self.network(image), image, image.abs()]


def test_normalized_images_that_others_read():
    model, pixels = ReadsItsImage().eval(), torch.randint(0, 256, (1, 3, 64, 64)).float()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    y = hf.optimize(model, pixels, mean=MEAN, std=STD)(pixels)
    assert max(errors(y, model, (pixels.double() - mean) / std)) < 1e-5
