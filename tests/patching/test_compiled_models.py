"""patch with torch.compile, torch.export, traces and scripts: which it refuses, and what a patched model gives them."""

import copy

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.patching.class_swap import Patched
from hrnet_fast.tolerances import relative_error
from support.families import common, official
from support.model_cases import assert_equal, flat, image
from support.patching_cases import FAMILIES
from support.units import CHANNELS, unit


def test_compiled_scripted_and_recorded_models_raise():
    module = unit(official.NearestModule)
    with pytest.raises(ValueError, match="compiled already: patch the model first"):
        hf.patch(torch.compile(module))
    block = common.BasicBlock(4, 4).eval()
    with pytest.raises(ValueError, match="TorchScript"):
        hf.patch(torch.jit.trace(block, torch.ones(1, 4, 4, 4)))
    with pytest.raises(ValueError, match="recorded graph"):
        hf.patch(torch.fx.symbolic_trace(block))


def test_a_scripted_part_is_reported():
    model = nn.ModuleDict({"unit": unit(official.NearestModule)})
    model["part"] = torch.jit.trace(common.BasicBlock(4, 4).eval(), torch.ones(1, 4, 4, 4))
    (row,) = [row for row in hf.patch(model).left_alone if row.name == "part"]
    assert "TorchScript" in row.detail


def test_compile_and_export_of_a_patched_model():
    model = FAMILIES["mmseg"].make()
    original = copy.deepcopy(model)
    hf.patch(model)
    x = image((64, 96), batch=1)
    exported = torch.export.export(model, (x,))
    names = {node.target.name() for node in exported.graph.nodes if hasattr(node.target, "name")}
    assert any(name.startswith("hrnet_fast::") for name in names)
    assert_equal(exported.module(), original, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_equal(compiled, original, x)


def test_tracing_a_patched_model_takes_standard_operators_only():
    model = FAMILIES["pose"].make()
    original = copy.deepcopy(model)
    hf.patch(model)
    x = image((64, 64), batch=1)
    traced = torch.jit.trace(model, x)
    assert "hrnet_fast" not in str(traced.inlined_graph)
    assert_equal(traced, original, x)


def test_scripting_a_patched_block_takes_the_original_forward():
    module = unit(official.NearestModule)
    hf.patch(module)
    block = module.branches[0][0]
    assert isinstance(block, Patched)
    scripted = torch.jit.script(block)
    x = torch.randn(1, CHANNELS[0], 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), hf.unpatch(block)(x))


@pytest.mark.parametrize("name", ["segmentation-v1.1", "classification", "mmdet", "mmseg"])
def test_symbolic_traces_of_patched_models(name):
    """torch.fx records the original forwards, as it does of the model that was not patched."""
    model = FAMILIES[name].make()
    hf.patch(model)
    graph, x = torch.fx.symbolic_trace(model), image((64, 96))
    with torch.no_grad():
        for y, expected in zip(flat(graph(x)), flat(model(x)), strict=True):
            assert relative_error(y, expected) < 1e-5
