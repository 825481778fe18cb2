"""Checkpoints of other projects, written again as safetensors with a header that says what they are."""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import NamedTuple

import torch
from torch import Tensor

from hrnet_fast.checkpoints import reading, training_settings
from hrnet_fast.checkpoints.header import MEAN, STD, Header, from_metadata, to_metadata
from hrnet_fast.checkpoints.key_maps import describe, family, task_of, to_official
from hrnet_fast.checkpoints.load import compare
from hrnet_fast.files import whole_file
from hrnet_fast.models import configs, create_model

ABN_EPS = 1e-5  # InPlaceABN computes with abs(weight) + eps
SHAPES, FILE, GIVEN, USUAL, HEADER = (
    "the weights' shapes",
    "the file's configuration",
    "as asked for",
    "assumed: as in the family's own code",
    "the file's header",
)


class Conversion(NamedTuple):
    """What was written, and how it was come by."""

    header: Header  #: what the new file says of itself
    whence: dict[str, str]  #: field of the header -> where its value is from
    place: str  #: the key that the weights lay under; "" for the top of the file
    averaged: str  #: the key of an exponential average that was not taken; "" without one
    left_out: list[str]  #: keys that are no weights of this network, such as optimizer state, losses, other heads
    filled: list[str]  #: biases and counters of zero, which the family's files do not have
    notes: list[str]  #: what to look at


