"""batch_ray.py with two workers on this machine: ``make ray``, outside of the default tests, because Ray is large."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install '.[ray]'", exc_type=ImportError)

ROOT = Path(__file__).parent.parent


def run(*argv):
    command = [sys.executable, str(ROOT / "examples" / "batch_ray.py"), "--model", "hrnet_w18_small_v1", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)


def test_two_workers(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for k in range(6):
        Image.effect_noise((64, 48 + 16 * (k % 2)), 64).save(tmp_path / "in" / "deep" / f"{k}.png")
    arguments = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "2", "--batch", "2"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 pictures written" in done.stdout
    for k in range(6):
        with Image.open(tmp_path / "out" / "deep" / f"{k}.png.png") as classes:
            assert classes.size == (64, 48 + 16 * (k % 2))
            assert np.asarray(classes).max() < 19
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    done = run(*arguments)
    assert done.returncode == 1
    assert "bad.jpg" in done.stderr and "6 of 7 pictures written" in done.stdout
