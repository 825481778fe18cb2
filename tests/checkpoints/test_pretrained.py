"""Weights by name: the table, what one download leaves in the cache, several processes at once, and what goes wrong."""

import hashlib
import io
import json
import re
import threading

import pytest
import torch
from PIL import Image

import hrnet_fast as hf
from hrnet_fast import files
from hrnet_fast.checkpoints import pretrained, zoo
from hrnet_fast.checkpoints.header import read_header
from hrnet_fast.cli import main
from hrnet_fast.models import TASKS
from support.convert_cases import mmseg, weights_of
from support.faulty_server import serving
from support.model_cases import SMALL


@pytest.fixture(scope="module")
def original():
    """A checkpoint as mmseg publishes it."""
    file = io.BytesIO()
    torch.save(mmseg(weights_of("segmentation")), file)
    return file.getvalue()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HRNET_FAST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(pretrained.download, "__kwdefaults__", pretrained.download.__kwdefaults__ | {"wait": 0.0})
    return tmp_path / "home"


@pytest.fixture
def published(original, home, monkeypatch):
    """A server with the weights "streets", which the table knows."""
    digest = hashlib.sha256(original).hexdigest()
    with serving(original) as server:
        url = f"{server.url}/streets_20200601_014216-{digest[:8]}.pth"
        entry = zoo.Weights(
            *(SMALL, "segmentation", "streets", "Streets", 19, (64, 96), "mIoU", 12.5, url, "a test", "MIT")
        )
        monkeypatch.setattr(zoo, "_table", lambda: (entry,))
        yield server


def test_the_table_is_sound():
    every = hf.list_weights()
    assert len(every) > 60
    assert len({(w.model, w.task, w.name) for w in every}) == len({w.file_name for w in every}) == len(every)
    assert {w.task for w in every} == {"segmentation", "segmentation_ocr", "pose", "classification"} <= set(TASKS)
    for weights in every:
        assert weights.model in hf.list_models()
        assert weights.url.startswith("https://")
        assert re.fullmatch(r"[0-9a-f]{8}", weights.sha256 or "") or weights.url.endswith("/model.safetensors")
        assert 10 < weights.value < 100
        assert re.search(r": \S+\.(yaml|yml|py|csv).* at [0-9a-f]{12}$", weights.source)
        assert weights.licence in ("Apache-2.0", "MIT")
        size = re.search(r"(\d{3})x(\d{3,4})", weights.url)  # where the file's name says it, it says the same
        assert size is None or tuple(map(int, size.groups())) == weights.size
    assert {w.name for w in hf.list_weights("hrnet_w48", "segmentation")} >= {"cityscapes", "ade20k", "voc"}


def test_create_model_downloads_once_and_works_offline(published, home):
    model = hf.create_model(SMALL, weights="streets")
    expected = weights_of("segmentation", mmseg)
    assert [k for k, v in model.state_dict().items() if not torch.equal(v, expected[k])] == []
    assert (model.recipe["num_classes"], model.recipe["align_corners"]) == (19, False)
    assert len(published.ranges) == 1
    published.shutdown()
    assert hf.create_model(SMALL, weights="streets", num_classes=19).recipe == model.recipe
    (path,) = (home / "weights").glob("*.safetensors")
    assert hf.download_weights(SMALL, "segmentation", "streets") == path
    assert read_header(path) == model.header
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["sha256"] == hashlib.sha256(published.content).hexdigest()
    assert record["size"] == len(published.content)
    assert list((home / "downloads").iterdir()) == []


def test_the_whole_hash_is_asked_for_once_it_is_known(published, home):
    path = hf.download_weights(SMALL, "segmentation", "streets")
    path.unlink()
    record = path.with_suffix(".json")
    known = json.loads(record.read_text())
    record.write_text(json.dumps(known | {"sha256": known["sha256"][:-1] + "-"}))
    with pytest.raises(OSError, match="has SHA-256"):
        hf.download_weights(SMALL, "segmentation", "streets")
    record.write_text("damaged")
    assert hf.download_weights(SMALL, "segmentation", "streets") == path


