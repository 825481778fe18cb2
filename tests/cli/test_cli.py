"""The command line: what it prints, its exit codes, and one clear line for everything that a user can get wrong."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from hrnet_fast import create_model
from hrnet_fast.bench import networks
from hrnet_fast.cli import main, verify
from hrnet_fast.models import TASKS
from hrnet_fast.ops import backends
from hrnet_fast.tolerances import MODEL


@pytest.fixture
def small_image(tmp_path):
    path = tmp_path / "small.png"
    Image.effect_noise((70, 45), 64).save(path)
    return str(path)


def fails(capsys, *argv: str) -> str:
    """The one line on stderr of a command that must end with 2."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("hrnet-fast: error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return lines[0]


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    assert all(name in out for name in backends.TABLE)


def test_info_says_why_a_backend_cannot_run(capsys, monkeypatch):
    monkeypatch.setattr(backends.TABLE["cpu"], "why_not", lambda call: "a reason to be read")
    assert main(["info"]) == 0
    assert "cannot run: a reason to be read" in capsys.readouterr().out


def test_verify(capsys, monkeypatch):
    monkeypatch.setattr(verify, "MODELS", verify.MODELS[:1])
    monkeypatch.setattr(verify, "OPTIMIZED_TASKS", ("segmentation",))
    monkeypatch.setattr(verify, "OPTIMIZED_DTYPES", (torch.float32,))
    assert main(["verify"]) == 0
    out = capsys.readouterr().out
    assert "0 off" in out
    assert "hrnet_w18_small_v1" in out
    assert "exchange" in out
    assert "hrnet_w18_small_v1 segmentation" in out
    assert "optimize, " in out


@pytest.mark.parametrize("task", TASKS)
def test_verify_compares_optimize_of_every_task(task, monkeypatch):
    assert verify.OPTIMIZED_TASKS == TASKS
    monkeypatch.setattr(verify, "OPTIMIZED_TASKS", (task,))
    monkeypatch.setattr(verify, "OPTIMIZED_DTYPES", (torch.float32,))
    lines, reasons = [], {}
    assert list(verify._optimized(lines, reasons, "cpu")) == [None]
    (line,) = lines
    assert line.cases == 2
    assert line.misses == []
    assert ("torch" in line.backend) == bool(reasons)


def test_verify_sees_a_wrong_optimize_and_constant_outputs(monkeypatch):
    monkeypatch.setattr(verify, "OPTIMIZED_TASKS", ("segmentation",))
    monkeypatch.setattr(verify, "OPTIMIZED_DTYPES", (torch.float32,))
    monkeypatch.setattr(verify, "OPTIMIZED_IMAGES", {"bilinear": ((1, 32, 64),)})

    class Wrong:
        engine, reason = "planned", None

        def __init__(self, model, example, dtype, calibration=None):
            self.model = model

        def __call__(self, image):
            with torch.inference_mode():
                return 1.01 * self.model(image)

    monkeypatch.setattr(verify, "optimize", Wrong)
    lines = []
    list(verify._optimized(lines, {}, "cpu"))
    assert len(lines[0].misses) == 1
    monkeypatch.setattr(verify, "randomize", lambda model, seed: model)  # the official initialization
    list(verify._optimized(lines, {}, "cpu"))
    assert "almost constant: inf" in lines[1].misses[0]


