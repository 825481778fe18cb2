"""What an exported file says about itself: a value in JSON under each key, in every format the same."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from torch import nn

import hrnet_fast
from hrnet_fast.export.record import Recorded

VERSION = 1
AOTI_KEY = "hrnet_fast_metadata"  # AOTInductor keeps its own entries beside ours
PROGRAM_FILE = "hrnet_fast.json"  # among the extra files of a torch.export program


def describe(
    model: nn.Module, recorded: Recorded, mean: Sequence[float], std: Sequence[float], name: str | None = None
) -> dict[str, str]:
    """The metadata of a recorded network.

    ``model``, ``task``, ``num_classes``, ``in_chans``, ``upsample`` and ``align_corners`` are those of create_model,
    null where the network is someone else's. ``mean`` and ``std`` are those of the channels of a normalised image whose
    pixels were from 0 to 1. The sides of an image must be multiples of ``multiple``; ``size`` is the only one that is
    taken, or null.
    """
    recipe = getattr(model, "recipe", None) or {}
    known = {key: recipe.get(key) for key in ("task", "num_classes", "in_chans", "upsample", "align_corners")}
    facts = {
        "hrnet_fast": VERSION,
        "hrnet_fast_version": hrnet_fast.__version__,
        "model": name or recipe.get("name") or type(model).__name__,
        **known,
        "in_chans": recorded.example.shape[1],
        "mean": list(mean),
        "std": list(std),
        "multiple": recorded.multiple,
        "size": recorded.size,
        "outputs": recorded.outputs,
        "heads_commuted": recorded.commuted,
    }
    return {key: json.dumps(value) for key, value in facts.items()}


def read(path: str | PathLike) -> dict:
    """The metadata of an exported file, by its suffix .onnx or .pt2, as Python values; empty where it has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: neither an ONNX file nor a package of PyTorch.
        ImportError: an ONNX file without the package onnx.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    return {
        key: json.loads(value) for key, value in (_of_onnx(path) if path.suffix == ".onnx" else _of_pt2(path)).items()
    }


def _of_onnx(path: Path) -> Mapping[str, str]:
    from hrnet_fast.export.packages import needed

    onnx = needed("onnx")
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors, which are no ValueErrors
        raise ValueError(f"{path}: no ONNX file, or a damaged one ({' '.join(str(error).split())})") from None
    return {entry.key: entry.value for entry in proto.metadata_props}


def _of_pt2(path: Path) -> Mapping[str, str]:
    import zipfile

    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: neither an ONNX file nor a package of PyTorch")
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(PROGRAM_FILE):
                return json.loads(archive.read(name))
            if name.endswith("_metadata.json"):
                found = json.loads(archive.read(name)).get(AOTI_KEY)
                if found is not None:
                    return json.loads(found)
    return {}
