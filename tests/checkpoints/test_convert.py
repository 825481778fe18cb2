"""Checkpoints of every family, converted: what is recognised, what the header says, and what is refused."""

import json
import os
import pickle
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy
import pytest
import safetensors
import torch
from safetensors.torch import load_file

import hrnet_fast as hf
from hrnet_fast.checkpoints.header import read_header
from hrnet_fast.cli import main
from support.convert_cases import (
    FAMILIES,
    converted,
    mmpose,
    mmseg,
    official_ocr,
    prefixed,
    source,
    timm_training,
    weights_of,
)
from support.model_cases import SMALL


@pytest.mark.parametrize(("task", "family", "name"), FAMILIES, ids=[f"{row[0]}-{row[1].__name__}" for row in FAMILIES])
def test_every_family(tmp_path, task, family, name):
    expected = weights_of(task, family)
    done = converted(family(expected), tmp_path)
    header = read_header(tmp_path / "new.safetensors")
    assert header == done.header
    assert (header.model, header.task, header.source) == (SMALL, task, name)
    classes = {"segmentation": 19, "segmentation_ocr": 19, "classification": 1000, "pose": 17}.get(task)
    assert header.num_classes == classes
    assert header.upsample == ("bilinear" if task.startswith("segmentation") else "nearest")
    assert header.align_corners is (family is official_ocr)
    model = hf.create_model(SMALL, task, checkpoint=tmp_path / "new.safetensors")
    assert [k for k, v in model.state_dict().items() if not torch.equal(v, expected[k])] == []
    assert model.recipe["align_corners"] is header.align_corners
    assert hf.load_checkpoint(model, tmp_path / "new.safetensors") == ([], [], [])
    leftover = family(expected)
    beside = [k for k in leftover if k not in ("state_dict", *expected)] if "state_dict" in leftover else []
    assert set(beside) <= set(done.left_out)


def test_other_readers_find_what_they_look_for(tmp_path):
    converted(source("segmentation"), tmp_path)
    with safetensors.safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert {k: json.loads(metadata[k]) for k in ("model", "task", "num_classes", "align_corners", "mean")} == {
        "model": SMALL, "task": "segmentation", "num_classes": 19, "align_corners": False,
        "mean": [0.485, 0.456, 0.406]}  # fmt: skip


def test_counts_and_channels_come_from_the_shapes(tmp_path):
    state = hf.create_model("hrnet_w18_small_v2", "pose", num_classes=5, in_chans=4).state_dict()
    header = converted(state, tmp_path).header
    assert header[:4] == ("hrnet_w18_small_v2", "pose", 5, 4)
    assert header.mean == (0.0,) * 4 and header.std == (1.0,) * 4
    assert hf.create_model("hrnet_w18_small_v2", "pose", in_chans=4, checkpoint=tmp_path / "new.safetensors")


def test_all_configurations_are_told_apart(tmp_path):
    for name in hf.list_models():
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in hf.create_model(name, "features").state_dict().items()}
        # views of one number: the weights themselves do not matter
        state = {k: torch.zeros(()).expand(shape) for k, shape in shapes.items()}
        from hrnet_fast.checkpoints.convert import _configuration

        assert _configuration(state, "file")[0] == name


def test_an_average_is_taken_when_asked_for(tmp_path):
    expected = source("classification")
    plain = converted(timm_training(expected), tmp_path)
    assert plain.averaged == "state_dict_ema"
    assert torch.equal(load_file(tmp_path / "new.safetensors")["conv1.weight"], expected["conv1.weight"])
    average = converted(timm_training(expected), tmp_path, average=True, overwrite=True)
    assert average.place == "state_dict_ema" and not average.averaged
    assert torch.equal(load_file(tmp_path / "new.safetensors")["conv1.weight"], expected["conv1.weight"] + 1)


def test_an_average_beside_the_weights_under_a_prefix(tmp_path):
    expected = source("features")
    other = {k: v + 1 if v.is_floating_point() else v for k, v in expected.items()}
    both = {"state_dict": prefixed(expected, "model.") | prefixed(other, "ema_model.module.")}
    for average, weight in ((False, expected), (True, other)):
        converted(both, tmp_path, average=average, overwrite=True)
        assert torch.equal(load_file(tmp_path / "new.safetensors")["conv1.weight"], weight["conv1.weight"])


