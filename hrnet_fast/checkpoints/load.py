"""Weights from files, without ever running code from them."""

from collections.abc import Mapping
from os import PathLike
from typing import NamedTuple

from torch import Tensor, nn

from hrnet_fast.checkpoints import header, reading
from hrnet_fast.checkpoints.key_maps import describe, to_official


class LoadReport(NamedTuple):
    """What did not fit; three empty lists after a strict load."""

    missing: list[str]  #: keys of the model that the file lacks
    unexpected: list[str]  #: keys of the file that the model lacks
    #: keys of both with different shapes, as "key [in the file] -> [in the model]"; and "align_corners True -> False"
    mismatched: list[str]


def load_checkpoint(model: nn.Module, path: str | PathLike, strict: bool = True) -> LoadReport:
    """Load the weights of a file into ``model``: all that fits, after nothing was found amiss.

    Files of torch.save (read with ``weights_only=True``) and safetensors; weights at the top or under "state_dict",
    "model" and the like; keys with or without the prefixes of wrappers such as "module." and "model."; keys of the
    official repositories, of timm, and of OpenMMLab's HRNets (mmseg with FCNHead or OCRHead, mmpose with a heat-map
    head, mmdet with HRFPN, whose detector heads are left out, mmpretrain). Weights do not say how to interpolate: for
    mmseg's create the model with ``align_corners=False``, for mmpose's face and hand models with
    ``upsample="bilinear"``. The header that ``hrnet-fast convert`` writes does say it, and is compared with the model.

    Args:
        model: one of ``create_model``, or any module with the official keys.
        path: the file.
        strict: False: load what fits and report the rest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, of a foreign kind, or would need code to be run; or, where ``strict``, its
            keys or shapes do not fit (another width or task, for instance) or its header asks for another
            interpolation than the model's, in which case the model is left as it was; or the model is on the meta
            device.
        ImportError: a .safetensors file without the package safetensors.
    """
    own = model.state_dict()
    without_memory = [k for k, v in own.items() if v.is_meta]
    if without_memory:  # copies into them succeed and do nothing
        raise ValueError(f"model: on the meta device, where weights have no memory to be loaded into "
                         f"({reading.listed(without_memory)}); call model.to_empty(device='cpu') first, or create the "
                         "model on another device")  # fmt: skip
    content, metadata = reading.read(path)
    state = to_official(reading.weights(content, path, own).state, own)
    missing, unexpected, mismatched = compare(state, own)
    trained = header.from_metadata(metadata, path)
    otherwise = header.disagreements(trained, getattr(model, "recipe", None))  # other models do not say
    report = LoadReport(missing, unexpected, otherwise + mismatched)
    if strict and any((missing, unexpected, mismatched)):
        parts = [f"{len(keys)} {kind}: {reading.listed(keys)}" for kind, keys in report._asdict().items() if keys]
        found, expected = describe(state), describe(own)
        hint = f"; it holds {found}, the model is {expected}" if found and expected and found != expected else ""
        raise ValueError(f"path: {str(path)!r} does not fit the model{hint}; {'; '.join(parts)}")
    if strict and otherwise:
        asked = ", ".join(f"{name}={getattr(trained, name)!r}" for name in ("upsample", "align_corners"))
        raise ValueError(f"path: {str(path)!r} was trained with another interpolation than the model has "
                         f"({', '.join(otherwise)}), which gives wrong results without any other sign; create the model "
                         f"with {asked}, or by create_model(..., checkpoint=...) without those arguments; if the header "
                         "is wrong, convert the checkpoint again with --align-corners or --upsample")  # fmt: skip
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    model.load_state_dict(fitting, strict=False)
    return report


def compare(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """What a state dict lacks for a model with the state dict ``own``, has beyond it, and has in other shapes."""
    # PyTorch adds the counters that files from before 0.4.1 lack
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shared = [k for k in own if k in state and state[k].shape != own[k].shape]
    return missing, unexpected, [f"{k} {list(state[k].shape)} -> {list(own[k].shape)}" for k in shared]
