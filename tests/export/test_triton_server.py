"""What Triton Inference Server is given, read with the schema of its own client; and the examples around it."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

import hrnet_fast as hf
from hrnet_fast.cli import main
from hrnet_fast.export import triton_server
from hrnet_fast.export.metadata import describe
from hrnet_fast.export.record import record
from hrnet_fast.models import randomize
from support.model_cases import SMALL
from support.patching_cases import FAMILIES

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def parsed(text):
    return text_format.Parse(text, ModelConfig())


def test_a_repository(tmp_path, capsys):
    given = ["export", "--triton", str(tmp_path), "--model", SMALL, "--num-classes", "7", "--max-batch", "3"]
    assert main(given) == 0
    folder = tmp_path / f"{SMALL}-segmentation"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")) == ["1", "1/model.onnx", "config.pbtxt"]
    config = parsed((folder / "config.pbtxt").read_text())
    assert (config.name, config.platform, config.max_batch_size) == (folder.name, "onnxruntime_onnx", 3)
    assert [(t.name, list(t.dims)) for t in config.input] == [("image", [3, -1, -1])]
    assert [(t.name, list(t.dims)) for t in config.output] == [("logits", [7, -1, -1])]
    assert config.input[0].data_type == config.output[0].data_type == 11  # TYPE_FP32
    assert config.HasField("dynamic_batching")
    assert [g.kind for g in config.instance_group] == [ModelInstanceGroup.KIND_CPU]
    assert json.loads(config.parameters["mean"].string_value) == [0.485, 0.456, 0.406]
    assert json.loads(config.parameters["num_classes"].string_value) == 7
    capsys.readouterr()
    assert main(given) == 2
    assert "exists already; --force replaces it" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["onnx", "aoti"])
@pytest.mark.parametrize("size", [None, (64, 96)], ids=["any", "64x96"])
def test_the_config_says_what_the_file_takes_and_gives(format, size):
    """Of a pyramid with five outputs; the PyTorch backend of the server has names of its own for tensors."""
    model = FAMILIES["mmdet"].make()
    recorded = record(model, size=size)
    metadata = describe(model, recorded, (0, 0, 0), (1, 1, 1))
    config = parsed(triton_server.config("a", recorded, format, metadata, 8, gpu=True))
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, 64, 96))
    expected = [[y.shape[1], *(y.shape[2:] if size else (-1, -1))] for y in outputs]
    assert [list(t.dims) for t in config.output] == expected
    assert list(config.input[0].dims) == [3, *(size or (-1, -1))]
    names = [f"output{k}" for k in range(5)] if format == "onnx" else [f"OUTPUT__{k}" for k in range(5)]
    assert [t.name for t in config.output] == names
    assert config.input[0].name == ("image" if format == "onnx" else "INPUT__0")
    assert config.instance_group[0].kind == ModelInstanceGroup.KIND_GPU


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"name": "a/b"}, "name: expected letters"),
        ({"name": "a", "format": "pt2"}, "format: Triton Inference Server serves"),
        ({"name": "a", "max_batch": 0}, "max_batch: expected at least 1"),
    ],
)
def test_wrong_arguments(keywords, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        triton_server.save_repository(FAMILIES["pose"].make(), tmp_path, **keywords)


def test_someone_elses_folder_is_never_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not replaced"):
        triton_server.save_repository(FAMILIES["pose"].make(), tmp_path, "a", size=(32, 32), force=True)
    assert (tmp_path / "a" / "thesis.tex").read_text() == "years of work"


class Server:
    """What the client sees of a server."""

    def __init__(self, config, model):
        self.config, self.model = config, model

    def get_model_config(self, name):
        return type("Response", (), {"config": self.config})

    def infer(self, name, inputs, outputs):
        image = np.frombuffer(inputs[0]._get_content(), np.float32).reshape(inputs[0].shape())
        with torch.no_grad():
            logits = self.model(torch.tensor(image)).numpy()
        return type("Result", (), {"as_numpy": staticmethod(lambda name: {"logits": logits}[name])})


def test_the_client(tmp_path):
    """Against a server of its own protocol's messages: the classes are those of the network."""
    import tritonclient.grpc as grpc

    client = load(EXAMPLES / "serve_triton" / "client.py")
    model = randomize(hf.create_model(SMALL)).eval()
    recorded = record(model)
    config = parsed(triton_server.config("m", recorded, "onnx", describe(model, recorded, (0.5, 0.4, 0.3), (1, 1, 2))))
    Image.effect_noise((70, 45), 64).convert("RGB").save(tmp_path / "a.png")
    logits = client.ask(Server(config, model), grpc, "m", tmp_path / "a.png", None)
    pixels = torch.from_numpy(np.asarray(Image.open(tmp_path / "a.png"))).permute(2, 0, 1).float() / 255
    image = (pixels - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([1, 1, 2.0]).view(3, 1, 1)
    with torch.no_grad():
        expected = model(image[None])
    assert np.array_equal(client.classes(logits), expected[0].argmax(0).numpy())


def test_the_client_without_a_server(tmp_path, capsys):
    client = load(EXAMPLES / "serve_triton" / "client.py")
    assert client.main([str(tmp_path / "none.png"), "--server", "localhost:1"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_worker_of_the_ray_example(tmp_path):
    """Without Ray: bytes to pixels, batches of mixed sizes to PNGs, and a file that is no picture."""
    batch_ray = load(EXAMPLES / "batch_ray.py")
    sizes = [(40, 64), (33, 50), (40, 64)]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for k, (height, width) in enumerate(sizes):
        Image.effect_noise((width, height), 64).save(tmp_path / "in" / "deep" / f"{k}.png")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    rows = [batch_ray.decode({"path": p, "bytes": Path(p).read_bytes()}) for p in batch_ray.find(tmp_path / "in")]
    worker = batch_ray.Segment(SMALL, 5, None, str(tmp_path / "out"), str(tmp_path / "in"), 1)
    done = worker({key: [row[key] for row in rows] for key in rows[0]})
    assert [bool(error) for error in done["error"]] == [True, False, False, False]
    for k, (height, width) in enumerate(sizes):
        with Image.open(tmp_path / "out" / "deep" / f"{k}.png.png") as classes:
            assert (classes.size, classes.mode) == ((width, height), "L")
            assert np.asarray(classes).max() < 5
    assert len(list((tmp_path / "out").rglob("*.*"))) == 3


@pytest.mark.parametrize(("argv", "message"), [
    (["none", "--out", "o"], "there is no folder none"),
    ([".", "--out", "o"], "no file in . ends in one of"),
])  # fmt: skip
def test_bad_input_of_the_ray_example(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert load(EXAMPLES / "batch_ray.py").main(argv) == 2
    assert message in capsys.readouterr().err
