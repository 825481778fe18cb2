"""The table of backends is the order in which they are asked, and all that has to be touched for a new one."""

from types import SimpleNamespace

import pytest
import torch

import hrnet_fast as hf
from hrnet_fast.ops import backends
from hrnet_fast.ops.backends import preferences, reference

INPUTS, WEIGHTS = [torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2)], [None, torch.ones(2, 3)]


@pytest.fixture
def mine(monkeypatch):
    """A backend put first in the table; ``objection`` may be set, ``served`` counts its calls."""
    backend = SimpleNamespace(objection=None, served=0)

    def run(call):
        backend.served += 1
        return reference.run(call)

    backend.run, backend.why_not = run, lambda call: backend.objection
    monkeypatch.setattr(backends, "TABLE", {"mine": backend, **backends.TABLE})
    monkeypatch.delenv("HRNET_FAST_BACKEND", raising=False)
    return backend


def test_auto_takes_the_first_of_the_table(mine):
    assert hf.exchange(INPUTS, WEIGHTS).eq(4).all()
    assert mine.served == 1
    mine.objection = "it is Sunday"
    assert hf.exchange(INPUTS, WEIGHTS).eq(4).all()
    assert mine.served == 1
    with pytest.raises(RuntimeError, match="backend 'mine' cannot serve this call: it is Sunday"):
        hf.exchange(INPUTS, WEIGHTS, backend="mine")


def test_an_exchange_unit_takes_it_too(mine):
    unit = hf.ExchangeUnit([4, 8]).eval()
    with torch.inference_mode():
        unit([torch.ones(1, 4, 8, 8), torch.ones(1, 8, 4, 4)])
    assert mine.served == 2  # one for each stream


def test_auto_takes_it_for_any_device(mine):
    hf.exchange([x.to("meta") for x in INPUTS], [None, WEIGHTS[1].to("meta")])
    assert mine.served == 1


def test_a_named_backend_is_taken_all_the_same(mine):
    hf.exchange(INPUTS, WEIGHTS, backend="reference")
    assert mine.served == 0


def test_the_environment_may_name_it(mine, monkeypatch):
    monkeypatch.setattr(backends, "TABLE", dict(reversed(backends.TABLE.items())))  # last
    hf.exchange(INPUTS, WEIGHTS)
    assert mine.served == 0
    monkeypatch.setenv("HRNET_FAST_BACKEND", "mine")
    hf.exchange(INPUTS, WEIGHTS)
    assert mine.served == 1


@pytest.mark.parametrize(
    ("kind", "capability", "expected"),
    [
        ("exchange", (9, 0), ["mine", "cpu", "cuda", "triton", "reference"]),
        ("head", (9, 0), ["mine", "cpu", "triton", "cuda", "reference"]),
        ("head", (7, 5), ["mine", "cpu", "cuda", "triton", "reference"]),
        ("a kind without rows", (9, 0), ["mine", "cpu", "cuda", "triton", "reference"]),
    ],
)
def test_exceptions_leave_the_others_in_place(mine, kind, capability, expected):
    assert preferences.arrange(list(backends.TABLE), kind, capability) == expected


def test_exceptions_name_backends_of_the_table():
    for row in preferences.GPU:
        assert set(row.backends) <= set(backends.TABLE), row
        default = preferences.arrange(list(backends.TABLE), "a kind without rows", row.capability)
        assert preferences.arrange(list(backends.TABLE), row.kind, row.capability) != default, f"{row} changes nothing"


def test_an_argmax_belongs_to_a_backend(mine):
    """Those that have the operator, in the order of the table; the message of a wrong name lists them."""
    with pytest.raises(ValueError, match="expected 'auto' or one of 'cpu', 'triton', 'reference', got 'mine'"):
        hf.interpolate_argmax(torch.ones(1, 3, 4, 4), (8, 8), backend="mine")
    mine.interpolate_argmax = lambda *arguments: "mine"
    mine.why_not_argmax = lambda scores: mine.objection
    assert hf.interpolate_argmax(torch.ones(1, 3, 4, 4), (8, 8), backend="mine") == "mine"
