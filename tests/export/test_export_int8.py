"""ONNX in 8-bit integers: the operators, the same roundings in every runtime, and what a user can get wrong."""

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast import export
from hrnet_fast.bench import images as photographs
from hrnet_fast.cli import main
from hrnet_fast.export import check
from hrnet_fast.models import randomize
from hrnet_fast.network.integers import Factor, Integers, rounded
from hrnet_fast.tolerances import relative_error

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporter deprecates parts of itself
SIZE = (64, 96)


@pytest.fixture(scope="module")
def net():
    return randomize(hf.create_model("hrnet_w18_small", task="segmentation", num_classes=5)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def calibration(net, images):
    return hf.calibrate(net, images)


@pytest.fixture(scope="module", params=["on", "off"])
def exported(request, net, calibration, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "net.onnx"
    return export.save(net, path, calibration=calibration, commute_head=request.param)


def test_what_is_in_the_file(exported):
    graph = onnx.load(exported.path).graph
    makers = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    in_bytes = [c for c in convolutions if makers.get(c.input[1]) is not None]
    # all but the first one and the classifier
    assert len(in_bytes) == len(convolutions) - 2 and len(exported.recorded.integers) == len(in_bytes)
    assert all(makers[c.input[k]].op_type == "DequantizeLinear" for c in in_bytes for k in (0, 1))
    kinds = Counter(i.data_type for i in graph.initializer if i.name.endswith("_bytes"))
    assert kinds == {onnx.TensorProto.INT8: len(in_bytes)}
    read = {name for node in graph.node for name in node.input}
    assert all(i.name in read for i in graph.initializer)  # the weights in float32 are gone
    floats = sum(onnx.numpy_helper.to_array(i).nbytes for i in graph.initializer if not i.name.endswith("_bytes"))
    integers = sum(onnx.numpy_helper.to_array(i).nbytes for i in graph.initializer if i.name.endswith("_bytes"))
    assert floats < integers / 10


def test_every_runtime_rounds_alike(net, exported):
    assert max(exported.errors.values()) < check.TOLERANCE_OF_INTEGERS
    x = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, alike = net(x), exported.recorded.rounded(x)
    (by_onnxruntime,) = check.onnx_runner(exported.path)(x)
    assert relative_error(by_onnxruntime, alike) < check.TOLERANCE_OF_INTEGERS
    assert 2e-3 < relative_error(by_onnxruntime, expected) < 6e-2


def test_a_wrong_scale_is_found(net, calibration, tmp_path, monkeypatch):
    from hrnet_fast.export import onnx_file, quantize

    def wrong(proto, integers):
        name = sorted(integers)[len(integers) // 2]
        made = integers[name]
        quantize.quantize(proto, {**integers, name: made._replace(scale=made.scale * 1.5)})

    monkeypatch.setattr(onnx_file, "quantize", wrong)
    with pytest.raises(ValueError, match="computes something else"):
        export.save(net, tmp_path / "net.onnx", calibration=calibration)
    assert not (tmp_path / "net.onnx").exists()


def test_one_convolution_exactly():
    """Integers in float64 are what the formula of QuantizeLinear and DequantizeLinear says."""
    torch.manual_seed(0)
    kernel, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
    x = torch.randn(1, 3, 9, 9)
    factor = Factor.of(-2.5, 2.5, x.mean((0, 2, 3)))
    made = Integers.of(kernel, bias, factor)
    byte = rounded(x, made.rounding)
    assert byte.min() >= 0 and byte.max() <= 255 and made.rounding.zero == 128
    y = nn.functional.conv2d((byte - 128) * made.rounding.step, made.kernel(), made.bias, padding=1)
    assert relative_error(y, nn.functional.conv2d(x, kernel, bias, padding=1)) < 2e-2
    assert made.kernel().sub(kernel).abs().amax((1, 2, 3)).le(0.501 * made.scale).all()


def test_what_a_user_can_get_wrong(net, calibration, tmp_path):
    with pytest.raises(ValueError, match="written as ONNX"):
        export.save(net, tmp_path / "net.pt2", "pt2", calibration=calibration)
    other = randomize(hf.create_model("hrnet_w32", task="segmentation")).eval()
    with pytest.raises(ValueError, match="of another network"):
        export.save(other, tmp_path / "net.onnx", calibration=calibration)


def test_command(net, calibration, tmp_path, capsys):
    pytest.importorskip("sklearn"), pytest.importorskip("safetensors")
    common = ["export", "--model", "hrnet_w18_small", "--num-classes", "5"]
    (tmp_path / "photographs").mkdir()
    for name in photographs.SAMPLES:
        (tmp_path / "photographs" / name).write_bytes(photographs.sample(name).read_bytes())
    out = tmp_path / "net.onnx"
    assert main([*common, "--int8", str(tmp_path / "photographs"), "--size", "64x96", "--out", str(out)]) == 0
    assert "convolutions multiply 8-bit integers" in capsys.readouterr().out and out.exists()
    calibration.save(tmp_path / "c.safetensors")
    assert main([*common, "--int8", str(tmp_path / "c.safetensors"), "--out", str(out), "--force", "--no-check"]) == 0
    for wrong, said in (
        (["--int8", str(tmp_path / "no.safetensors")], "no.safetensors"),
        (["--int8", str(tmp_path / "nothing")], "nothing"),
        (["--int8", str(tmp_path), "--format", "pt2"], "file of ONNX"),
    ):
        assert main([*common, *wrong, "--force", "--out", str(out)]) == 2
        assert said in capsys.readouterr().err
