"""Exported files: what is in them, that they compute the same at any batch and size, and what a user can get wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch

import hrnet_fast as hf
from hrnet_fast import export
from hrnet_fast.bench.record import Report
from hrnet_fast.cli import main
from hrnet_fast.export import check, preferences
from hrnet_fast.export.record import MULTIPLE, record
from hrnet_fast.models import randomize
from hrnet_fast.network.passes import all_streams, no_streams
from hrnet_fast.tolerances import relative_error
from support.exhaustive import sampled
from support.model_cases import SMALL
from support.patching_cases import FAMILIES

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporter deprecates parts of itself


def ours(task="segmentation", **keywords):
    return randomize(hf.create_model(SMALL, task=task, **keywords)).eval()


def small(name):
    """A family's network of the tests, patched."""
    model = FAMILIES[name].make()
    assert hf.patch(model).patched
    return model


def operators(path):
    proto = onnx.load(path)
    assert [(entry.domain, entry.version >= 17) for entry in proto.opset_import] == [("", True)]
    assert not proto.functions
    return Counter(node.op_type for node in proto.graph.node)


def taken_apart(path):
    """Resizes whose result goes into a concatenation: what a commuted head has not."""
    graph = onnx.load(path).graph
    joined = {name for node in graph.node if node.op_type == "Concat" for name in node.input}
    return not [node for node in graph.node if node.op_type == "Resize" and node.output[0] in joined]


@pytest.mark.parametrize("name", sampled(["segmentation-master", "mmseg", "mmdet", "classification"], 2))
def test_onnx_of_patched_networks(name, tmp_path):
    """Standard operators, no BatchNorm, the same results at three sizes; the patched network is left as it was."""
    model = small(name)
    before = [type(m) for m in model.modules()]
    done = export.save(model, tmp_path / "a.onnx", commute_head="on")
    found = operators(tmp_path / "a.onnx")
    assert "BatchNormalization" not in found and done.recorded.unfolded == 0
    assert done.recorded.folded > 50
    assert len(done.errors) == 3 and max(done.errors.values()) < 1e-4
    head = any(kind in FAMILIES[name].heads for kind in ("HRNetV2", "FCN head", "HRFPN"))
    assert done.recorded.commuted == (1 if head else 0)
    assert taken_apart(tmp_path / "a.onnx")
    assert [type(m) for m in model.modules()] == before
    multiple = name in ("classification", "mmdet")
    assert done.recorded.multiple == (MULTIPLE if multiple else 1)
    assert multiple or any(int(side) % MULTIPLE for shape in done.errors for side in shape.split("x")[2:])


@pytest.mark.parametrize("keywords", sampled([{}, {"features_only": True}], 2), ids=["classifier", "features"])
def test_onnx_of_timms_own(timm, keywords, tmp_path):
    model = randomize(timm.create_model("hrnet_w18_small", **keywords)).eval()
    assert hf.patch(model).patched
    done = export.save(model, tmp_path / "a.onnx")
    assert "BatchNormalization" not in operators(tmp_path / "a.onnx")
    assert len(done.errors) == 3 and max(done.errors.values()) < 1e-4


@pytest.mark.parametrize("task", ["segmentation_ocr", "pose"])
def test_onnx_of_tasks(task, tmp_path):
    done = export.save(ours(task), tmp_path / "a.onnx", commute_head="on")
    assert "BatchNormalization" not in operators(tmp_path / "a.onnx")
    assert max(done.errors.values()) < 1e-4
    assert done.recorded.unfolded == 0
    assert done.recorded.outputs == {"segmentation_ocr": ["auxiliary", "logits"], "pose": ["heatmaps"]}[task]


