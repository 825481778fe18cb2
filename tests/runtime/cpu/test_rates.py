"""Which form a network in half precision takes: measured, kept in a file, and never slower than float32 by much."""

import json

import pytest
import torch

import hrnet_fast as hf
from hrnet_fast.models import randomize
from hrnet_fast.runtime.cpu import planned, rates
from hrnet_fast.runtime.cpu.rates import Rates, best
from hrnet_fast.tolerances import MODEL, relative_error

FORMS = ("tiles", "pairs", "half", "float32")


def forms(*names):
    """Two that take no time."""
    return {name: lambda graph, steps: lambda images: images for name in names}


def measured_anew(graph, steps):
    pytest.fail("measured again")


def test_measured_once_and_kept(tmp_path):
    first = Rates(tmp_path / "folder" / rates.FILE)
    found = first.of("what", forms("half", "float32"))
    assert list(found) == ["half", "float32"] and min(found.values()) > 0 and first.trouble is None
    assert first.of("what", dict.fromkeys(found, measured_anew)) == found
    later = Rates(tmp_path / "folder" / rates.FILE)
    assert later.of("what", dict.fromkeys(found, measured_anew)) == found
    later.of("else", forms("half"))
    assert len(json.loads((tmp_path / "folder" / rates.FILE).read_text())) == 2


@pytest.mark.parametrize(
    ("content", "trouble"),
    [("{", "cannot be read"), ("[]", "something else"), ("\0\xff", "cannot be read"), (None, "cannot be read")],
)
def test_a_file_that_is_no_file_of_rates(tmp_path, content, trouble):
    file = tmp_path / rates.FILE
    if content is None:
        file.mkdir()
    else:
        file.write_text(content, encoding="latin1")
    found = Rates(file)
    assert list(found.of("what", forms("half"))) == ["half"]
    assert str(file) in found.trouble
    if content is not None:
        assert trouble in found.trouble
        assert Rates(file).of("what", {"half": measured_anew})  # it was written anew


@pytest.mark.parametrize(
    "foreign",
    [
        None,
        3,
        [],
        {},
        {"half": 1.0, "float32": 1.0},
        {"half": "fast"},
        {"half": -1.0},
        {"half": float("nan")},
        {"half": True},
    ],
    ids=str,
)
def test_an_entry_that_makes_no_sense_is_measured_again(tmp_path, foreign):
    file = tmp_path / rates.FILE
    key = f"what; {rates.cpu_model()}; {torch.get_num_threads()} threads"
    file.write_text(json.dumps({key: foreign}))
    found = Rates(file).of("what", forms("half"))
    assert list(found) == ["half"] and 0 < found["half"] < 1e3
    assert json.loads(file.read_text()) == {key: found}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    found = Rates(tmp_path / "file" / rates.FILE)
    assert list(found.of("what", forms("half"))) == ["half"] and "cannot be" in found.trouble


def test_the_first_of_those_that_are_as_fast_as_the_fastest():
    assert best({"tiles": 1.0, "half": 0.95, "float32": 2.0}) == "tiles"
    assert best({"pairs": 2.0, "half": 1.05, "float32": 1.0}) == "half"
    assert best({"half": 1.5, "float32": 1.0}) == "float32"


def there(form):
    return (form != "tiles" or planned.has_tiles()) and (form != "pairs" or torch.ops.hrnet_fast.has_bfloat16_pairs())


@pytest.mark.planned
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_form_computes_the_same(dtype):
    """The small network that is timed, in all forms that this machine has, beside float32."""
    graph, steps = rates._small_network()
    images = [torch.randn(v.shape) for v in graph.inputs]
    (expected,) = planned.Planned(torch.float32, False, None).prepare(graph, steps)(images)
    assert expected.std() > 0.1
    for form in planned.milliseconds_of_forms(dtype):
        (y,) = planned.Planned(dtype, True, None, form).prepare(graph, steps)(images)
        error = relative_error(y, expected)
        assert error < (1e-5 if form == "float32" else MODEL[dtype]), (form, error)


@pytest.mark.planned
@pytest.mark.parametrize("form", FORMS)
def test_optimize_takes_the_fastest_form(monkeypatch, form):
    if not there(form):
        form = "half"
    monkeypatch.setattr(planned, "milliseconds_of_forms", lambda dtype: {f: 1.0 if f == form else 9.0 for f in FORMS})
    model = randomize(hf.create_model("hrnet_w18_small", task="segmentation")).eval()
    x = torch.randn(1, 3, 64, 96)
    fast = hf.optimize(model, x, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
    y = fast(x)
    with torch.no_grad():
        expected = model.double()(x.double())
    error = relative_error(y, expected)
    assert fast.engine == "planned" and y.dtype == torch.bfloat16 and error < MODEL[torch.bfloat16]
    used = {row.algorithm.rpartition(", ")[2] for row in fast.profile(x)}
    assert ("tiles" in used, "pairs" in used) == (form == "tiles", form == "pairs")
    if form == "float32":
        assert error < 4e-3  # rounded at the end alone
        assert "in float32 inside" in fast.reason and "float32 1.00 ms" in fast.reason
    else:
        assert fast.reason is None
