"""Files of calibrations: every bit comes back, damaged and other files are refused."""

import random
import sys

import pytest
import torch

from hrnet_fast.runtime.calibration import Activation, Calibration, calibrate
from support.engine_cases import network
from support.model_cases import image


@pytest.fixture
def made():
    generator = torch.Generator().manual_seed(0)
    found = {}
    for k in range(5):
        mean, high = torch.randn(3 + k, generator=generator), torch.rand((), generator=generator).item() / 3 + 1e-9
        found[f"stage{k}.weight[{k}:{k + 3}]"] = Activation(-high if k % 2 else 0.0, high, mean)
    return Calibration(found, 17)


def same(one, two):
    assert one.images == two.images and one.activations.keys() == two.activations.keys()
    for name, a in one.activations.items():
        b = two.of(name)
        assert a[:2] == b[:2] and a.mean.dtype == b.mean.dtype and torch.equal(a.mean, b.mean)
    return True


def test_a_file_has_every_bit(made, tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "here" / "w18.safetensors"
    made.save(path)
    read = Calibration.load(path)
    assert same(made, read) and all(isinstance(a, Activation) for a in read.activations.values())
    first = path.read_bytes()
    read.save(path)
    assert path.read_bytes() == first
    Calibration(dict(reversed(made.activations.items())), 17).save(path)
    assert path.read_bytes() == first
    found = calibrate(network(fast=False), image())
    found.save(str(path))
    assert same(found, Calibration.load(str(path)))


def test_a_file_needs_no_numpy(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    made.save(tmp_path / "w18.safetensors")
    assert same(made, Calibration.load(tmp_path / "w18.safetensors"))


def test_a_damaged_file_is_refused(made, tmp_path):
    pytest.importorskip("safetensors")
    path, chance = tmp_path / "w18.safetensors", random.Random(0)
    made.save(path)
    whole, messages = path.read_bytes(), []
    for _ in range(300):
        data = bytearray(whole)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        else:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            read = Calibration.load(path)
        except ValueError as error:
            messages.append(str(error))
        else:
            assert same(made, read)  # what changed means nothing, as spaces in the header
    assert len(messages) > 250 and all(str(path) in message for message in messages)


def test_other_files_are_refused(made, tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    path = tmp_path / "w18.safetensors"
    with pytest.raises(FileNotFoundError):
        Calibration.load(path)
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="holds no calibration of hrnet_fast"):
        Calibration.load(path)
    for about in ("[]", "null", "{", '{"version": 1}', '{"version": 1, "images": 1, "ranges": []}'):
        save_file({"weight": torch.ones(3)}, path, {"hrnet_fast_calibration": about})
        with pytest.raises(ValueError, match="is a damaged calibration"):
            Calibration.load(path)
    save_file({"weight": torch.ones(3)}, path, {"hrnet_fast_calibration": '{"version": 2}'})
    with pytest.raises(ValueError, match="of version 2, known is 1"):
        Calibration.load(path)
    for call in (made.save, Calibration.load):
        with pytest.raises(ValueError, match="a name that ends in .safetensors, got"):
            call(tmp_path / "w18.json")