def test_a_file_of_onnx(tmp_path):
    """Names, dynamic sizes, metadata; nothing about the machine that it was made on."""
    path = tmp_path / "made" / "a.onnx"
    model = ours(num_classes=7)
    done = export.save(model, path, commute_head="on", mean=(0.1, 0.2, 0.3))
    proto = onnx.load(path)
    dims = [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert (proto.graph.input[0].name, dims) == ("image", ["batch", 3, "height", "width"])
    dims = [d.dim_param or d.dim_value for d in proto.graph.output[0].type.tensor_type.shape.dim]
    assert (proto.graph.output[0].name, dims) == ("logits", ["batch", 7, "height", "width"])
    facts = export.read(path)
    assert (
        facts
        | {
            "model": SMALL,
            "task": "segmentation",
            "num_classes": 7,
            "align_corners": False,
            "upsample": "bilinear",
            "mean": [0.1, 0.2, 0.3],
            "multiple": 1,
            "heads_commuted": 1,
        }
        == facts
    )
    assert facts == {key: json.loads(value) for key, value in done.metadata.items()}
    del proto.graph.initializer[:]
    assert b".py" not in proto.SerializeToString()
    assert list(path.parent.iterdir()) == [path]
    run = check.onnx_runner(path)
    for shape in ((1, 3, 32, 32), (4, 3, 65, 33)):
        image = torch.randn(shape)
        with torch.no_grad():
            assert relative_error(run(image)[0], model(image)) < 1e-4


@pytest.fixture(scope="module")
def recorded():
    model = ours()
    return model, {name: record(model, choose) for name, choose in (("off", no_streams), ("on", all_streams))}


def test_what_moves(recorded):
    """With the head commuted no concatenation is left, without it there is one; both compute what the network does."""
    model, graphs = recorded
    image = torch.randn(1, 3, 75, 109)
    with torch.no_grad():
        for name, graph in graphs.items():
            called = Counter(str(node.target) for node in graph.program.graph.nodes)
            assert called["aten.cat.default"] == (name == "off")
            assert called["aten.batch_norm.default"] == 0
            assert relative_error(graph.program.module()(image), model(image)) < 1e-5


def test_a_program_of_torch_export(tmp_path):
    """PyTorch's own operators only; batch 1 and sizes that it was not recorded with."""
    path, model = tmp_path / "a.pt2", small("segmentation-aligned")
    done = export.save(model, path, "pt2", commute_head="on")
    assert max(done.errors.values()) < 1e-4
    program = torch.export.load(path)
    assert all(
        "aten" in str(n.target) or n.target.__module__ in ("_operator", "builtins", "torch", "math")
        for n in program.graph.nodes
        if n.op == "call_function"
    )
    assert export.read(path)["in_chans"] == 3


def test_one_size(tmp_path):
    done = export.save(small("pose"), tmp_path / "a.onnx", size=(64, 32))
    assert [d.dim_value for d in onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type.shape.dim][2:] == [
        64,
        32,
    ]
    assert set(done.errors) == {f"{n}x3x64x32" for n in (1, 2, 3)}
    assert export.read(tmp_path / "a.onnx")["size"] == [64, 32]


def test_the_preferences_are_what_was_measured():
    """Every row of the table names its case, and the gain is the median there; the choice loses nowhere."""
    from benchmarks.export_heads import CONTENDERS, FOLDER

    assert preferences.TABLE
    for row in preferences.TABLE:
        (case,) = Report.load(FOLDER / f"{row.source}.json").cases
        assert row.runtime in case.name and case.agrees
        if row.streams:
            median = case.entry(CONTENDERS[row.streams]).speedup_over[CONTENDERS[0]].median
            assert row.gain == round(median, 2) >= 1.0
    for width in (18, 32, 48):
        for runtime in preferences.OF_ONNX:
            assert 0 <= preferences.choice(None)(15 * width) <= preferences.choice(runtime)(15 * width)


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    model = small("pose")
    monkeypatch.setattr(check, "_CASES_OF_MULTIPLES", ((1, 64, 64),))
    monkeypatch.setitem(
        check._RUNNERS, "onnx", lambda path: lambda image: [y * 1.01 for y in check.tensors(model(image))]
    )
    with pytest.raises(ValueError, match=r"computes something else .* 1.0e-02 on an image of 1x3x64x64"):
        export.save(model, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "keywords", "error", "message"),
    [
        ("a string", {}, TypeError, "model: expected an nn.Module, got str"),
        (torch.nn.Linear(2, 2), {}, ValueError, "model: it has no convolution"),
        (torch.compile(torch.nn.Conv2d(3, 3, 1)), {}, ValueError, "model: it is compiled already"),
        (torch.nn.Conv2d(3, 3, 1, device="meta"), {}, ValueError, "model: its parameters are on the meta device"),
        (torch.nn.Conv2d(3, 3, 1), {"format": "tflite"}, ValueError, "format: expected one of 'onnx', 'pt2', 'aoti'"),
        (torch.nn.Conv2d(3, 3, 1), {"format": "pt2"}, ValueError, "path: expected a name that ends in .pt2"),
        (torch.nn.Conv2d(3, 3, 1), {"commute_head": "maybe"}, ValueError, "commute_head: expected one of 'auto'"),
        (torch.nn.Conv2d(3, 3, 1), {"runtime": "tpu"}, ValueError, "runtime: expected None or one of"),
        (torch.nn.Conv2d(3, 3, 1), {"opset": 11}, ValueError, "opset 11: expected 18 to"),
    ],
)
def test_wrong_arguments(model, keywords, error, message, tmp_path):
    with pytest.raises(error) as raised:
        export.save(model, tmp_path / "a.onnx", **keywords)
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())


