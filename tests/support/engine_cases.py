"""Networks for the tests of hf.optimize, and how far its results are from float64."""

import copy

import pytest
import torch

import hrnet_fast as hf
from hrnet_fast.models import randomize
from hrnet_fast.runtime.cpu import planned
from hrnet_fast.tolerances import relative_error
from support.model_cases import SMALL, flat

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def network(task="segmentation", **kwargs):
    torch.manual_seed(2)
    return randomize(hf.create_model(SMALL, task=task, **kwargs)).eval()


def errors(outputs, model, x):
    """Relative errors against the model in float64, its structure the same."""
    with torch.no_grad():
        reference = copy.deepcopy(hf.unpatch(copy.deepcopy(model))).double()(x.double())
    assert type(outputs) is type(reference)
    return [relative_error(y, r) for y, r in zip(flat(outputs), flat(reference), strict=True)]


def why_not_planned():
    return planned.why_not(torch.float32, torch.device("cpu"))


# without the instructions there is nothing planned to test
plannable = pytest.mark.planned
