"""``hrnet-fast evaluate``: the table and its JSON on generated images and folders, and one line for what is wrong."""

import json
import re

import pycocotools.coco  # noqa: F401  what the command needs for key points
import pytest
import torch
from PIL import Image

from hrnet_fast.apps.evaluation import people, sets
from hrnet_fast.checkpoints import zoo
from hrnet_fast.checkpoints.convert import convert_checkpoint
from hrnet_fast.cli import evaluate, main
from support.convert_cases import mmseg, weights_of
from support.model_cases import SMALL

QUICK = ["evaluate", "--model", SMALL, "--images", "2", "--calibration", "2"]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(evaluate, "GENERATED", (64, 64))


def fails(capsys, *argv):
    assert main([*QUICK, *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("hrnet-fast: error: ")


def folder(root, labels=(0, 1, 255), size=(40, 36)):
    """One split of two images with masks."""
    for name in "ab":
        for kind in ("images", "masks"):
            (root / kind / "val").mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 36), 64).convert("RGB").save(root / "images" / "val" / f"{name}.png")
        mask = Image.new("L", size)
        mask.putdata([labels[k % len(labels)] for k in range(size[0] * size[1])])
        mask.save(root / "masks" / "val" / f"{name}.png")
    return root


def test_out_of_the_box(small, capsys, tmp_path):
    assert main([*QUICK, "--dtypes", "float32", "int8", "--json", str(tmp_path / "e.json"), "--per-class"]) == 0
    out = capsys.readouterr().out
    assert "2 images, generated" in out and "the weights are random" in out
    assert re.search(r"engine +mIoU +lost +as first +images/s +MiB", out)
    assert "IoU of class" in out
    content = json.loads((tmp_path / "e.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["plain PyTorch", "float32", "int8"]
    for row in content["rows"]:
        assert row["failure"] is None
        assert 0 <= row["metrics"]["mIoU"] <= 1 and len(row["per_class"]) == sets.Shapes.CLASSES
        assert row["rate"] > 0 and row["agreement"] > 0.9
        assert row["memory_bytes"] is None or row["memory_bytes"] >= 0
        assert re.search(rf" {re.escape(row['name'])} +{row['engine']} +{100 * row['metrics']['mIoU']:.2f} ", out)
    assert content["random_weights"] and content["published"] is None
    assert content["settings"]["model"] == SMALL and content["machine"]["torch"]


def test_published_metrics_stand_beside_the_measured_ones(capsys, tmp_path, monkeypatch):
    torch.save(mmseg(weights_of("segmentation")), tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "a.safetensors")
    entry = zoo.Weights(*(SMALL, "segmentation", "streets", "Streets", 19, (64, 96), "mIoU", 12.5, "", "a test", "MIT"))
    monkeypatch.setattr(zoo, "_table", lambda: (entry,))
    monkeypatch.setattr(evaluate, "checkpoint_of", lambda arguments, task: str(tmp_path / "a.safetensors"))
    data = folder(tmp_path / "data", labels=(0, 18))
    argv = ["--weights", "streets", "--data", str(data), "--dtypes", "--json", str(tmp_path / "e.json")]
    assert main([*QUICK, *argv]) == 0
    out = capsys.readouterr().out
    assert re.search(r" published +12.50 *\n plain PyTorch +PyTorch", out)
    assert "published: on Streets, a test" in out and "random" not in out
    assert json.loads((tmp_path / "e.json").read_text())["published"]["value"] == 12.5


def test_key_points_out_of_the_box(capsys):
    assert main([*QUICK, "--task", "pose", "--no-flip", "--dtypes"]) == 0
    assert re.search(r"engine +AP +AP50 +AP75 +AR +lost +as first +people/s", capsys.readouterr().out)


def test_onnx_files(capsys, tmp_path, small):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    path = tmp_path / "net.onnx"
    assert main(["export", "--model", SMALL, "--num-classes", "4", "--size", "64x64", "--out", str(path)]) == 0
    other = tmp_path / "other.onnx"
    other.write_bytes(b"nothing")
    capsys.readouterr()
    assert main([*QUICK, "--dtypes", "--onnx", str(path), str(other)]) == 1  # one did not run
    out = capsys.readouterr().out
    assert re.search(r"net.onnx +ONNX Runtime +\d", out)
    assert re.search(r"other.onnx +did not run", out)


def test_what_is_wrong_is_one_line(capsys, tmp_path, small):
    data = folder(tmp_path / "data")
    assert "no images of the split 'test'" in fails(capsys, "--data", data, "--split", "test", "--classes", 2)
    wrong = folder(tmp_path / "wrong", labels=(0, 7))
    assert "labels [7]: expected 0 to 1" in fails(capsys, "--data", wrong, "--classes", 2, "--dtypes")
    sizes = folder(tmp_path / "sizes", size=(20, 18))
    assert "18x20 pixels, but its image has 36x40" in fails(capsys, "--data", sizes, "--classes", 2)
    assert "generated images have 4 classes and the network 7" in fails(capsys, "--classes", 7)
    assert "did you mean" in fails(capsys, "--weights", "cityscape", "--model", "hrnet_w48")
    assert "there is no such file" in fails(capsys, "--checkpoint", tmp_path / "none.pth")
    assert "there is no such file" in fails(capsys, "--onnx", tmp_path / "none.onnx")
    assert "none is left" in fails(capsys, "--dtypes", "--no-plain")
    assert "scales 0: must be numbers above 0" in fails(capsys, "--scales", 0)
    assert "images 0: must be at least 1" in fails(capsys, "--images", 0)
    assert "annotations: only for --task pose" in fails(capsys, "--annotations", "a.json")
    assert "window: not for --task pose" in fails(capsys, "--task", "pose", "--window", "64x64")
    assert "belong together" in fails(capsys, "--task", "pose", "--data", data)
    annotations = people.generate(tmp_path / "people", 1)
    pose = ["--task", "pose", "--annotations", annotations, "--data"]
    assert "1 of its 1 pictures are not there" in fails(capsys, *pose, data)
    (tmp_path / "people" / "000000000001.png").write_bytes(b"no picture")
    assert "000000000001.png: not an image" in fails(capsys, *pose, tmp_path / "people", "--dtypes")