def test_several_at_once_download_once(published):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(hf.download_weights(SMALL, "segmentation", "streets")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4
    assert len(published.ranges) == 1


def test_what_is_no_checkpoint_is_removed(published, home):
    published.content = b"PK\3\4 no weights"
    entry = zoo.list_weights()[0]
    digest = hashlib.sha256(published.content).hexdigest()[:8]
    changed = entry._replace(url=f"{published.url}/streets_20200601-{digest}.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "_table", lambda: (changed,))
        with pytest.raises(OSError, match="cannot be used and was removed .*; try again") as caught:
            hf.create_model(SMALL, weights="streets")
    assert "\n" not in str(caught.value)
    assert [p for p in home.rglob("*") if p.is_file() and not p.name.endswith(".lock")] == []


def test_unknown_names():
    for model, task, name, hint in [
        ("hrnet_w48", "segmentation", "cityscape", "did you mean cityscapes"),
        ("hrnet_w48", "segmentation", "zz", "there are cityscapes, ade20k"),
        ("hrnet_w44", "pose", "coco", "hrnet_w32, hrnet_w48 have them"),
        ("hrnet_w44", "pose", "zz", "hrnet_w44 has weights for classification"),
        ("hrnet_w40", "detection", "coco-detection", "hrnet_w40 has weights for classification"),
    ]:
        with pytest.raises(ValueError, match=rf"^weights: none are known as '{name}' for {model} and {task}; {hint}"):
            hf.create_model(model, task, weights=name)
    with pytest.raises(ValueError, match="did you mean .*hrnet_w48"):
        hf.download_weights("hrnet_w47", "segmentation", "cityscapes")
    with pytest.raises(ValueError, match="either weights by name or a checkpoint, got both"):
        hf.create_model("hrnet_w48", weights="cityscapes", checkpoint="x.pth")


def test_other_arguments_must_agree(published):
    with pytest.raises(ValueError, match="num_classes: .* holds .* with 19 classes, got 7"):
        hf.create_model(SMALL, weights="streets", num_classes=7)


def test_the_folder_for_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("HRNET_FAST_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "hrnet_fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(files.sys, "platform", "linux")
    assert files.cache_folder() == tmp_path / ".cache" / "hrnet_fast"
    monkeypatch.setattr(files.sys, "platform", "darwin")
    assert files.cache_folder() == tmp_path / "Library" / "Caches" / "hrnet_fast"


def test_a_home_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HRNET_FAST_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="cannot be written .*; name another folder by HRNET_FAST_HOME"):
        hf.download_weights("hrnet_w48", "segmentation", "cityscapes")


def test_the_command(published, home, capsys):
    assert main(["weights"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"{SMALL} +segmentation +streets +Streets +19 +64x96 +mIoU 12.50 +MIT *\n", out)
    assert "from a test" in out and str(home) in out
    argv = ["weights", "--model", SMALL, "--task", "segmentation"]
    assert main([*argv, "--download", "streets"]) == 0
    path = capsys.readouterr().out.strip()
    assert main(["weights", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["file"] == path
    assert row["size"] == [64, 96] and row["licence"] == "MIT"
    assert main(["weights", "--task", "pose", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    for wrong, said in [
        ([*argv, "--download", "street"], "did you mean streets"),
        (["weights", "--download", "streets"], "download: needs --model and --task beside it"),
        (["weights", "--model", "hrnet_w17"], "unknown model"),
    ]:
        assert main(wrong) == 2
        assert said in capsys.readouterr().err


def test_segment_takes_weights_by_name(published, tmp_path, capsys):
    Image.effect_noise((70, 45), 64).save(tmp_path / "a.png")
    argv = ["segment", str(tmp_path / "a.png"), "--model", SMALL, "--out", str(tmp_path / "out")]
    assert main([*argv, "--weights", "streets"]) == 0
    assert "random" not in capsys.readouterr().out
    for wrong, said in [
        (["--weights", "streets", "--checkpoint", str(tmp_path / "a.png")], "only one of them"),
        (["--weights", "roads"], "none are known as 'roads'"),
    ]:
        assert main([*argv, "--force", *wrong]) == 2
        assert said in capsys.readouterr().err
