"""A family that nobody has seen is known by what it does; a row of STYLES gives it its name."""

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.patching import families
from hrnet_fast.tolerances import relative_error
from support.families import official
from support.patching_cases import FAMILIES
from support.units import streams, unit


class Unheard(nn.Module):
    """The official unit under names of its own, but for branches and paths."""

    def __init__(self, channels):
        super().__init__()
        like = official.NearestModule(channels)
        self.branches, self.fuse_layers, self.lanes, self.rectify = like.branches, like.fuse_layers, 3, nn.ReLU()

    def forward(self, x):
        x = [branch(y) for branch, y in zip(self.branches, x, strict=True)]
        rows = [[y if path is None else path(y) for path, y in zip(row, x)] for row in self.fuse_layers]
        return [self.rectify(sum(row)) for row in rows]


@pytest.mark.parametrize("named", [False, True])
def test_a_row_names_it(named, monkeypatch):
    if named:
        monkeypatch.setitem(families.STYLES, "unheard-of", ("lanes", "rectify"))
    plain, fast = unit(Unheard), unit(Unheard)
    (row,) = [row for row in hf.patch(fast).patched if row.kind == "exchange unit"]
    assert row.detail.startswith("unheard-of style" if named else "another style"), row.detail
    sizes = [(16, 24), (8, 12), (4, 6)]
    with torch.no_grad():
        results = zip(fast(streams(sizes)), plain(streams(sizes)), strict=True)
        assert max(relative_error(y, z) for y, z in results) < 1e-6


def test_every_row_is_tested_by_a_family():
    details = [row.detail for family in FAMILIES.values() for row in hf.patch(family.make()).patched]
    for name in families.STYLES:
        if name != "timm":  # tests/patching/test_timm.py has timm itself
            assert any(detail.startswith(f"{name} style") for detail in details), name
