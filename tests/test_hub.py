"""hubconf.py: torch.hub loads every configuration from a checkout."""

from pathlib import Path

import pytest
import torch

import hrnet_fast as hf

ROOT = Path(__file__).parent.parent


def load(name: str, **arguments):
    return torch.hub.load(str(ROOT), name, source="local", **arguments)


def test_loads_a_network_with_its_arguments():
    model = load("hrnet_w18_small_v1", task="pose", num_classes=3).eval()
    assert type(model) is type(hf.create_model("hrnet_w18_small_v1", "pose"))
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 32)).shape == (1, 3, 16, 8)


def test_every_configuration_has_its_own_entry_point(monkeypatch):
    monkeypatch.setattr(hf, "create_model", lambda name, **arguments: (name, arguments))
    for name in hf.list_models():
        assert load(name, num_classes=2) == (name, {"num_classes": 2})


def test_an_unknown_name_is_an_error():
    with pytest.raises(RuntimeError, match="hrnet_w19"):
        load("hrnet_w19")
