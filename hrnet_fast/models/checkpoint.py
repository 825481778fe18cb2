"""Weights from files, without ever running code from them."""

import pickle
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.models.key_maps import describe, to_official

_NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights
_PREFIXES = ("module.", "model.")  # DataParallel, and the official FullModel
_LISTED = 8  # keys of each kind that an error message names


class LoadReport(NamedTuple):
    """What did not fit; three empty lists after a strict load."""

    missing: list[str]  # keys of the model that the file lacks
    unexpected: list[str]  # keys of the file that the model lacks
    mismatched: list[str]  # keys of both with different shapes, as "key [in the file] -> [in the model]"


def load_checkpoint(model: nn.Module, path: str | PathLike, strict: bool = True) -> LoadReport:
    """Load the weights of a file into ``model``: all that fits, after nothing was found amiss.

    Files of torch.save (read with ``weights_only=True``) and safetensors; weights at the top or under "state_dict",
    "model_state_dict" or "model"; keys with or without the prefixes "module." and "model."; keys of the official
    repositories, of timm, and of OpenMMLab's HRNets (mmseg with FCNHead or OCRHead, mmpose with a heat-map head, mmdet
    with HRFPN, whose detector heads are left out). Upsampling is not stored in weights: for mmseg's create the model
    with ``align_corners=False``, for mmpose's face and hand models with ``upsample="bilinear"``.

    Args:
        model: one of ``create_model``, or any module with the official keys.
        path: the file.
        strict: False: load what fits and report the rest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, of a foreign kind, or would need code to be run; or, where ``strict``, its
            keys or shapes do not fit (another width or task, for instance), in which case the model is left as it was.
        ImportError: a .safetensors file without the package safetensors.
    """
    own = model.state_dict()
    state = to_official(_unprefixed(_weights(_read(Path(path)), path), own), own)
    # PyTorch adds the counters that files from before 0.4.1 lack
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    mismatched = [
        f"{k} {list(state[k].shape)} -> {list(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    report = LoadReport(missing, unexpected, mismatched)
    if strict and any(report):
        parts = [f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in report._asdict().items() if keys]
        found, expected = describe(state), describe(own)
        hint = f"; it holds {found}, the model is {expected}" if found and expected and found != expected else ""
        raise ValueError(f"path: {str(path)!r} does not fit the model{hint}; {'; '.join(parts)}")
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    model.load_state_dict(fitting, strict=False)
    return report


def _read(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}")
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"path: {str(path)!r} is truncated or not a safetensors file ({error})") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"path: {str(path)!r} is not a file of plain weights; loading it could run code, which is "
                         f"refused ({reason})") from error  # fmt: skip
    except (RuntimeError, EOFError, KeyError, zipfile.BadZipFile, UnicodeDecodeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"path: {str(path)!r} is truncated or not a file of torch.save ({reason})") from error


def _weights(content: object, path: str | PathLike) -> dict[str, Tensor]:
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        is_dict = isinstance(content, Mapping)
        found = f"the keys {_listed([str(k) for k in content])}" if is_dict else type(content).__name__
        raise ValueError(f"path: expected a dictionary of tensors in {str(path)!r}, found {found}")
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


def _unprefixed(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without the prefixes of wrappers, unless the model itself has them."""
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            if any(k.startswith(prefix) for k in own) or not any(k.startswith(prefix) for k in state):
                continue
            # beside the model's weights, the official FullModel keeps those of its loss
            state = {k.removeprefix(prefix): v for k, v in state.items() if not k.startswith("loss.")}
    return state


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:_LISTED]) + (f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else "")
