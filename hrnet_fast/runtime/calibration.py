"""What the images between the layers of a network look like, over some images: what 8-bit convolutions need to know.

The network runs in float32 by torch's operators, step by step, and every image that a convolution multiplies is looked
at (``statistics``). Convolutions go by the names of their parameters: what is found serves recordings of other shapes,
other processes and other machines.
"""

import hashlib
import json
import logging
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.checkpoints import reading
from hrnet_fast.files import whole_file
from hrnet_fast.network.names import names
from hrnet_fast.network.nodes import Constants
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.network.sums import Conv, Up, Weight
from hrnet_fast.runtime.arguments import Arguments
from hrnet_fast.runtime.statistics import Statistics, check_ranges
from hrnet_fast.runtime.watch import Recording, watch

_LOG = logging.getLogger("hrnet_fast")
_FEW = 4  # images
_PART = re.compile(r"(.*)\[(\d+):(\d+)\]")  # the name of a convolution of some of the input channels
_SUFFIX, _KEY, _VERSION = ".safetensors", "hrnet_fast_calibration", 1


class Activation(NamedTuple):
    """What a convolution multiplies."""

    low: float  # 0.0 if there are no negative numbers, else -high
    high: float  # positive: numbers above it are cut off
    mean: Tensor  # [channels] float32


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the images between the layers of a network looked like: for every convolution, what it multiplies.

    Attributes:
        activations: by the convolution's name (``names``).
        images: how many were looked at.
    """

    activations: dict[str, Activation]
    images: int

    def of(self, name: str, channels: int | None = None) -> Activation:
        """What the convolution of this name multiplies; ``channels``: how many it must have.

        Raises:
            ValueError: there is no such convolution, or it has other channels: this is of another network.
        """
        found = self.activations.get(name) or self._joined(name)
        if found is None:
            raise ValueError(f"calibration: it is of another network: it knows no convolution {name!r}")
        if channels is not None and found.mean.numel() != channels:
            raise ValueError(f"calibration: it is of another network: {name!r} has {channels} input channels, "
                             f"there it has {found.mean.numel()}")  # fmt: skip
        return found

    def _joined(self, name: str) -> Activation | None:
        """Of a convolution whose sources were looked at one by one, and that multiplies some of them side by side."""
        asked = _PART.fullmatch(name)
        base, first, last = (name, 0, None) if asked is None else (asked[1], int(asked[2]), int(asked[3]))
        parts: dict[int, tuple[int, Activation]] = {}
        for key, found in self.activations.items():
            part = _PART.fullmatch(key)
            if part is not None and part[1] == base:
                parts[int(part[2])] = int(part[3]), found
        activations = []
        while first in parts and first != last:
            first, found = parts[first]
            activations.append(found)
        if not activations or first != (max(end for end, _ in parts.values()) if last is None else last):
            return None
        high = max(a.high for a in activations)
        return Activation(-high if any(a.low < 0 for a in activations) else 0.0, high,
                          torch.cat([a.mean for a in activations]))  # fmt: skip

    def save(self, path: str | PathLike) -> None:
        """Writes NAME.safetensors, which every machine can read; a file that is there is replaced.

        Raises:
            ValueError: the name has another ending.
            OSError: the file cannot be written.
        """
        if not fspath(path).endswith(_SUFFIX):
            raise ValueError(f"path: expected a name that ends in {_SUFFIX}, got {fspath(path)!r}")
        means = {name: a.mean.contiguous().clone() for name, a in sorted(self.activations.items())}
        about = {"version": _VERSION, "images": self.images,
                 "ranges": {name: [self.activations[name].low, self.activations[name].high] for name in means}}  # fmt: skip
        about["sha256"] = _checksum(about, means)
        # by hand: safetensors.torch needs numpy
        header: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(about)}}
        data = b""
        for name, mean in means.items():
            end = len(data) + 4 * mean.numel()
            header[name] = {"dtype": "F32", "shape": list(mean.shape), "data_offsets": [len(data), end]}
            data += _bytes(mean)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with whole_file(path, overwrite=True) as part:
            part.write_bytes(struct.pack("<Q", len(text)) + text + data)

    @classmethod
    def load(cls, path: str | PathLike) -> "Calibration":
        """What ``save`` has written, bit by bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is something else, of a newer version, or damaged.
            ImportError: without the package safetensors.
        """
        if not fspath(path).endswith(_SUFFIX):
            raise ValueError(f"path: expected a name that ends in {_SUFFIX}, got {fspath(path)!r}")
        means, metadata = reading.read(path)
        if _KEY not in metadata:
            raise ValueError(f"path: {fspath(path)!r} holds no calibration of hrnet_fast")
        try:
            about = json.loads(metadata[_KEY])
            version, checksum = about["version"], about.pop("sha256", None)
            plain = all(mean.dtype == torch.float32 and mean.dim() == 1 for mean in means.values())
            if version == _VERSION and plain and checksum == _checksum(about, means):
                found = {name: Activation(*about["ranges"][name], means[name]) for name in about["ranges"]}
                return cls(found, about["images"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"path: {fspath(path)!r} is a damaged calibration ({error})") from error
        if version != _VERSION:
            raise ValueError(f"path: {fspath(path)!r} is a calibration of version {version}, known is {_VERSION}")
        raise ValueError(f"path: {fspath(path)!r} is a damaged calibration (its checksum differs)")


def _recorder(model: nn.Module) -> Callable[[Arguments], Recording]:
    constants = Constants()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def recorded(call: Arguments) -> Recording:
        args, kwargs = call.like(lambda t: torch.empty_like(t, dtype=dtype if t.is_floating_point() else t.dtype))
        graph = record(model, args, kwargs, constants=constants)
        return Recording(graph, steps_of(graph), None)

    return recorded


def _checksum(about: Mapping, means: Mapping[str, Tensor]) -> str:
    made = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(means):
        made.update(f"{name} {list(means[name].shape)}".encode())
        made.update(_bytes(means[name]))
    return made.hexdigest()


def _bytes(mean: Tensor) -> bytes:
    return struct.pack(f"<{mean.numel()}f", *mean.tolist())


def calibrate(
    model: nn.Module,
    images: Tensor | Iterable,
    *,
    ranges: str = "mse",
    kwargs: dict[str, Any] | None = None,
    record_steps: Callable[[Arguments], Recording] | None = None,
) -> Calibration:
    """Runs a network in float32 on some images and notes what its convolutions multiply.

    Args:
        model: the network, in evaluation; it is left as it is, and does not run itself.
        images: a tensor [N, C, H, W], of which one image at a time is run; or an iterable of what the model takes, of any
            shapes: a tensor [N, C, H, W] or [C, H, W]; a tuple stands for several positional arguments, a list does not:
            of a DataLoader with labels take ``(image for image, label in loader)``. They are moved to the model's device.
        ranges: from where on numbers are cut off. "mse": where rounding and cutting off give the least squared error
            together; "max": nowhere; "99.99%": this share of the numbers is kept.
        kwargs: keyword arguments of every call.
        record_steps: the network for arguments of these shapes; it is called for each new shape (eight are kept), raises
            ``Refused`` if there is none, and may raise TypeError or ValueError for what the model does not take. None:
            the model is recorded.

    Raises:
        TypeError: ``images`` is nothing that gives images.
        ValueError: there are no images; one holds NaN or Inf, becomes NaN or Inf in the network, or is nothing that the
            model takes; all are constant; ``ranges`` is unknown.
    """
    check_ranges(ranges)
    name_of: dict[Weight, str] = {}
    found: dict[str, Statistics] = {}

    def see(terms: list[Conv | Up], image: Tensor, which: str) -> None:
        readers = list(dict.fromkeys(name_of[term.weight] for term in terms))
        try:
            one = Statistics.of(image)
        except ValueError as error:
            raise ValueError(f"calibration: {error} in front of {readers[0]!r}, for {which}") from None
        for name in readers:
            found[name] = found[name] + one if name in found else one

    record_steps = record_steps or _recorder(model)

    def recorded(recording: Recording) -> None:
        name_of.update(names(model, recording.steps))

    count, constant = watch(model, record_steps, images, kwargs or {}, see, recorded)
    if not count:
        raise ValueError("calibration: there are no images at all")
    if len(constant) == count:
        raise ValueError(f"calibration: all images are constant ({count} of {count}): a network does nothing with them "
                         "that it does with real ones")  # fmt: skip
    if constant:
        _LOG.warning("calibration: image %s is constant", ", ".join(map(str, constant)))
    if count < _FEW:
        _LOG.warning("calibration: %d image%s found; more are better, 16 to 64 of those that will come",
                     count, " was" if count == 1 else "s were")  # fmt: skip
    activations = {}
    for name, of in found.items():
        high = of.high(ranges)
        activations[name] = Activation(-high if of.is_signed else 0.0, high, of.mean().cpu())
    return Calibration(activations, count)