def fails(capsys, *argv):
    """The one line of a command that must end with 2."""
    assert main(["export", *argv]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("hrnet-fast: error: "), captured.err
    return lines[0]


def test_the_command(capsys, tmp_path):
    path = tmp_path / "pose.onnx"
    given = ["--model", SMALL, "--task", "pose", "--out", str(path)]
    assert main(["export", *given]) == 0
    out = capsys.readouterr().out
    assert "pose.onnx" in out and "multiples of 32" in out and "allowed: 1e-04" in out and "random weights" in out
    before = path.read_bytes()
    assert "pose.onnx: exists already; --force replaces it" in fails(capsys, *given)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--format", "tflite"], "format 'tflite': expected one of onnx, pt2, aoti"),
        (["--model", "hrnet_w19"], "hrnet_w18"),
        (["--model", SMALL, "--task", "pose", "--size", "50x64"], "size 50x64: the network does not take it"),
        (["--size", "50"], "size '50': expected HEIGHTxWIDTH"),
        (["--checkpoint", "none.pth"], "checkpoint none.pth: there is no such file"),
        (["--triton", "m", "--out", "a.onnx"], "out: with --triton"),
        (
            ["--triton", "m", "--format", "pt2", "--model", SMALL],
            "format: Triton Inference Server serves 'onnx' and 'aoti'",
        ),
        (["--mean", "0.5"], "mean: expected 3 numbers"),
        (["--device", "tpu"], "device tpu: expected cpu"),
        (["--out", "a.pt2"], "path: expected a name that ends in .onnx"),
        (["--opset", "9", "--model", SMALL], "opset 9: expected 18"),
        (["--commute-head", "perhaps"], "invalid choice: 'perhaps'"),
    ],
    ids=lambda value: value[0].removeprefix("--") if isinstance(value, list) else "",
)
def test_bad_input(capsys, tmp_path, monkeypatch, argv, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in fails(capsys, *argv)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package(capsys, tmp_path, monkeypatch, package):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    line = fails(capsys, "--model", SMALL, "--task", "pose", "--size", "32x32")
    assert f"needs the package {package}" in line and "pip install 'hrnet_fast[export]'" in line
    assert not list(tmp_path.iterdir())


def test_a_kill_leaves_no_file_under_its_name(tmp_path):
    """Killed while it writes: what is there has another name, and the next run is not in its way."""
    target = tmp_path / "a.onnx"
    program = (
        "import sys, time; from pathlib import Path; from hrnet_fast import files\n"
        f"with files.whole_file(Path({str(target)!r}), False) as part:\n"
        "    part.write_bytes(b'half'); print('writing', flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    assert not target.exists()
    from hrnet_fast import files

    with files.whole_file(target, False) as part:
        part.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"


def test_a_failure_keeps_the_old_file(tmp_path):
    from hrnet_fast import files

    target = tmp_path / "a.onnx"
    target.write_bytes(b"old")

    def write():
        with files.whole_file(target, True) as part:
            part.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk"):
        write()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.exhaustive
def test_a_package_of_aotinductor(tmp_path):
    """Compiled here, run at three sizes, one of them no multiple of anything, and read without loading it."""
    path = tmp_path / "a.pt2"
    done = export.save(small("segmentation-v1.1"), path, "aoti", commute_head="on")
    assert len(done.errors) == 3
    assert max(done.errors.values()) < 1e-4
    assert export.read(path) == {key: json.loads(value) for key, value in done.metadata.items()}
