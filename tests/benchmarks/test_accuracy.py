"""The accuracy of each dtype: the measure, the table, and the program on a network that is hardly trained."""

import json

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from benchmarks import accuracy, accuracy_table, readme_table
from hrnet_fast.models import randomize

HAS_BYTES = hf.ops.library.extension_error is None and torch.ops.hrnet_fast.has_bytes()


def row(name: str, miou: float | None, agreement: float | None = 1.0, failure: str | None = None, engine="planned"):
    return {"name": name, "engine": engine, "miou": miou, "agreement": agreement, "failure": failure}


@pytest.fixture
def measured():
    """Two seeds; one peer ran for the second seed alone."""
    runs = [
        [row(accuracy_table.REFERENCE, 0.8), row("int8", 0.796, 0.99), row("float16", 0.8, engine="torch"),
         row("OpenVINO int8", 0.79, 0.98), row("ONNX Runtime int8", None, None, "no memory")],
        [row(accuracy_table.REFERENCE, 0.9), row("int8", 0.898, 0.97), row("float16", 0.9, engine="torch"),
         row("OpenVINO int8", 0.91, 0.98), row("ONNX Runtime int8", 0.86, 0.9)],
    ]  # fmt: skip
    options = {"steps": 5, "seeds": 2, "batch": 4, "size": [64, 96], "images": 7, "calibration_images": 3}
    cpu = {"threads": 1, "cores": 2, "model": "A CPU", "kernel": "amx"}
    return {
        "machine": {"cpu": cpu, "torch": "2.13.0", "gpu": None, "commit": "abc"},
        "options": options,
        "network": "w18_small_v1",
        "runs": [{"seed": k, "loss": 0.1, "rows": rows} for k, rows in enumerate(runs)],
    }


def test_miou_is_that_of_a_brute_force():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (3, 9, 7), generator=generator).to(torch.uint8)  # class 3 occurs in predictions alone
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, 3 - labels)
    labels[0, :2] = 255  # not counted
    ious = []
    for k in range(4):
        both = either = 0
        for p, label in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True):
            both += label != 255 and p == k and label == k
            either += label != 255 and (p == k or label == k)
        ious.append(both / either)
    assert accuracy.miou(predicted, labels) == pytest.approx(sum(ious) / 4)
    # a class that occurs nowhere does not count
    assert accuracy.miou(predicted, labels, 6) == pytest.approx(sum(ious) / 4)


def test_the_table_has_means_over_the_seeds(measured):
    by_name = {line.name: line for line in accuracy_table.lines(measured)}
    int8 = by_name["int8"]
    assert (int8.miou, int8.lost, int8.most, int8.agreement) == pytest.approx((0.847, 0.3, 0.4, 0.98))
    assert by_name["OpenVINO int8"].lost == pytest.approx(0.0) and by_name["OpenVINO int8"].most == pytest.approx(1.0)
    assert by_name["ONNX Runtime int8"].seeds == 1 and by_name["ONNX Runtime int8"].lost == pytest.approx(4.0)
    assert accuracy_table.cells(int8) == ["HRNet-W18-small-v1", "int8", "84.70", "0.30", "0.40", "98.00 %"]
    assert accuracy_table.table([measured, measured]).row_count == 10


def test_notes_say_what_was_missed_and_what_did_not_run(measured):
    text = "\n".join(accuracy_table.notes(measured))
    assert "2 networks, trained for 5 steps of 4 images; 7 other images of 64x96" in text
    assert "by int8: 0.30, at most 0.5 is the goal: reached" in text
    assert "by OpenVINO int8: 0.00, not more is the goal: missed" in text
    assert "by ONNX Runtime int8: 4.00, not more is the goal: reached" in text
    assert "ONNX Runtime int8 did not run: no memory" in text
    assert "float16 was run by the engine 'torch'" in text