def test_mmengine_saves_the_average_as_the_weights(tmp_path):
    expected = source("features")
    file = {"meta": {"mmengine_version": "0.10"}, "state_dict": prefixed(expected, "backbone."),
            "ema_state_dict": {"steps": torch.tensor(3)} | prefixed(expected, "module.backbone.")}  # fmt: skip
    for average in (False, True):
        assert converted(file, tmp_path, average=average, overwrite=True).place == "state_dict"


def test_no_average_where_there_is_none(tmp_path):
    with pytest.raises(ValueError, match="no exponential average"):
        converted(source("features"), tmp_path, average=True)


def test_two_networks_in_one_file(tmp_path):
    state = source("features")
    with pytest.raises(ValueError, match=r"several HRNets, under the prefixes student\., teacher\."):
        converted(prefixed(state, "student.") | prefixed(state, "teacher."), tmp_path)


MMSEG = "model = dict(decode_head=dict(align_corners={}))\nmean=[127.5, 127.5, 127.5], std=[51, 51, 51.0], to_rgb={}"


@pytest.mark.parametrize("key", ["cfg", "config"])
def test_openmmlab_configurations_are_read(tmp_path, key):
    names = {"CLASSES": [f"class {i}" for i in range(19)]} if key == "config" else {
        "dataset_meta": {"classes": tuple(f"class {i}" for i in range(19))}}  # fmt: skip
    file = mmseg(source("segmentation")) | {"meta": {key: MMSEG.format("False", "True"), **names}}
    done = converted(file, tmp_path)
    assert done.header.mean == (0.5,) * 3 and done.header.std == (0.2,) * 3
    assert done.whence["mean"] == done.whence["align_corners"] == "the file's configuration"
    assert done.header.class_names[18] == "class 18" and not done.notes


def test_configurations_that_no_network_here_has_are_noted(tmp_path):
    file = mmseg(source("segmentation")) | {"meta": {"cfg": MMSEG.format("True", "False")}}
    align, order = converted(file, tmp_path).notes
    assert "align_corners=True" in align and "blue, green, red" in order


def test_mmpose_for_faces_is_bilinear(tmp_path):
    file = mmpose(source("pose")) | {"meta": {"cfg": "extra=dict(upsample=dict(mode='bilinear', align_corners=False))"}}
    assert converted(file, tmp_path).header.upsample == "bilinear"
    assert hf.create_model(SMALL, "pose", checkpoint=tmp_path / "new.safetensors").mode == "bilinear"


def test_trained_with_align_corners(tmp_path):
    path = tmp_path / "new.safetensors"
    converted(source("segmentation"), tmp_path, align_corners=True)
    assert hf.create_model(SMALL, checkpoint=path).align_corners is True
    with pytest.raises(ValueError, match=r"trained with align_corners=True, got False.*leave the argument out"):
        hf.create_model(SMALL, align_corners=False, checkpoint=path)
    model = hf.create_model(SMALL)
    before = model.conv1.weight.clone()
    with pytest.raises(ValueError, match=r"align_corners True -> False.*create the model with .*align_corners=True"):
        hf.load_checkpoint(model, path)
    assert torch.equal(model.conv1.weight, before)
    assert hf.load_checkpoint(model, path, strict=False).mismatched == ["align_corners True -> False"]
    assert main(["convert", str(path), "--out", str(tmp_path / "again.safetensors"), "--align-corners", "false"]) == 0
    assert hf.load_checkpoint(model, tmp_path / "again.safetensors") == ([], [], [])


def test_another_task_or_class_count_is_refused_with_what_it_holds(tmp_path):
    path = tmp_path / "new.safetensors"
    converted(hf.create_model(SMALL, num_classes=7).state_dict(), tmp_path)
    holds = f"holds {SMALL} for segmentation with 7 classes"
    for name, arguments in ((SMALL, {"task": "pose"}), (SMALL, {"num_classes": 19}), ("hrnet_w18", {})):
        with pytest.raises(ValueError, match=holds):
            hf.create_model(name, checkpoint=path, **arguments)
    with pytest.raises(ValueError, match="it holds an HRNet of width 16 for segmentation with 7 classes"):
        hf.load_checkpoint(hf.create_model(SMALL), path)
    assert hf.create_model(SMALL, checkpoint=path).last_layer[3].weight.shape[0] == 7


