"""``patch-report --timm`` and ``bench --timm``: what the drop-in does to the model that somebody runs today."""

import json

import pytest

from hrnet_fast.cli import main

pytestmark = pytest.mark.usefixtures("timm")


def run(capsys, *arguments):
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_patch_report(capsys):
    code, out, _ = run(capsys, "patch-report", "--timm", "hrnet_w18_small", "--size", "64x96")
    assert code == 0
    assert "timm style, 4 streams to 4, nearest" in out
    assert "modules patched" in out
    assert "allowed: 1e-04" in out


def test_patch_report_of_every_module(capsys):
    _, short, _ = run(capsys, "patch-report", "--timm", "hrnet_w18_small", "--size", "64x64")
    _, long, _ = run(capsys, "patch-report", "--timm", "hrnet_w18_small", "--size", "64x64", "--all")
    assert len(long.splitlines()) > len(short.splitlines())
    assert "stage4.0.branches.3.1" in long


def test_bench(capsys, tmp_path):
    results = tmp_path / "timm.json"
    code, out, _ = run(capsys, "bench", "--timm", "hrnet_w18_small", "--size", "64x64", "--batch", "2", "--budget", "1",
                       "--json", str(results))  # fmt: skip
    assert code == 0
    assert "hrnet_w18_small" in out
    (case,) = json.loads(results.read_text())["cases"]
    assert [entry["name"] for entry in case["entries"]] == [
        "eager",
        "eager channels_last",
        "hrnet_fast",
        "hrnet_fast.optimize",
    ]
    assert case["entries"][-1]["engine"] in ("planned", "torch")
    assert all(entry["agrees"] and entry["seconds"]["median"] > 0 for entry in case["entries"])
    assert case["batch"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("patch-report",), "--timm"),
        (("patch-report", "--timm", "hrnet_w19"), "hrnet_w18"),
        (("patch-report", "--timm", "hrnet_w18_small", "--size", "72x96"), "cannot take it"),
        (("bench", "--timm", "resnet50"), "hrnet"),
        (("bench", "--timm", "hrnet_w18_small", "--size", "72x96"), "multiples of 32"),
        (("bench", "--timm", "hrnet_w18_small", "--checkpoint", __file__), "random weights only"),
    ],
)
def test_bad_input(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