def test_verify_fails_on_a_wrong_backend(capsys, monkeypatch):
    monkeypatch.setattr(verify, "MODELS", ())
    monkeypatch.setattr(verify, "OPTIMIZED_TASKS", ())
    correct = backends.TABLE["reference"].run
    monkeypatch.setattr(backends.TABLE["reference"], "run", lambda call: correct(call) * 1.01)
    assert main(["verify"]) == 1
    assert "off: exchange, reference on cpu, float32, stage-4 c=18" in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_bench_writes_results_and_plot(capsys, tmp_path, small_image, task):
    files = ["--json", str(tmp_path / "made" / "b.json"), "--plot", str(tmp_path / "made" / "b.png")]
    small = ["--model", "hrnet_w18_small_v1", "--image", small_image, "--size", "64x96", "--budget", "0.1"]
    assert main(["bench", *small, "--task", task, "--batch", "2", *files]) == 0
    out = capsys.readouterr().out
    assert "hrnet_fast.optimize: engine '" in out
    assert "almost constant" not in out
    assert "parameters" in out
    assert "exchange units" in out
    (case,) = json.loads((tmp_path / "made" / "b.json").read_text())["cases"]
    assert [entry["name"] for entry in case["entries"]] == [
        "eager",
        "eager channels_last",
        "hrnet_fast",
        "hrnet_fast.optimize",
    ]
    assert all(entry["agrees"] and entry["peak_memory_bytes"] > 0 for entry in case["entries"])
    optimized = case["entries"][-1]
    assert optimized["engine"] in ("planned", "torch")
    assert (optimized["engine"] == "planned") == (optimized["engine_reason"] is None)
    assert optimized["speedup_over"]["eager"]["median"] > 0
    assert ("same class" in out) == task.startswith("segmentation")
    assert case["batch"] == 2
    assert case["params"] > 0
    assert case["gflops_published"] > 0
    with Image.open(tmp_path / "made" / "b.png") as picture:
        assert picture.width > 600


def test_bench_in_int8_is_a_row_beside_float32(capsys, tmp_path, small_image):
    """Calibrated with other views of the photograph, within the tolerance of int8."""
    small = ["--model", "hrnet_w18_small_v1", "--image", small_image, "--size", "64x96", "--budget", "0.1"]
    assert main(["bench", *small, "--dtype", "int8", "--json", str(tmp_path / "b.json")]) == 0
    (case,) = json.loads((tmp_path / "b.json").read_text())["cases"]
    names = ["eager", "eager channels_last", "hrnet_fast", "hrnet_fast.optimize", "hrnet_fast.optimize, int8"]
    assert [entry["name"] for entry in case["entries"]] == names
    integers = case["entries"][-1]
    assert (integers["dtype"], integers["tolerance"]) == ("int8", MODEL[torch.int8])
    assert integers["seconds"]["median"] > 0
    if integers["engine_reason"] is None:  # int8 it is, not another dtype that is faster
        assert 1e-4 < integers["error"] <= MODEL[torch.int8]
    assert all(entry["error"] <= MODEL[torch.float32] for entry in case["entries"][:-1])
    assert "float32 and int8" in capsys.readouterr().out


def test_bench_has_a_model_and_a_size_for_every_task():
    assert tuple(networks.DEFAULTS) == TASKS
    for task, (model, size) in networks.DEFAULTS.items():
        with torch.device("meta"):
            made = create_model(model, task=task)
            made.check_image(torch.empty(1, 3, *(size or (427, 640))))  # the photograph's own size


def test_bench_takes_the_backend_that_was_named(capsys, small_image, monkeypatch):
    ran = []
    correct = backends.TABLE["reference"].run
    monkeypatch.setattr(backends.TABLE["reference"], "run", lambda call: ran.append(1) or correct(call))
    small = ["--model", "hrnet_w18_small_v1", "--image", small_image, "--size", "32x32", "--budget", "0.1"]
    assert main(["bench", *small, "--backend", "reference"]) == 0
    assert ran


