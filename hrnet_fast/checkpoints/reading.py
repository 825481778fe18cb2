"""What a checkpoint file holds, read without ever running code from it, and where in it the weights are."""

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_PLACES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
)  # where training scripts put weights
_AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema")  # and their exponential averages
_PREFIXES = ("module.", "model.", "_orig_mod.")  # DataParallel, the official FullModel, torch.compile
_ANCHOR = "stage4.0.branches.0.0.conv1.weight"  # every HRNet has it, under the prefixes of its wrappers
_LISTED = 8  # keys that a message names
_ZIP = b"PK\x03\x04"  # what torch.load takes for its own files

# What training scripts leave beside the weights: torch.load would refuse the whole file for it. These names get a
# stand-in; the classes and functions that are called so are never imported.
_NUMPY = ("scalar", "_reconstruct")
_INERT = (
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.ndarray",
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in _NUMPY),
)
_DICTIONARIES = (
    "yacs.config.CfgNode",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "easydict.EasyDict",
)


class _Inert:
    """Stands for an object of a training script; keeps nothing."""

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state: object) -> None:
        pass


class Weights(NamedTuple):
    """The weights of a file, without the prefixes of wrappers."""

    state: dict[str, Tensor]
    place: str  # the key that they lay under; "" where they were all that the file holds
    averaged: str  # the key of an exponential average that was not taken; "" without one
    others: list[str]  # what else lay beside them
    meta: Mapping  # OpenMMLab's description of the training; empty without one


def read(path: str | PathLike) -> tuple[object, dict[str, str]]:
    """The content of a file of torch.save or of safetensors, and the header of the latter.

    Files of torch.save are read twice, first for their checksums, which torch.load does not look at. safetensors and
    files of torch.save from before PyTorch 1.6 have none: there other numbers go unnoticed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged, of a foreign kind, or would need code to be run.
        ImportError: a .safetensors file without the package safetensors.
    """
    path = Path(path)
    _check_is_file(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path), {})


def read_metadata(path: str | PathLike) -> dict[str, str]:
    """The header of a safetensors file, without its tensors; empty for other files.

    Raises:
        FileNotFoundError, ValueError, ImportError: as ``read``.
    """
    _check_is_file(Path(path))
    return _read_safetensors(Path(path), False)[1] if Path(path).suffix == ".safetensors" else {}


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        folder = ", but a folder" if path.is_dir() else ""
        raise FileNotFoundError(f"path: there is no file {str(path)!r}{folder}")


def _read_safetensors(path: Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in (file.keys() if tensors else ())}, file.metadata() or {}
    except OSError as error:
        raise ValueError(f"path: {str(path)!r} cannot be read ({error.strerror or error})") from error
    except safetensors.SafetensorError as error:
        raise ValueError(f"path: {str(path)!r} is truncated or not a safetensors file ({error})") from error


