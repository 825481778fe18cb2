"""Runs a network in float32 on some images, and shows every image that a convolution multiplies."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.network.nodes import Graph, Refused, Value
from hrnet_fast.network.sums import Conv, Step, Sum, Up
from hrnet_fast.runtime.arguments import Arguments
from hrnet_fast.runtime.normalization import Normalization
from hrnet_fast.runtime.torch_steps import TorchPlan, TorchSteps

_PLANS = 8  # shapes that are kept prepared


class Recording(NamedTuple):
    """A network as it was recorded for inputs of some shapes."""

    graph: Graph
    steps: list[Step]
    normalization: Normalization | None  # of what it is called with


# The convolutions that multiply an image, the image, and which of the network's images it comes from, in words.
See = Callable[[list[Conv | Up], Tensor, str], None]


def watch(
    model: nn.Module,
    record_steps: Callable[[Arguments], Recording],
    images: Tensor | Iterable,
    kwargs: dict[str, Any],
    see: See,
    recorded: Callable[[Recording], None],
) -> tuple[int, list[int]]:
    """Runs the images one after the other; how many they are, and those that are constant.

    Args:
        model: the network, in evaluation; it is left as it is, and does not run itself.
        record_steps, images, kwargs: as ``calibrate`` has them.
        see: gets what is shown.
        recorded: gets the network of every shape before it runs.

    Raises:
        TypeError: ``images`` is nothing that gives images.
        ValueError: one holds NaN or Inf, or is nothing that the model takes; and what ``see`` raises.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    runner = _Runner(record_steps, device, see, recorded)
    count, constant = 0, []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for args in _calls(images):
            call = Arguments.of(*_moved(args, kwargs, device))
            pictures = [t for t in call.tensors() if t.is_floating_point() and t.dim() == 4]
            size = max((len(t) for t in pictures), default=1)
            which = f"image {count}" if size < 2 else f"images {count} to {count + size - 1}"
            if not call.tensors():
                raise _not_taken(call, which, "there is no tensor in it")
            constant += [count + k for k in _checked(call, pictures, which)]
            runner.run(call, which)
            count += size
    return count, constant


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


class _Runner:
    """Plans for the shapes of the images, sharing their weights."""

    def __init__(self, record_steps: Callable, device: torch.device, see: See, recorded: Callable):
        self._record, self._device, self._see, self._recorded = record_steps, device, see, recorded
        self._steps: TorchSteps | None = None
        self._plans: dict[tuple, tuple[TorchPlan, dict[Value, list[Conv | Up]]]] = {}

    def run(self, call: Arguments, which: str) -> None:
        """An image; ``which`` it is, for messages."""
        if call.key not in self._plans:
            self._plans[call.key] = self._prepare(call, which)
            if len(self._plans) > _PLANS:
                del self._plans[next(iter(self._plans))]
        plan, readers = self._plans[call.key]

        def observe(value: Value, image: Tensor) -> None:
            if value in readers:
                self._see(readers[value], image, which)

        try:
            plan(call.tensors(), observe)
        except RuntimeError as error:  # of an operator: what was recorded had no elements, and fewer checks
            raise _not_taken(call, which, error) from error

    def _prepare(self, call: Arguments, which: str) -> tuple[TorchPlan, dict[Value, list[Conv | Up]]]:
        try:
            recording = self._record(call)
        except (Refused, TypeError, ValueError) as error:
            raise _not_taken(call, which, error) from error
        if recording.normalization is not None and not call.tensors()[0].is_floating_point():
            raise _not_taken(call, which, "mean and std are for images of a floating dtype")
        if self._steps is None:  # one for all shapes, which share its weights
            self._steps = TorchSteps(torch.float32, self._device, torch.channels_last, None, recording.normalization)
        self._recorded(recording)
        steps = _without_projections(recording.steps)
        readers: dict[Value, list[Conv | Up]] = {}
        for term in (t for s in steps if isinstance(s, Sum) for t in (*s.convs, *s.ups) if t.weight is not None):
            readers.setdefault(term.value, []).append(term)
        return self._steps.prepare(recording.graph, steps), readers


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
