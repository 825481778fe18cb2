"""A model repository for NVIDIA Triton Inference Server (not the compiler of the same name): the file and its config.

The fields are those of ``protobuf/model_config.proto`` in triton-inference-server/common. The server's ONNX Runtime
backend takes names from the file; its PyTorch backend runs AOTInductor packages (platform "torch_aoti"), whose tensors
it calls INPUT__0, OUTPUT__0, OUTPUT__1.
"""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from torch import nn

from hrnet_fast import export, files
from hrnet_fast.export import onnx_file
from hrnet_fast.export.metadata import describe
from hrnet_fast.export.record import Recorded, record

CONFIG = "config.pbtxt"
PLATFORMS = {"onnx": "onnxruntime_onnx", "aoti": "torch_aoti"}
MODEL_FILES = {"onnx": "model.onnx", "aoti": "model.pt2"}
MAX_BATCH = 8
QUEUE_MICROSECONDS = 2000  # how long a request waits for others to share a batch with


def save_repository(
    model: nn.Module,
    folder: str | PathLike,
    name: str,
    format: str = "onnx",
    *,
    commute_head: str = "auto",
    size: tuple[int, int] | None = None,
    max_batch: int = MAX_BATCH,
    gpu: bool = False,
    opset: int = onnx_file.DEFAULT_OPSET,
    mean=export.MEAN,
    std=export.STD,
    force: bool = False,
    check: bool = True,
) -> export.Exported:
    """Writes ``folder/name/1/model.onnx`` (or model.pt2) and ``folder/name/config.pbtxt``; both or neither.

    Args:
        model: as for ``hrnet_fast.export.save``, likewise ``commute_head``, ``size``, ``opset``, ``mean``, ``std``,
            ``check``.
        folder: the model repository, which may hold other models.
        name: of the model on the server: letters, digits, "_", "-" and ".".
        format: "onnx" or "aoti".
        max_batch: largest batch that the server makes of waiting requests, whose images must be of one size.
        gpu: instances on the server's GPUs; False: on its CPU. For "aoti" the network must be on that device.
        force: replace a model of that name.

    Raises:
        FileExistsError: the repository holds a model of that name.
        ValueError, TypeError, ImportError: as for ``hrnet_fast.export.save``.
    """
    if format not in PLATFORMS:
        raise ValueError(f"format: Triton Inference Server serves {' and '.join(map(repr, PLATFORMS))}, got {format!r}")
    if not name or not all(c.isascii() and (c.isalnum() or c in "_-.") for c in name) or name.startswith("."):
        raise ValueError(f"name: expected letters, digits, '_', '-' and '.', got {name!r}")
    if max_batch < 1:
        raise ValueError(f"max_batch: expected at least 1, got {max_batch}")
    path = Path(folder) / name
    files.check_free(path, force)
    if path.exists() and not (path / CONFIG).is_file():
        raise FileExistsError(f"{path}: is something else than a model of the server, and is not replaced")
    if format == "onnx":
        onnx_file.require(opset, check)
    runtime = "onnxruntime" if format == "onnx" else "inductor"
    recorded = record(model, export.choose_streams(commute_head, runtime), size)
    metadata = describe(model, recorded, mean, std, None)
    with files.whole_folder(path, force, CONFIG) as part:
        (part / CONFIG).write_text(config(name, recorded, format, metadata, max_batch, gpu))
        (part / "1").mkdir()
        file = part / "1" / MODEL_FILES[format]
        done = export.save_recorded(model, recorded, file, format, opset, metadata, force=False, check=check)
    return done._replace(path=path)


def config(
    name: str,
    recorded: Recorded,
    format: str,
    metadata: Mapping[str, str],
    max_batch: int = MAX_BATCH,
    gpu: bool = False,
) -> str:
    """The text of config.pbtxt; -1 stands for a side of any length, and the batch is not written down."""
    shapes = [tuple(node.meta["val"].shape) for node in _output_nodes(recorded)]
    sides = list(recorded.size or (-1, -1))
    names = ["INPUT__0"] if format == "aoti" else ["image"]
    outputs = [f"OUTPUT__{k}" for k in range(len(shapes))] if format == "aoti" else recorded.outputs
    lines = [
        f"name: {json.dumps(name)}",
        f"platform: {json.dumps(PLATFORMS[format])}",
        f"max_batch_size: {max_batch}",
        *_tensor("input", names[0], [recorded.example.shape[1], *sides]),
    ]
    for output, shape in zip(outputs, shapes, strict=True):
        lines += _tensor("output", output, [size if isinstance(size, int) else -1 for size in shape[1:]])
    lines += [
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {QUEUE_MICROSECONDS}",
        "}",
        "instance_group [",
        f"  {{ count: 1 kind: {'KIND_GPU' if gpu else 'KIND_CPU'} }}",
        "]",
    ]
    for key, value in metadata.items():
        lines += ["parameters {", f"  key: {json.dumps(key)}", f"  value {{ string_value: {json.dumps(value)} }}", "}"]
    return "\n".join(lines) + "\n"


def _tensor(kind: str, name: str, dims: list[int]) -> list[str]:
    numbers = ", ".join(map(str, dims))
    return [
        f"{kind} [",
        "  {",
        f"    name: {json.dumps(name)}",
        "    data_type: TYPE_FP32",
        f"    dims: [ {numbers} ]",
        "  }",
        "]",
    ]


def _output_nodes(recorded: Recorded) -> list:
    by_name = {node.name: node for node in recorded.program.graph.nodes}
    return [by_name[name] for name in recorded.program.graph_signature.user_outputs]
