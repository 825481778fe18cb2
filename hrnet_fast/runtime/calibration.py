"""What the images between the layers of a network look like, over some images: what 8-bit convolutions need to know.

The network runs in float32 by torch's operators, step by step, and every image that a convolution multiplies is looked
at (``statistics``). Convolutions go by the names of their parameters: what is found serves recordings of other shapes,
other processes and other machines.
"""

import hashlib
import json
import logging
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.files import whole_file
from hrnet_fast.network.nodes import Constant, Graph, Refused, Value
from hrnet_fast.network.sums import Conv, Step, Sum, Weight
from hrnet_fast.runtime.arguments import Arguments
from hrnet_fast.runtime.normalization import Normalization
from hrnet_fast.runtime.statistics import Statistics, check_ranges
from hrnet_fast.runtime.torch_steps import TorchPlan, TorchSteps

_LOG = logging.getLogger("hrnet_fast")
_FEW = 4  # images
_PLANS = 8  # shapes that are kept prepared
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
        found = self.activations.get(name)
        if found is None:
            raise ValueError(f"calibration: it is of another network: it knows no convolution {name!r}")
        if channels is not None and found.mean.numel() != channels:
            raise ValueError(f"calibration: it is of another network: {name!r} has {channels} input channels, "
                             f"there it has {found.mean.numel()}")  # fmt: skip
        return found

    def save(self, path: str | PathLike) -> None:
        """Writes NAME.safetensors, which every machine can read; a file that is there is replaced.

        Raises:
            ValueError: the name has another ending.
            ImportError: without the package safetensors.
            OSError: the file cannot be written.
        """
        import safetensors
        import safetensors.torch

        if not fspath(path).endswith(_SUFFIX):
            raise ValueError(f"path: expected a name that ends in {_SUFFIX}, got {fspath(path)!r}")
        means = {name: a.mean.contiguous().clone() for name, a in sorted(self.activations.items())}
        about = {"version": _VERSION, "images": self.images,
                 "ranges": {name: [self.activations[name].low, self.activations[name].high] for name in means}}  # fmt: skip
        about["sha256"] = _checksum(about, means)
        with whole_file(path, overwrite=True) as part:
            try:
                safetensors.torch.save_file(means, part, {_KEY: json.dumps(about)})
            except safetensors.SafetensorError as error:  # it wraps what the system said
                raise OSError(f"{fspath(path)} cannot be written ({error})") from error

    @classmethod
    def load(cls, path: str | PathLike) -> "Calibration":
        """What ``save`` has written, bit by bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is something else, of a newer version, or damaged.
            ImportError: without the package safetensors.
        """
        from hrnet_fast.models import reading  # all models come with it, which optimize does not need

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


def _checksum(about: Mapping, means: Mapping[str, Tensor]) -> str:
    made = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(means):
        made.update(f"{name} {list(means[name].shape)}".encode())
        made.update(struct.pack(f"<{means[name].numel()}f", *means[name].tolist()))
    return made.hexdigest()


def names(model: nn.Module, steps: list[Step]) -> dict[Weight, str]:
    """A name for the weight of every convolution: that of its parameter, the same in recordings of all shapes.

    Input channels that a sum takes alone are a part of it: "head.weight[48:144]". A weight that is computed from
    parameters is "computed 0", "computed 1" and so on, in the order of the steps. What another weight has been called,
    of the same parameter with another norm, gets " 2".

    Args:
        model: that was recorded.
        steps: of the recording.
    """
    known: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for prefix, module in model.named_modules():  # tensors that are plain attributes are recorded, too
        tensors += [(f"{prefix}.{k}" if prefix else k, v) for k, v in vars(module).items() if isinstance(v, Tensor)]
    for name, tensor in tensors:
        known.setdefault(id(tensor), name)
    computed: dict[Constant, str] = {}
    made: dict[Weight, str] = {}
    taken: set[str] = set()
    for weight in (w for s in steps if isinstance(s, Sum) for w in s.weights()):
        if weight in made:
            continue
        constant = weight.weight
        name = known.get(id(constant.tensor)) if constant.tensor is not None else None
        if name is None:
            name = computed.setdefault(constant, f"computed {len(computed)}")
        if weight.inputs is not None:
            name += f"[{weight.inputs[0]}:{weight.inputs[1]}]"
        again, free = 1, name
        while free in taken:
            again += 1
            free = f"{name} {again}"
        made[weight] = free
        taken.add(free)
    return made


class Recording(NamedTuple):
    """A network as it was recorded for inputs of some shapes."""

    graph: Graph
    steps: list[Step]
    normalization: Normalization | None  # of what it is called with


def calibrate(
    model: nn.Module,
    record_steps: Callable[[Arguments], Recording],
    images: Tensor | Iterable,
    *,
    ranges: str = "mse",
    kwargs: dict[str, Any] | None = None,
) -> Calibration:
    """Runs a network in float32 on some images and notes what its convolutions multiply.

    Args:
        model: the network, in evaluation; it is left as it is, and does not run itself.
        record_steps: the network for arguments of these shapes; it is called for each new shape (eight are kept), raises
            ``Refused`` if there is none, and may raise TypeError or ValueError for what the model does not take.
        images: a tensor [N, C, H, W], of which one image at a time is run; or an iterable of what the model takes, of any
            shapes: a tensor [N, C, H, W] or [C, H, W]; a tuple stands for several positional arguments, a list does not:
            of a DataLoader with labels take ``(image for image, label in loader)``. They are moved to the model's device.
        ranges: from where on numbers are cut off. "mse": where rounding and cutting off give the least squared error
            together; "max": nowhere; "99.99%": this share of the numbers is kept.
        kwargs: keyword arguments of every call.

    Raises:
        TypeError: ``images`` is nothing that gives images.
        ValueError: there are no images; one holds NaN or Inf, becomes NaN or Inf in the network, or is nothing that the
            model takes; all are constant; ``ranges`` is unknown.
    """
    check_ranges(ranges)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    observer = _Observer(model, record_steps, device)
    count, constant = 0, []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for args in _calls(images):
            call = Arguments.of(*_moved(args, kwargs or {}, device))
            pictures = [t for t in call.tensors() if t.is_floating_point() and t.dim() == 4]
            size = max((len(t) for t in pictures), default=1)
            which = f"image {count}" if size < 2 else f"images {count} to {count + size - 1}"
            constant += [count + k for k in _checked(call, pictures, which)]
            observer.look(call, which)
            count += size
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
    return Calibration(observer.activations(ranges), count)