def _check_records(path: Path) -> None:
    """Raises ValueError unless every record of a zip file lies in it as torch.save writes them, whole and unharmed."""
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP)) != _ZIP:  # from before PyTorch 1.6, or foreign: torch.load says it
                return
            size = file.seek(0, 2)
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                if any(record.filename.endswith("/constants.pkl") for record in records):
                    return  # TorchScript, which is refused before any record is read
                total = sum(record.file_size for record in records)
                if total > size or any(record.compress_type != zipfile.ZIP_STORED for record in records):
                    raise ValueError(
                        f"its records would become {total:,} bytes, it has {size:,}; torch.save compresses nothing"
                    )
                if len({record.filename for record in records}) < len(records):
                    raise ValueError("two records have one name")
                if records and not any(record.CRC for record in records):
                    raise ValueError(
                        "without checksums, as torch.serialization.set_crc32_options(False) saves it, "
                        "damage would go unseen"
                    )
                damaged = archive.testzip()
                if damaged is not None:
                    raise ValueError(f"{damaged} has another checksum than was written")
    except OSError as error:
        raise ValueError(f"path: {str(path)!r} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # zipfile raises anything at all, as torch does
        raise ValueError(
            f"path: {str(path)!r} is truncated, damaged or not a file of torch.save ({_first_sentence(error)})"
        ) from error


def _first_sentence(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]


def _read_torch(path: Path) -> object:
    _check_records(path)
    stand_ins = [(_Inert, name) for name in _INERT] + [(OrderedDict, name) for name in _DICTIONARIES]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file is said by the error
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # not torch's own advice, which is to run the code
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = re.search(r"(?:\n\n|error: )(\S[^\n]*)", str(error))
        reason = f"it holds a {name[1]}" if name else why[1] if why else "of an unknown kind"
        raise ValueError(
            f"path: {str(path)!r} is not a file of plain weights; loading it could run code, which is "
            f"refused ({reason}); save the state_dict alone where it was made"
        ) from error
    except OSError as error:
        raise ValueError(f"path: {str(path)!r} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged stream of opcodes can make the reader raise anything at all
        if "TorchScript" in str(error):
            raise ValueError(
                f"path: {str(path)!r} is a TorchScript archive, whose code is not run here; save the "
                "state_dict of the module"
            ) from error
        raise ValueError(
            f"path: {str(path)!r} is truncated or not a file of torch.save ({_first_sentence(error)})"
        ) from error


def weights(content: object, path: str | PathLike, own: Mapping[str, Tensor], average: bool = False) -> Weights:
    """The weights in the content of a file, for a model with the state dict ``own`` (empty: for any HRNet).

    Args:
        content: as ``read`` gives it.
        path: for the messages.
        own: prefixes that its keys have stay.
        average: take the exponential average that lies beside the weights instead of them.

    Raises:
        ValueError: there are none, or those of several networks, or no average where one is asked for, or the content
            holds itself.
    """
    meta = content.get("meta") if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    exchanged = "mmengine_version" in meta  # it saves the average as "state_dict", and the weights as "ema_state_dict"
    places, others, averaged, taken, seen = [], [], "", False, set()
    while isinstance(content, Mapping):
        if id(content) in seen:
            raise ValueError(f"path: {fspath(path)!r} holds itself, under {'.'.join(places)}")
        seen.add(id(content))
        plain, averages = ([n for n in names if isinstance(content.get(n), Mapping)] for names in (_PLACES, _AVERAGED))
        if not plain and not averages:
            break
        take_average = bool(averages) and (not plain or (average and not exchanged))
        place = (averages if take_average else plain)[0]
        averaged = averages[0] if averages and not take_average and not exchanged else averaged
        taken = taken or take_average or (exchanged and bool(averages))
        others += [str(name) for name in content if name != place]
        places.append(place)
        content = content[place]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        is_dict = isinstance(content, Mapping)
        found = f"the keys {listed([str(k) for k in content])}" if is_dict else type(content).__name__
        raise ValueError(f"path: expected a dictionary of tensors in {fspath(path)!r}, found {found}")
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    try:
        state, by_prefix = _one_network(state, own, average and not taken)
    except ValueError as error:
        raise ValueError(f"path: {fspath(path)!r} {error}") from None
    if average and not taken and not by_prefix:
        raise ValueError(f"path: {fspath(path)!r} holds no exponential average beside the weights")
    state = _unprefixed(state, own)
    beside = [k for k in state if _is_beside(k) and k not in own]
    state = {k: v for k, v in state.items() if k not in beside}
    return Weights(state, ".".join(places), averaged, others + beside, meta)


def _one_network(state: dict[str, Tensor], own: Mapping[str, Tensor], average: bool) -> tuple[dict[str, Tensor], bool]:
    """One HRNet's weights, without its wrappers' prefixes, and whether it is the average of another one."""
    wrappers = {k.removesuffix(_ANCHOR).removesuffix("backbone.") for k in state if f".{k}".endswith(f".{_ANCHOR}")}
    if not wrappers or any(wrapper and any(k.startswith(wrapper) for k in own) for wrapper in wrappers):
        return state, False
    averages = {wrapper for wrapper in wrappers if "ema" in wrapper or "average" in wrapper}
    wanted = averages if averages and (average or averages == wrappers) else wrappers - averages
    if len(wanted) > 1:
        raise ValueError(f"holds several HRNets, under the prefixes {listed(sorted(wanted))}")
    (wrapper,) = wanted
    rest = tuple(wrappers - wanted - {""})
    if "" in wrappers and wrapper:  # the other network's keys have no prefix to tell them by
        state = {k: v for k, v in state.items() if k.startswith(wrapper)}
    state = {k.removeprefix(wrapper): v for k, v in state.items() if not k.startswith(rest)}
    return state, wrapper in averages


def _unprefixed(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without the prefixes of wrappers, unless the model itself has them."""
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            if not any(k.startswith(prefix) for k in own):
                state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _is_beside(key: str) -> bool:
    """Kept in a state dict, but no weight of the network: losses of the official FullModel, averages, counts."""
    return key.startswith(("loss.", "criterion.", "ema_")) or key in ("n_averaged", "steps")


def listed(keys: Sequence[str]) -> str:
    """The first few keys, and how many more there are."""
    return ", ".join(keys[:_LISTED]) + (f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else "")
