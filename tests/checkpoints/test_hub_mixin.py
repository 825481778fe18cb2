"""Models on Hugging Face's hub by huggingface_hub's mixin: to a folder and back, and what a push uploads."""

import builtins
import json
import shutil

import pytest
import torch
from huggingface_hub import hub_mixin
from safetensors.torch import save_file

import hrnet_fast as hf
from hrnet_fast.checkpoints import hub
from hrnet_fast.checkpoints.header import read_header
from hrnet_fast.models import randomize
from support.model_cases import SMALL


def same(model, other):
    return all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "settings", [{"num_classes": 5, "align_corners": True}, {"task": "pose", "num_classes": 14, "in_chans": 4}]
)
def test_to_a_folder_and_back(settings, tmp_path):
    model = randomize(hf.create_model(SMALL, **settings))
    assert hf.save_pretrained(model, tmp_path) == tmp_path
    back = hf.from_pretrained(tmp_path, fast=False)
    assert back.recipe == model.recipe and not back.fast
    assert same(model, back)
    assert json.loads((tmp_path / "config.json").read_text())["model"] == SMALL
    assert "hrnet_fast" in (tmp_path / "README.md").read_text()
    assert read_header(tmp_path / "model.safetensors").in_chans == settings.get("in_chans", 3)


def test_what_a_converted_checkpoint_says_is_kept(tmp_path):
    hf.save_pretrained(hf.create_model(SMALL, num_classes=2), tmp_path / "a")
    model = hf.from_pretrained(tmp_path / "a")
    model.header = model.header._replace(mean=(0.1, 0.2, 0.3), class_names=("road", "sky"))
    hf.save_pretrained(model, tmp_path / "b")
    assert hf.from_pretrained(tmp_path / "b").header == model.header


def test_a_push_uploads_the_same_files(tmp_path, monkeypatch):
    class Api:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, private, exist_ok):
            assert private and exist_ok
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path, **others):
            shutil.copytree(folder_path, tmp_path / "uploaded")
            return "the commit"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    model = randomize(hf.create_model(SMALL, "pose"))
    assert hf.push_to_hub(model, "me/pose", private=True, token="secret") == "the commit"
    assert same(model, hf.from_pretrained(tmp_path / "uploaded"))


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected one of create_model.*got Linear"):
        hf.save_pretrained(torch.nn.Linear(2, 2), tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="weights without a header"):
        hf.from_pretrained(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no file .*model.safetensors"):
        hf.from_pretrained(tmp_path / "empty")
    hub._mixin.cache_clear()
    usual = builtins.__import__

    def without(name, *arguments):
        if name == "huggingface_hub":
            raise ImportError(name)
        return usual(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'hrnet_fast\[hub\]'"):
        hf.from_pretrained(tmp_path)