def test_no_command(capsys):
    assert "required" in fails(capsys)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        pytest.param(["--image", "missing.jpg"], "image missing.jpg: there is no such file", id="image missing"),
        pytest.param(["--model", "hrnet_w19"], "unknown model 'hrnet_w19'; did you mean hrnet_w", id="unknown model"),
        pytest.param(["--model", "zzz"], "there are hrnet_w18", id="nothing like a model"),
        pytest.param(["--size", "31x64"], "too small for HRNet's four streams", id="size too small"),
        pytest.param(["--size", "64"], "expected HEIGHTxWIDTH", id="size unreadable"),
        pytest.param(["--dtype", "int4"], "argument --dtype: invalid choice: 'int4'", id="dtype"),
        pytest.param(["--dtype", "int8", "--device", "cuda"], "dtype int8: on CPUs only", id="int8 elsewhere"),
        pytest.param(["--task", "poetry"], "argument --task: invalid choice: 'poetry'", id="task"),
        pytest.param(["--backend", "magic"], "argument --backend: invalid choice: 'magic'", id="backend"),
        pytest.param(["--batch", "0"], "batch 0: must be at least 1", id="batch"),
        pytest.param(["--batch", "x"], "argument --batch: invalid int value: 'x'", id="batch not a number"),
        pytest.param(["--threads", "0"], "threads 0: must be at least 1", id="threads"),
        pytest.param(["--budget", "-1"], "budget -1: must be a number of seconds above 0", id="budget"),
        pytest.param(["--device", "tpu"], "device 'tpu': expected cpu or cuda", id="device"),
        pytest.param(["--checkpoint", "none.pth"], "checkpoint none.pth: there is no such file", id="checkpoint"),
        pytest.param(["--frobnicate"], "unrecognized arguments: --frobnicate", id="option"),
    ],
)
def test_bad_input(capsys, argv, expected):
    assert expected in fails(capsys, "bench", *argv)


@pytest.mark.parametrize("content", [b"not a picture", b"", b"\x89PNG\r\n\x1a\nbroken", b"\xff\xd8\xff\xe0 broken"])
def test_unreadable_image(capsys, tmp_path, content):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    assert "bad.jpg" in fails(capsys, "bench", "--image", str(path))


def test_truncated_image(capsys, tmp_path, small_image):
    path = tmp_path / "half.png"
    with open(small_image, "rb") as whole:
        path.write_bytes(whole.read()[:800])
    assert "half.png: cannot be read" in fails(capsys, "bench", "--image", str(path))


def test_image_too_small(capsys, tmp_path):
    Image.new("RGB", (640, 20)).save(tmp_path / "flat.png")
    assert "size 20x640: too small" in fails(capsys, "bench", "--image", str(tmp_path / "flat.png"))


def test_image_is_a_folder(capsys, tmp_path):
    assert "cannot be read" in fails(capsys, "bench", "--image", str(tmp_path))


def test_checkpoint_of_something_else(capsys, tmp_path, small_image):
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.ones(3)}, path)
    assert "checkpoint" in fails(capsys, "bench", "--image", small_image, "--model", "hrnet_w18_small_v1",
                                 "--checkpoint", str(path))  # fmt: skip


def test_results_that_cannot_be_written(capsys, tmp_path, small_image):
    (tmp_path / "file").write_text("in the way")
    target = str(tmp_path / "file" / "b.json")
    assert "cannot be written" in fails(capsys, "bench", "--image", small_image, "--json", target)


def test_backend_that_cannot_run(capsys, monkeypatch):
    monkeypatch.setattr(backends.TABLE["cpu"], "why_not", lambda call: "a reason to be read")
    assert "backend 'cpu' cannot run here: a reason to be read" in fails(capsys, "bench", "--backend", "cpu")


def test_scikit_learn_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "pass --image FILE, or pip install scikit-learn" in fails(capsys, "bench")


def test_module_is_the_command_and_imports_only_what_it_needs():
    program = ("import sys, runpy; sys.argv = ['hrnet-fast', '--version']\n"
               "try: runpy.run_module('hrnet_fast', run_name='__main__')\n"
               "except SystemExit as end: assert not end.code, end.code\n"
               "print([m for m in ('sklearn', 'matplotlib', 'PIL') if m in sys.modules])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version, imported = done.stdout.splitlines()
    assert version.startswith("hrnet-fast ")
    assert imported == "[]"