def convert_checkpoint(
    path: str | PathLike,
    out: str | PathLike,
    *,
    model: str | None = None,
    task: str | None = None,
    num_classes: int | None = None,
    upsample: str | None = None,
    align_corners: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    average: bool = False,
    inplace_abn: bool = False,
    drop_unexpected: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Write a checkpoint of the official repositories, timm or OpenMMLab as safetensors with the official keys.

    The header says what ``create_model(..., checkpoint=)`` needs to build the same network: configuration, task and
    classes, from the shapes; interpolation and normalisation, from OpenMMLab's configuration in the file where it has
    one, else as in the family's own code. No code of the file is run. The new file is there whole or not at all.

    Args:
        path: the checkpoint, of torch.save or safetensors.
        out: the new file, NAME.safetensors.
        model, num_classes: what the file is expected to hold; None: whatever it holds.
        task: the same; "features" leaves out the head.
        upsample, align_corners: as for ``create_model``; None: as said above.
        mean, std: of each channel of images from 0 to 1; None: as said above, ImageNet's for three channels.
        average: take the exponential average of the weights that lies beside them.
        inplace_abn: the norms were InPlaceABN's, which use the absolute value of their weights, and a little more;
            write those.
        drop_unexpected: leave out keys that the network does not have, instead of refusing the file.
        overwrite: replace ``out`` where it is there already.

    Returns:
        The header, where each of its values is from, and what was left out.

    Raises:
        FileNotFoundError: there is no such file.
        FileExistsError: ``out`` is there already, and not ``overwrite``.
        OSError: ``out`` cannot be written.
        ValueError: a file that is damaged, would need code to be run, is no HRNet's or not the one expected, or an
            argument that does not suit it.
        ImportError: without the package safetensors.
    """
    import safetensors
    import safetensors.torch

    if not fspath(out).endswith(".safetensors"):
        raise ValueError(f"out: expected a name that ends in .safetensors, got {fspath(out)!r}")
    with whole_file(out, overwrite) as part:  # before the work, for what is wrong with the name or the folder
        content, metadata = reading.read(path)
        weights = reading.weights(content, path, {}, average)
        asked = {
            "model": model,
            "task": task,
            "num_classes": num_classes,
            "upsample": upsample,
            "align_corners": align_corners,
            "mean": mean,
            "std": std,
        }
        header, whence, notes = _header(weights, from_metadata(metadata, path), asked, path)
        state, filled, unexpected = _fit(weights.state, header, task, drop_unexpected, path)
        notes += _norms(state, weights.state, inplace_abn)
        strange = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
        if strange:
            notes.append(f"NaN or infinity in {len(strange)} of the weights: {reading.listed(strange)}")
        try:
            safetensors.torch.save_file(state, part, to_metadata(header))
        except safetensors.SafetensorError as error:  # it wraps what the system said
            raise OSError(f"{fspath(out)} cannot be written ({error})") from error
    return Conversion(header, whence, weights.place, weights.averaged, weights.others + unexpected, filled, notes)


def _header(
    weights: reading.Weights, old: Header | None, asked: Mapping, path: str | PathLike
) -> tuple[Header, dict[str, str], list[str]]:
    source = family(weights.state) if old is None else old.source
    official = to_official(weights.state, {})
    found, classes = task_of(official)
    name, in_chans = _configuration(official, path)
    expected = None if asked["model"] is None else configs.find(asked["model"])[0]
    for argument, want, has in (("model", expected, name), ("num_classes", asked["num_classes"], classes)):
        if want is not None and want != has:
            raise ValueError(f"{argument}: {fspath(path)!r} holds {name}, {describe(official)}; expected was {want}")
    if asked["task"] not in (None, "features", found):
        raise ValueError(f"task: {fspath(path)!r} holds {name}, {describe(official)}; expected was {asked['task']}")
    shapes = {"model": name, "task": found, "num_classes": classes, "in_chans": in_chans}
    if asked["task"] == "features":
        shapes |= {"task": "features", "num_classes": None}
    whence = dict.fromkeys(shapes, SHAPES)

    settings, notes = training_settings.read(weights.meta, source, in_chans)
    usual = training_settings.usual(shapes["task"], source)
    usual |= dict(zip(("mean", "std"), (MEAN, STD) if in_chans == 3 else ((0.0,) * in_chans, (1.0,) * in_chans)))
    usual["class_names"] = ()
    given = {k: asked[k] for k in usual if asked.get(k) is not None}
    values = {}
    for field in usual:
        for values_of, reason in (
            (given, GIVEN),
            ({} if old is None else old._asdict(), HEADER),
            (settings, FILE),
            (usual, USUAL),
        ):
            if field in values_of:
                values[field], whence[field] = values_of[field], reason
                break
    for field in ("mean", "std"):
        values[field] = tuple(float(v) for v in values[field])
        if len(values[field]) != in_chans or (field == "std" and min(values[field]) <= 0):
            raise ValueError(
                f"{field}: expected {in_chans} numbers{' above 0' * (field == 'std')}, one for each "
                f"channel, got {list(values[field])}"
            )
    if len(values["class_names"]) != classes or shapes["task"] == "features":
        values["class_names"] = ()
    return Header(**shapes, **values, source=source), whence, notes


def _configuration(state: Mapping[str, Tensor], path: str | PathLike) -> tuple[str, int]:
    """The name of the configuration whose shapes these are, and the channels of its images."""

    def count(start: str) -> int:
        return len({k.removeprefix(start).split(".")[0] for k in state if k.startswith(start)})

    needed = ("conv1.weight", "layer1.0.conv1.weight", "stage4.0.branches.0.0.conv1.weight")
    if any(k not in state or state[k].dim() != 4 for k in needed):
        raise ValueError(f"path: {fspath(path)!r} holds no HRNet; its keys are {reading.listed(list(state))}")
    image, stem, branch = (state[k].shape for k in needed)
    modules = tuple(count(f"stage{stage}.") for stage in (2, 3, 4))
    config = configs.Config(stem[0], count("layer1."), branch[0], modules, count("stage4.0.branches.0."))
    names = [name for name, known in configs.CONFIGS.items() if known == config]
    if not names:
        raise ValueError(f"path: {fspath(path)!r} holds {describe(state)}, but of no known configuration: {config}")
    return names[0], image[1]


def _fit(
    state: Mapping[str, Tensor], header: Header, task: str | None, drop: bool, path: str | PathLike
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The weights of the network that the header describes, those that were added, and keys that it has no use for."""
    with torch.device("meta"):
        own = create_model(
            header.model,
            header.task,
            header.num_classes,
            header.in_chans,
            header.upsample,
            header.align_corners,
            fast=False,
        ).state_dict()
    official, translated = to_official(state, own), to_official(state, {})
    detector = [k for k in translated if k not in official]
    missing, unexpected, mismatched = compare(official, own)
    if missing or mismatched or (unexpected and not drop and task != "features"):
        kinds = (("missing", missing), ("mismatched", mismatched), ("unexpected", unexpected))
        parts = [f"{len(keys)} {kind}: {reading.listed(keys)}" for kind, keys in kinds if keys]
        hint = "" if missing or mismatched else "; --drop-unexpected leaves them out, --task features the whole head"
        raise ValueError(
            f"path: {fspath(path)!r} holds {describe(official)}, but does not fit {header.model}: "
            f"{'; '.join(parts)}{hint}"
        )
    counters = {k: torch.zeros((), dtype=torch.int64) for k in own if k not in official}
    added = [k for k in official if k not in translated]
    # clones, because safetensors refuses tensors that share memory
    fitting = {k: official[k].detach().clone().contiguous() if k in official else counters[k] for k in own}
    return fitting, added + list(counters), unexpected + detector


def _norms(state: dict[str, Tensor], original: Mapping[str, Tensor], inplace_abn: bool) -> list[str]:
    """Replaces InPlaceABN's weights by what it uses of them; where it is only likely to have been used, says so."""
    norms = [f"{k.removesuffix('.running_mean')}.weight" for k in state if k.endswith(".running_mean")]
    if inplace_abn:
        for key in norms:
            state[key] = state[key].abs() + ABN_EPS
    elif not any(k.endswith("num_batches_tracked") for k in original) and any((state[k] < 0).any() for k in norms):
        return [
            "its norms have negative weights and no counters: if they were InPlaceABN's, which use the absolute value, "
            "convert with --inplace-abn"
        ]
    return []
