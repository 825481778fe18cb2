"""OptimizedModel.profile: every operation of a planned program, timed."""

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.models import randomize
from hrnet_fast.runtime.cpu import planned

SHAPE = (1, 3, 64, 96)


@pytest.mark.planned
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_operation_is_timed(dtype, monkeypatch):
    monkeypatch.setattr(planned, "form", lambda dtype: "tiles")  # else torch's operators might be faster
    model = randomize(hf.create_model("hrnet_w18_small", task="segmentation")).eval()
    fast = hf.optimize(model, torch.randn(SHAPE), dtype=dtype)
    profile = fast.profile(torch.randn(SHAPE), repeat=3)
    assert all(row.milliseconds > 0 for row in profile)
    convolutions = [row for row in profile if "x3, stride" in row.name]
    assert convolutions and all(row.gflops > 0 and "->" in row.shapes for row in convolutions)
    text = str(profile)
    assert text.splitlines()[0].split()[:4] == ["ms", "%", "times", "GFLOP/s"]
    shown = [float(line.split()[0]) for line in text.splitlines()[1:]]
    assert shown == sorted(shown, reverse=True) and sum(shown) == pytest.approx(
        sum(r.milliseconds for r in profile), abs=1
    )
    assert sum(int(line.split()[2]) for line in text.splitlines()[1:]) == len(profile)


@pytest.mark.planned
def test_operators_of_torch_are_in_it():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    profile = hf.optimize(model, torch.randn(SHAPE)).profile(torch.randn(SHAPE))
    assert [row.algorithm == "torch" for row in profile].count(True) == 1


def test_what_is_refused():
    fast = hf.optimize(nn.Conv2d(3, 4, 3).eval(), torch.randn(SHAPE), dtype=torch.float64)
    with pytest.raises(ValueError, match="repeat"):
        fast.profile(torch.randn(SHAPE), repeat=0)
    with pytest.raises(RuntimeError, match=r"torch\.profiler"):
        fast.profile(torch.randn(SHAPE))
