"""The GPU benchmark's program on the CPU: every part builds its contenders, and they agree."""

import json

import pytest
import torch

from benchmarks import gpu
from hrnet_fast.tolerances import OPERATOR


@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_builds_its_contenders(part, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gpu.SIZES, "512x1024", (16, 24))
    monkeypatch.setattr(gpu, "CACHE_BYTES", 1 << 16)
    arguments = ["--part", part, "--results", str(tmp_path), "--device", "cpu", "--cases", "w18-512x1024-bfloat16"]
    assert gpu.main(arguments) == 0
    (case,) = json.loads((tmp_path / f"{part}.json").read_text())["cases"]
    assert set(case["contenders"]) == {"eager folded", "hrnet_fast"}
    for entry in case["contenders"].values():
        assert entry["failure"] is None
        assert len(entry["seconds"]) == gpu.ROUNDS
    assert case["contenders"]["hrnet_fast"]["error"] < OPERATOR[torch.bfloat16]
    assert "hrnet_fast" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_so_without_a_gpu(capsys):
    assert gpu.main(["--part", "op"]) == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err