def test_the_page_is_made_from_the_file(measured, tmp_path):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "accuracy.md"
    page.write_text("before\n<!-- accuracy:begin -->\n<!-- accuracy:end -->\nafter\n")
    (tmp_path / "README.md").write_text(f"{readme_table.BEGIN}\n{readme_table.END}\n")
    assert readme_table.main([], root=tmp_path) == 0
    assert "No results are stored yet" in page.read_text()
    results = tmp_path / "benchmarks" / "results" / "accuracy"
    results.mkdir(parents=True)
    (results / "w18_small_v1.json").write_text(json.dumps(measured))
    assert readme_table.main(["--check"], root=tmp_path) == 1
    assert readme_table.main([], root=tmp_path) == 0
    assert "| HRNet-W18-small-v1 | int8 | 84.70 | 0.30 | 0.40 | 98.00 % |" in page.read_text()
    assert page.read_text().startswith("before\n") and page.read_text().endswith("after\n")
    assert readme_table.main(["--check"], root=tmp_path) == 0


def test_settled_moments_are_the_means_over_the_batches():
    net = nn.Sequential(nn.BatchNorm2d(2, momentum=0.01)).eval()
    images = torch.randn(8, 2, 6, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    accuracy.settle(net, images)
    batches = [part.transpose(0, 1).flatten(1) for part in images.split(accuracy.BATCH)]
    assert torch.allclose(net[0].running_mean, sum(b.mean(1) for b in batches) / 2, atol=1e-5)
    assert torch.allclose(net[0].running_var, sum(b.var(1) for b in batches) / 2, atol=1e-4)
    assert net[0].momentum == 0.01 and not net.training


@pytest.mark.skipif(not HAS_BYTES, reason="int8 needs the compiled part, and AVX2")
def test_a_tiny_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "SIZE", (64, 64))
    given = ["--networks", "w18_small_v1", "--steps", "2", "--seeds", "1", "--images", "2", "--no-peers",
             "--weights", str(tmp_path / "weights"), "--results", str(tmp_path)]  # fmt: skip
    assert accuracy.main(given) == 0
    measured = json.loads((tmp_path / "w18_small_v1.json").read_text())
    (run,), options = measured["runs"], measured["options"]
    assert (options["steps"], options["seeds"], options["images"], options["size"]) == (2, 1, 2, [64, 64])
    assert [r["name"] for r in run["rows"]] == [n for n in accuracy.CONTENDERS if n not in accuracy_table.PEERS]
    assert all(r["failure"] is None and 0 <= r["miou"] <= 1 for r in run["rows"])
    assert run["rows"][0]["agreement"] == 1 and run["rows"][1]["agreement"] > 0.999
    assert "points lost" in capsys.readouterr().out

    def no_training(*given):
        raise AssertionError("the network is there already")

    monkeypatch.setattr(accuracy, "train", no_training)
    plain, loss = accuracy.trained("w18_small_v1", 0, 2, tmp_path / "weights")
    assert loss == run["loss"] and not plain.training


@pytest.mark.skipif(not HAS_BYTES, reason="int8 needs the compiled part, and AVX2")
def test_a_row_is_not_called_int8_where_something_else_ran(monkeypatch):
    plain = randomize(hf.create_model("hrnet_w18_small_v1", task="segmentation", num_classes=4, fast=False).eval())
    calibration, images = torch.randn(2, 3, 64, 64), torch.randn(1, 3, 64, 64)
    labels = torch.zeros(1, 64, 64, dtype=torch.uint8)
    names = [accuracy_table.REFERENCE, accuracy_table.INT8]
    assert accuracy.rows(plain, calibration, images, labels, names)[1]["failure"] is None
    monkeypatch.setattr(accuracy.ways.planned, "why_not_bytes", lambda: "this CPU has no bytes")
    reference, int8 = accuracy.rows(plain, calibration, images, labels, names)
    assert reference["failure"] is None
    assert int8["failure"] == "this CPU has no bytes" and int8["miou"] is None and int8["agreement"] is None