def test_the_head_can_be_left_out(tmp_path):
    expected = source("classification")
    done = converted(expected, tmp_path, task="features")
    assert done.header.task == "features" and "classifier.weight" in done.left_out
    model = hf.create_model(SMALL, "features", checkpoint=tmp_path / "new.safetensors")
    assert torch.equal(model.conv2.weight, expected["conv2.weight"])


class Dangerous:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))],
                         ids=["torch.save", "pickle"])  # fmt: skip
def test_pickled_code_is_never_run(tmp_path, capsys, save):
    path, out, ran = tmp_path / "bad.pth", tmp_path / "new.safetensors", tmp_path / "ran"
    save({"args": Dangerous(ran), "state_dict": source("features")}, path)
    assert main(["convert", str(path), "--out", str(out)]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "could run code, which is refused (it holds a posix.system)" in error and "add_safe_globals" not in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pth"]
    with pytest.raises(ValueError, match="could run code"):
        hf.create_model(SMALL, "features", checkpoint=path)
    assert not ran.exists()


def test_objects_of_training_scripts_are_not_made(tmp_path, monkeypatch):
    """Their classes are neither imported nor called, even where they can be."""
    events = []

    class HistoryBuffer:
        def __setstate__(self, state):
            events.append("made")

    names = ["mmengine", "mmengine.logging", "mmengine.logging.history_buffer"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = names[-1], "HistoryBuffer"
    sys.modules[names[-1]].HistoryBuffer = HistoryBuffer
    history = HistoryBuffer()
    history.values = numpy.arange(4.0)
    allowed = set(torch.serialization.get_safe_globals())
    file = {"message_hub": {"log_scalars": {"loss": history}}, "state_dict": source("features")}
    assert converted(file, tmp_path).left_out == ["message_hub"]
    assert not events
    assert set(torch.serialization.get_safe_globals()) == allowed


REFUSED = [
    ({"missing": "conv2.weight"}, {}, "1 missing: conv2.weight"),
    ({"extra": "stage5.weight"}, {}, "1 unexpected: stage5.weight; --drop-unexpected leaves them out"),
    ({}, {"task": "segmentation"}, f"holds {SMALL}, an HRNet of width 16 for features; expected was segmentation"),
    ({}, {"num_classes": 19}, "expected was 19"),
    ({}, {"model": "hrnet_w48"}, f"holds {SMALL}.*expected was hrnet_w48"),
    ({}, {"model": "hrnet_w49"}, "unknown model 'hrnet_w49'"),
    ({}, {"align_corners": True}, "only bilinear interpolation has it"),
    ({}, {"mean": (1.0,)}, r"mean: expected 3 numbers, one for each channel, got \[1.0\]"),
    ({}, {"std": (1.0, 0.0, 1.0)}, "std: expected 3 numbers above 0"),
    ({"missing": "stage4.0.branches.0.0.conv1.weight"}, {}, "holds no HRNet; its keys are conv1.weight"),
    ({"missing": "layer1.0.conv1.weight"}, {}, "holds no HRNet"),
    ({"extra": "layer1.1.conv1.weight"}, {}, "of no known configuration"),
]


@pytest.mark.parametrize(("change", "options", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_refused(tmp_path, change, options, message):
    state = source("features")
    state.pop(change.get("missing"), None)
    if "extra" in change:
        state[change["extra"]] = torch.ones(2)
    with pytest.raises(ValueError, match=message):
        converted(state, tmp_path, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pth"]


def test_unexpected_weights_can_be_dropped_and_are_listed(tmp_path):
    state = source("features") | {"stage5.weight": torch.ones(2)}
    assert converted(state, tmp_path, drop_unexpected=True).left_out == ["stage5.weight"]


def test_weights_that_are_not_numbers_are_noted(tmp_path):
    state = source("features")
    state["conv1.weight"][0] = torch.nan
    assert "conv1.weight" in converted(state, tmp_path).notes[0]


def test_norms_of_inplace_abn(tmp_path):
    """It has no counters, and computes with abs(weight) + eps: in evaluation the converted network must do the same."""
    state = {k: v for k, v in source("features").items() if not k.endswith("num_batches_tracked")}
    state["bn1.weight"].neg_()
    done = converted(state, tmp_path)
    assert "--inplace-abn" in done.notes[0] and "bn1.num_batches_tracked" in done.filled
    assert not converted(state, tmp_path, inplace_abn=True, overwrite=True).notes
    written = load_file(tmp_path / "new.safetensors")
    assert torch.equal(written["bn1.weight"], state["bn1.weight"].abs() + 1e-5)
    assert torch.equal(written["conv1.weight"], state["conv1.weight"])


def test_damaged_headers(tmp_path):
    save = __import__("safetensors.torch").torch.save_file
    for metadata, message in (({"hrnet_fast": "1", "model": '"hrnet_w18"'}, "damaged"),
                              ({"hrnet_fast": "x"}, "damaged")):  # fmt: skip
        save({"weight": torch.ones(1)}, tmp_path / "a.safetensors", metadata)
        with pytest.raises(ValueError, match=message):
            read_header(tmp_path / "a.safetensors")
    converted(source("features"), tmp_path)
    with safetensors.safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        metadata = file.metadata()
    save({"weight": torch.ones(1)}, tmp_path / "a.safetensors", metadata | {"hrnet_fast": "2"})
    with pytest.raises(ValueError, match="version 2, this hrnet_fast reads 1"):
        read_header(tmp_path / "a.safetensors")


def command(tmp_path, capsys, *options):
    torch.save(timm_training(source("classification")), tmp_path / "weights.pth")
    code = main(["convert", str(tmp_path / "weights.pth"), "--out", str(tmp_path / "new.safetensors"), *options])
    captured = capsys.readouterr()
    return code, " ".join(captured.out.split()), " ".join(captured.err.split())


def test_the_command_says_what_it_did(tmp_path, capsys):
    code, out, _ = command(tmp_path, capsys)
    assert code == 0
    for part in (f'recognised under "state_dict": official HRNet-Image-Classification, or timm: {SMALL} for '
                 "classification with 1000 classes", "align_corners False assumed", "num_classes 1000 the weights' shapes",
                 'lies under "state_dict_ema"', "left out, no weights of this network: 6: epoch, arch, args"):  # fmt: skip
        assert part in out


def test_an_existing_file_is_kept_unless_forced(tmp_path, capsys):
    target = tmp_path / "new.safetensors"
    target.write_text("precious")
    code, _, error = command(tmp_path, capsys)
    assert code == 2 and "is there already; --force replaces it" in error
    assert target.read_text() == "precious"
    assert command(tmp_path, capsys, "--force")[0] == 0
    assert read_header(target) is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.safetensors", "weights.pth"]


@pytest.mark.parametrize(("out", "message"), [
    ("weights.pth/new.safetensors", "cannot be written"), ("new.pth", "ends in .safetensors"),
    ("folder.safetensors", "is a folder")])  # fmt: skip
def test_names_that_cannot_be_written(tmp_path, capsys, out, message):
    (tmp_path / "folder.safetensors").mkdir()
    torch.save(source("features"), tmp_path / "weights.pth")
    assert main(["convert", str(tmp_path / "weights.pth"), "--out", str(tmp_path / out), "--force"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


FULL_DISK = """
import resource, sys
from hrnet_fast.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(["convert", sys.argv[1], "--out", sys.argv[2], "--force"]))
"""
KILLED = """
import os, signal, sys, safetensors.torch
from hrnet_fast.cli import main
save = safetensors.torch.save_file
def halfway(state, path, metadata):
    save(state, path, metadata)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
safetensors.torch.save_file = halfway
main(["convert", sys.argv[1], "--out", sys.argv[2], "--force"])
"""


@pytest.mark.parametrize(("program", "code"), [(FULL_DISK, 2), (KILLED, -signal.SIGKILL)], ids=["full disk", "kill"])
def test_no_half_written_file(tmp_path, program, code):
    path, out = tmp_path / "weights.pth", tmp_path / "new.safetensors"
    torch.save(source("features"), path)
    out.write_text("precious")
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program, path, out], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": root})  # fmt: skip
    assert done.returncode == code, done.stderr
    assert out.read_text() == "precious"
    if code == 2:
        assert "cannot be written" in done.stderr and len(done.stderr.splitlines()) == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == ["new.safetensors", "weights.pth"]
