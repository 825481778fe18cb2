"""Loading weights: layouts that work, and files that do not."""

import pickle

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.models import randomize

SMALL = "hrnet_w18_small_v1"


@pytest.fixture(scope="module")
def source():
    return randomize(hf.create_model(SMALL))


def bare(state):
    return state


def data_parallel(state):
    return {f"module.{k}": v for k, v in state.items()}


def full_model(state):
    """The official FullModel: weights beside those of the loss."""
    return {**{f"model.{k}": v for k, v in state.items()}, "loss.criterion.weight": torch.ones(19)}


def full_model_in_training(state):
    return {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in full_model(state).items()}, "best_mIoU": 0.7}


def under_model(state):
    return {"model": state, "args": "none"}


def without_counters(state):
    """Files from before PyTorch 0.4.1."""
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def half(state):
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


LAYOUTS = [bare, data_parallel, full_model, full_model_in_training, under_model, without_counters, half]


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(tmp_path, source, layout, fast):
    torch.save(layout(source.state_dict()), tmp_path / "weights.pth")
    model = hf.create_model(SMALL, fast=fast)
    report = hf.load_checkpoint(model, tmp_path / "weights.pth")
    assert report == ([], [], [])
    for (key, tensor), loaded in zip(source.state_dict().items(), model.state_dict().values(), strict=True):
        if not key.endswith("num_batches_tracked"):
            assert torch.allclose(loaded, tensor, rtol=1e-3, atol=1e-3 if layout is half else 0)


def test_safetensors(tmp_path, source):
    save = pytest.importorskip("safetensors.torch").save_file
    save(source.state_dict(), tmp_path / "weights.safetensors")
    model = hf.create_model(SMALL, checkpoint=tmp_path / "weights.safetensors")
    assert torch.equal(model.last_layer[3].weight, source.last_layer[3].weight)


def test_a_model_with_the_prefix_itself_keeps_it(tmp_path):
    wrapped = nn.ModuleDict({"model": nn.Conv2d(2, 2, 1)})
    torch.save(wrapped.state_dict(), tmp_path / "weights.pth")
    assert hf.load_checkpoint(wrapped, str(tmp_path / "weights.pth")) == ([], [], [])


def test_a_mismatch_lists_the_keys_and_changes_nothing(tmp_path, source):
    state = dict(source.state_dict())
    state["surplus.weight"] = state.pop("conv1.weight")
    state["last_layer.3.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "weights.pth")
    model = hf.create_model(SMALL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        hf.load_checkpoint(model, tmp_path / "weights.pth")
    for part in (
        "1 missing: conv1.weight",
        "1 unexpected: surplus.weight",
        "1 mismatched: last_layer.3.bias [7] -> [19]",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    report = hf.load_checkpoint(model, tmp_path / "weights.pth", strict=False)
    assert report.missing == ["conv1.weight"] and report.unexpected == ["surplus.weight"]
    assert torch.equal(model.conv2.weight, source.conv2.weight)


@pytest.mark.parametrize("strict", [True, False])
def test_a_model_on_the_meta_device_is_refused(tmp_path, source, strict):
    """It would report success and hold nothing; after ``to_empty``, as the message says, it holds the weights."""
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    whole, partly = hf.create_model(SMALL).to("meta"), hf.create_model(SMALL)
    partly.last_layer.to("meta")
    for model, first in ((whole, "conv1.weight"), (partly, "last_layer.0.weight")):
        with pytest.raises(ValueError, match=rf"model: on the meta device.*\({first}.*to_empty\(device='cpu'\)"):
            hf.load_checkpoint(model, tmp_path / "weights.pth", strict=strict)
    model = whole.to_empty(device="cpu")
    assert hf.load_checkpoint(model, tmp_path / "weights.pth", strict=strict) == ([], [], [])
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    with torch.device("meta"), pytest.raises(ValueError, match="model: on the meta device"):
        hf.create_model(SMALL, checkpoint=tmp_path / "weights.pth")


def test_long_lists_are_cut(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"missing: conv1.weight, .* and \d+ more"):
        hf.load_checkpoint(hf.create_model(SMALL), tmp_path / "weights.pth")


class Dangerous:
    def __reduce__(self):
        return print, ("this must not be printed",)


def write_truncated(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FOREIGN = [
    ("truncated.pth", write_truncated, "truncated"),
    ("empty.pth", lambda path, state: path.write_bytes(b""), "truncated"),
    ("text.pth", lambda path, state: path.write_text("not weights"), "not a file of"),
    ("code.pth", lambda path, state: path.write_bytes(pickle.dumps(Dangerous())), "run code"),
    ("module.pth", lambda path, state: torch.save(nn.Conv2d(1, 1, 1), path), "it holds a torch.nn.modules.conv.Conv2d"),
    ("script.pth", lambda path, state: torch.jit.script(nn.Conv2d(1, 1, 1)).save(path), "is a TorchScript archive"),
    ("list.pth", lambda path, state: torch.save([1, 2], path), "expected a dictionary of tensors .* found list"),
    ("settings.pth", lambda path, state: torch.save({"lr": 0.1}, path), "found the keys lr"),
    ("text.safetensors", lambda path, state: path.write_text("not weights"), "safetensors"),
]


@pytest.mark.filterwarnings("error:.*pickle protocol", "error:.*TorchScript")
@pytest.mark.parametrize(("name", "write", "message"), FOREIGN, ids=[row[0] for row in FOREIGN])
def test_foreign_files_raise_a_clear_error(tmp_path, source, capsys, name, write, message):
    write(tmp_path / name, source.state_dict())
    with pytest.raises(ValueError, match=message):
        hf.load_checkpoint(hf.create_model(SMALL), tmp_path / name)
    assert "must not be printed" not in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        hf.create_model(SMALL, checkpoint=tmp_path / "nowhere.pth")