def _calls(images: Tensor | Iterable) -> Iterator[tuple]:
    """The positional arguments of one call after the other."""
    if isinstance(images, Tensor):
        images = images.split(1) if images.dim() == 4 and len(images) else [images] * (images.numel() > 0)
    elif isinstance(images, (str, bytes, Mapping)) or not isinstance(images, Iterable):
        raise TypeError(f"calibration: expected a tensor or an iterable of images, got {type(images).__name__}")
    for args in images:
        args = args if type(args) is tuple else (args,)
        yield (args[0][None],) if len(args) == 1 and isinstance(args[0], Tensor) and args[0].dim() == 3 else args


def _moved(args: tuple, kwargs: dict, device: torch.device) -> tuple[tuple, dict]:
    """The arguments on the model's device, floating ones in float32."""
    call = Arguments.of(args, kwargs)
    return call.like(lambda t: t.detach().to(device, torch.float32 if t.is_floating_point() else t.dtype))


def _checked(call: Arguments, pictures: list[Tensor], which: str) -> list[int]:
    """Those of a batch that are constant."""
    for tensor in call.tensors():
        if tensor.numel() == 0:
            raise ValueError(f"calibration: an empty tensor in {which}: {list(tensor.shape)}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"calibration: NaN or Inf in {which}")
    constant = None
    for picture in pictures:
        least, largest = picture.flatten(1).aminmax(dim=1)
        found = set((least == largest).nonzero().flatten().tolist())
        constant = found if constant is None else constant & found
    return sorted(constant or ())


class _Observer:
    """Runs images and keeps the statistics of what each convolution multiplies."""

    def __init__(self, model: nn.Module, record_steps: Callable[[Arguments], Recording], device: torch.device):
        self._model, self._record, self._device = model, record_steps, device
        self._steps: TorchSteps | None = None
        self._plans: dict[tuple, tuple[TorchPlan, dict[Value, list[str]]]] = {}
        self._found: dict[str, Statistics] = {}

    def look(self, call: Arguments, which: str) -> None:
        """At what becomes of an image; ``which`` it is, for messages."""
        if call.key not in self._plans:
            self._plans[call.key] = self._prepared(call, which)
            if len(self._plans) > _PLANS:
                del self._plans[next(iter(self._plans))]
        plan, readers = self._plans[call.key]

        def observe(value: Value, image: Tensor) -> None:
            convolutions = readers.get(value)
            if convolutions is None:
                return
            try:
                one = Statistics.of(image)
            except ValueError as error:
                raise ValueError(f"calibration: {error} in front of {convolutions[0]!r}, for {which}") from None
            for name in convolutions:
                self._found[name] = self._found[name] + one if name in self._found else one

        try:
            plan(call.tensors(), observe)
        except RuntimeError as error:  # of an operator: what was recorded had no elements, and fewer checks
            raise _not_taken(call, which, error) from error

    def _prepared(self, call: Arguments, which: str) -> tuple[TorchPlan, dict[Value, list[str]]]:
        try:
            recording = self._record(call)
        except (Refused, TypeError, ValueError) as error:
            raise _not_taken(call, which, error) from error
        if recording.normalization is not None and not call.tensors()[0].is_floating_point():
            raise _not_taken(call, which, "mean and std are for images of a floating dtype")
        if self._steps is None:  # one for all shapes, which share its weights
            self._steps = TorchSteps(torch.float32, self._device, torch.channels_last, None, recording.normalization)
        name_of = names(self._model, recording.steps)
        steps = _without_projections(recording.steps)
        readers: dict[Value, list[str]] = {}
        for term in (t for s in steps if isinstance(s, Sum) for t in (*s.convs, *s.ups) if t.weight is not None):
            known = readers.setdefault(term.value, [])
            if name_of[term.weight] not in known:
                known.append(name_of[term.weight])
        return self._steps.prepare(recording.graph, steps), readers

    def activations(self, ranges: str) -> dict[str, Activation]:
        """Of all images."""
        made = {}
        for name, of in self._found.items():
            high = of.high(ranges)
            made[name] = Activation(-high if of.is_signed else 0.0, high, of.mean().cpu())
        return made


def _not_taken(call: Arguments, which: str, why: Exception | str) -> ValueError:
    kinds = ", ".join(f"{list(t.shape)} of {t.dtype}" for t in call.tensors())
    kinds = kinds or ", ".join(type(x).__name__ for x in call.leaves)
    return ValueError(f"calibration: the model does not take {which}, {kinds}: {why}")


def _without_projections(steps: list[Step]) -> list[Step]:
    """The same with every projection as a step of its own: what it multiplies is then a value like others."""
    made: list[Step] = []
    for step in steps:
        if isinstance(step, Sum) and step.projection is not None:
            n, _, h, w = step.output.shape
            between = Value((n, step.projection.shape[1], h, w), step.output.dtype)
            made.append(replace(step, output=between, projection=None))
            step = Sum(step.output, convs=[Conv(between, step.projection, 1)])
        made.append(step)
    return made
