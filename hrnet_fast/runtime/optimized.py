"""``optimize(model, example)``: a whole network for inference, as fast as the machine allows."""

import collections
import copy
import difflib
import fnmatch
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.nn.module_fingerprint import why_closed
from hrnet_fast.ops.transforms import transformed
from hrnet_fast.runtime.arguments import Arguments, Expected
from hrnet_fast.runtime.calibration import Calibration, calibrate
from hrnet_fast.runtime.changes import Fingerprint
from hrnet_fast.runtime.cpu.profile import Profile
from hrnet_fast.runtime.normalization import Normalization
from hrnet_fast.runtime.sensitivity import Sensitivity, sensitivity
from hrnet_fast.runtime.statistics import check_ranges
from hrnet_fast.runtime.watch import Recording
from hrnet_fast.runtime.ways import LAYOUTS, Prepared, Ways, parameter_dtype

__all__ = ["Memory", "OptimizedModel", "Preparation", "optimize"]

_LOG = logging.getLogger("hrnet_fast")


def optimize(
    model: nn.Module,
    example: Any,
    kwargs: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | str = "auto",
    cuda_graph: bool | str = "auto",
    streams: bool | str = "auto",
    winograd: bool = True,
    max_shapes: int = 8,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    calibration: Calibration | Tensor | Iterable[Any] | None = None,
    ranges: str = "mse",
    keep: str | Sequence[str] = (),
) -> "OptimizedModel":
    """A network for inference only: the same outputs, as fast as this machine allows. ``model`` is left as it is.

    Made for HRNets, whoever wrote them, patched or not; any other network works too. It is recorded as one graph of
    operators without side effects. Passes fuse them: BatchNorm, ReLU and residual sums into convolutions; exchange
    units and heads into sums with upsampling; strided convolutions of one stream into one. Then the first of these
    runs it that can, and that gives the model's own results on a random image (``hrnet_fast.tolerances``):

    1. "planned": C++ kernels in planned memory, on CPUs that have the instructions. How half precision is computed (by
       tiles, by pairs, with products in float32, or in float32 altogether) is measured once for each machine and kept
       in a cache folder. Where torch may have better instructions, and where many operators have no kernel, it is timed
       beside "torch", and the faster one is kept.
    2. "torch": torch's operators and this package's exchange, step by step; on GPUs under CUDA graphs.
    3. "grouped", on NVIDIA GPUs with Triton: all convolutions and sums that do not depend on each other in one launch,
       in one arena, under CUDA graphs. For every shape it is timed beside "torch" with and without streams, and the
       fastest is kept; ``reason`` has the times.
    4. "model": the model itself, if it cannot be recorded; ``reason`` says why. Models that write into their buffers,
       remember what they computed, look at pixels in Python, or have hooks that only observe, run this way.

    Args:
        model: the network, in evaluation. While a shape is prepared, no other thread may use it.
        example: an image [N, C, H, W] as it will come, of any floating dtype, on the model's device. Or whatever the
            model takes: a tuple stands for several positional arguments; lists, dicts, named tuples and dataclasses may
            hold tensors. Other shapes work too: each is prepared when it first comes (``preparations``).
        kwargs: keyword arguments that calls will have.
        dtype: that the network computes in and returns: float32, bfloat16, float16 or float64; None: that of the
            parameters. int8, on CPUs: convolutions multiply 8-bit integers, sums stay wider, results are float32;
            it needs a ``calibration``. Where that is not faster, or loses too much, a wider dtype runs and ``reason``
            says so.
        memory_format: that the network computes in; "auto": the fastest. torch.channels_last keeps to torch's
            operators, torch.contiguous_format to planned programs where they can run.
        cuda_graph: on GPUs, whether a CUDA graph is recorded for each shape; "auto": yes.
        streams: on GPUs, whether torch's operators run independent steps side by side; "auto": what is faster.
        winograd: on CPUs, whether 3x3 convolutions may be computed by Winograd's algorithm with tiles of 4x4 or 2x2,
            which needs a fourth of the multiplications and rounds differently: errors against float64 grow about five
            times, to about 2e-6 for a whole network in float32.
        max_shapes: shapes that are kept prepared, those that came last.
        mean, std: of each channel, in the images' own units: the result then takes images that are not normalized yet,
            and the network gets (image - mean) / std. In planned programs that is free: ``std`` goes into the weights
            of the first convolution, ``mean`` into its bias and into the border around the image. ``example`` is such
            an image. None: 0 and 1.
        calibration: for int8: some images as they will come, 16 to 64 of them: a tensor [N, C, H, W], or an iterable of
            what the model takes (``[C, H, W]`` gets a batch dimension). Or a ``Calibration``, such as another optimized
            model's ``calibration``, or one from a file (``Calibration.load``).
        ranges: for int8: from where on numbers between the layers are cut off. "mse": where the squared error is least,
            "max": nowhere, "99.99%": this share of the numbers is kept. A ``Calibration`` has its own.
        keep: for int8: names of convolutions that stay wider, as patterns of a shell: "stage4.*". Their own names are
            those of their parameters; ``sensitivity`` lists them. The first convolution of an image, and the classifier
            behind a head, always stay wider.

    Returns:
        A module that takes what ``model`` takes and returns what it returns, with outputs that belong to the caller.

    Raises:
        TypeError: model is no nn.Module, an unknown dtype, or an example of a type that the model does not take;
            ``calibration`` is nothing that gives images.
        ValueError: the model is in training mode, compiled or scripted, on another device than the example, holds NaN
            or Inf, or does not take the example; another argument is unknown; int8 without a calibration, or the other
            way round, or not on the CPU; a calibration without images, with NaN, with constant images alone, with
            images that the model does not take, or of another network; ``keep`` names no convolution.
    """
    args, kwargs = (example if type(example) is tuple else (example,)), dict(kwargs or {})
    _check_model(model)
    if memory_format not in LAYOUTS:
        raise ValueError(
            f"memory_format: expected 'auto', torch.channels_last or torch.contiguous_format, got {memory_format!r}"
        )
    for name, value in (("cuda_graph", cuda_graph), ("streams", streams)):
        if value not in (True, False, "auto"):
            raise ValueError(f"{name}: expected True, False or 'auto', got {value!r}")
    if max_shapes < 1:
        raise ValueError(f"max_shapes: expected at least 1, got {max_shapes}")
    dtype = parameter_dtype(model) if dtype is None else dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8):
        raise TypeError(f"dtype: expected float32, bfloat16, float16, float64 or int8, got {dtype}")
    integers = dtype == torch.int8
    if integers != (calibration is not None):
        raise ValueError(
            "calibration: int8 needs some images, or a Calibration"
            if integers
            else f"calibration: it is for int8, and the dtype is {dtype}"
        )
    check_ranges(ranges)
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    if not all(isinstance(pattern, str) for pattern in keep):
        raise TypeError(f"keep: expected names of convolutions, got {keep}")
    normalization = _normalization(mean, std, args, kwargs)
    settings = {
        "dtype": torch.float32 if integers else dtype,
        "memory_format": memory_format,
        "cuda_graph": cuda_graph,
        "streams": streams,
        "winograd": winograd,
        "max_shapes": max_shapes,
        "normalization": normalization,
        "calibration": calibration,
        "ranges": ranges,
        "keep": keep,
    }
    return OptimizedModel(model, args, kwargs, settings)


class Preparation(NamedTuple):
    """What it took to be ready for inputs of a shape, and how they are run."""

    shape: tuple  # of the tensor; of each tensor, if there are several
    seconds: float
    operations: int  # of the network, BatchNorm and ReLU counted on their own; 0: it could not be recorded
    steps: int  # that they became
    engine: str
    reason: str | None


class Memory(NamedTuple):
    """What an optimized network keeps, in bytes, beside the model's own parameters."""

    arena: int  # for the images between steps, shared by all shapes
    weights: int  # folded and packed, shared by all shapes


class OptimizedModel(nn.Module):
    """What ``optimize`` returns; see there.

    It may be called from several threads: calls run one after the other. It can be pickled and copied; the copy
    prepares itself anew. Its state dict is empty: the parameters are those of the original model, which it keeps.

    Attributes:
        engine: "planned", "grouped", "torch" or "model": what runs inputs like the example (see ``optimize``).
        reason: why it is not "planned", or why it computes in a wider dtype; on GPUs the times that were measured; else
            None.
        preparations: what it took to be ready for each shape (``Preparation``).
        calibration: in int8, what the convolutions multiply (``Calibration``), which can be saved; else None.
    """

    if TYPE_CHECKING:
        __getattr__: None  # type: ignore[assignment]  # with nn.Module's, type checkers take any attribute for a tensor

    def __init__(self, model: nn.Module, args: tuple, kwargs: dict, settings: dict[str, Any]):
        super().__init__()
        super().train(False)
        self._kept = [model]  # in a list, where nn.Module does not look for submodules
        self._settings, self._lock = settings, threading.RLock()
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._expected = Expected(args, kwargs, self._device)
        first = Arguments.of(args, kwargs)
        for tensor in first.tensors():
            if tensor.device != self._device:
                raise ValueError(f"example: it is on {tensor.device}, and the model is on {self._device}")
        # enough for a copy to prepare itself: small, but for int8, which is tried on what was given
        exactly = settings["calibration"] is not None
        self._example = first.like(
            lambda t: t.clone() if exactly else t.new_zeros(1).expand(t.shape) if t.is_floating_point() else t
        )
        self.preparations: list[Preparation] = []
        self._fingerprint = Fingerprint.of(model)
        self._shapes: collections.OrderedDict[tuple, Prepared] = collections.OrderedDict()
        if settings["calibration"] is not None:
            self._settings = {**settings, "calibration": self._calibrated(first)}
        self.calibration: Calibration | None = self._settings["calibration"]
        self._begin()
        self._prepare(first, is_example=True)
        self.engine, self.reason = self.preparations[0].engine, self.preparations[0].reason

    def _calibrated(self, example: Arguments) -> Calibration:
        """The calibration that was given, or that of the images."""
        model, settings = self._kept[0], self._settings
        if self._device.type != "cpu":
            raise ValueError(f"dtype: int8 is for CPUs, and the model is on {self._device}")
        found = settings["calibration"]
        if not isinstance(found, Calibration):
            _, kwargs = example.build(example.leaves)
            with torch.inference_mode(False):
                found = calibrate(model, found, ranges=settings["ranges"], kwargs=kwargs, record_steps=self._recorder())
        return self._checked(found)

    def _checked(self, found: Calibration) -> Calibration:
        for pattern in self._settings["keep"]:
            if not fnmatch.filter(found.activations, pattern):
                near = difflib.get_close_matches(pattern, found.activations, 1) or list(found.activations)[:1]
                raise ValueError(
                    f"keep: no convolution is called {pattern!r}; one is {near[0] if near else 'not there'!r}"
                )
        return found

    def _recorder(self) -> Callable[[Arguments], Recording]:
        """Records the model for arguments like the example."""
        ways = Ways(self._kept[0], self._device, {**self._settings, "calibration": None})
        return lambda call: ways.record(self._expected.check(*call.build(call.leaves)))

    def _begin(self) -> None:
        """Nothing is prepared."""
        self._shapes.clear()
        self._ways = Ways(self._kept[0], self._device, self._settings)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the original model returns, without gradients, in the network's dtype.

        Raises:
            TypeError: not a tensor, or not of a floating dtype, where the example has such a tensor.
            ValueError: another structure, rank, number of channels or device; and what the model itself raises.
            RuntimeError: a shape that is not prepared yet, and the weights have changed since the last ``refresh``, or
                the model is in training mode; or forward-mode derivatives or vmap are under way.
        """
        if transformed():
            raise RuntimeError(
                "an optimized model has neither derivatives nor vmap: call the model that it was made of"
            )
        call = self._expected.check(args, kwargs)
        with self._lock:
            if self.engine == "model":  # nothing is prepared, and a model with state must not look like a stale one
                return self._ways.run(Prepared(None, None, [], "model", self.reason), call)
            if call.key not in self._shapes:
                self._prepare(call)
            self._shapes.move_to_end(call.key)
            return self._ways.run(self._shapes[call.key], call)

    def is_stale(self) -> bool:
        """Whether a parameter, buffer, module or hook of the original model has changed since its weights were taken.

        Steps of torch's optimizers are seen, fused ones too. Writes through ``parameter.data``, numpy or DLPack leave
        no trace, and those to tensors made under inference_mode neither: call ``refresh`` after them.
        """
        return Fingerprint.of(self._kept[0]) != self._fingerprint

    def refresh(self) -> "OptimizedModel":
        """Takes the weights that the original model has now; returns itself.

        Where they were changed in place (an optimizer's step, load_state_dict) nothing is recorded again.

        Raises:
            ValueError: a weight is NaN or Inf, or modules were changed and the model is in training mode; the old
                weights stay in use.
            RuntimeError: in int8, whose calibration belongs to the old weights: call ``optimize`` again.
        """
        model = self._kept[0]
        if self.calibration is not None:
            raise RuntimeError("refresh: the calibration belongs to the old weights: call optimize again, with images")
        _check_finite(model)
        now = Fingerprint.of(model)
        with self._lock:
            graphs = [p.graph for p in self._shapes.values() if p.graph is not None]
            if now.structure == self._fingerprint.structure and not any(g.baked for g in graphs):
                self._ways.refill()
                self._shapes.update({key: self._ways.refilled(p) for key, p in self._shapes.items()})
            else:
                _check_training(model)
                self._fingerprint = now
                self._begin()
                args, kwargs = self._example
                self._prepare(Arguments.of(args, kwargs), is_example=True)
                self.engine, self.reason = self.preparations[-1].engine, self.preparations[-1].reason
            self._fingerprint = now
        return self

    def memory(self) -> Memory:
        """What is kept beside the model's own parameters, in bytes; what torch's allocator keeps is not counted."""
        with self._lock:
            return Memory(*self._ways.memory())

    def profile(self, *args: Any, repeat: int = 10, **kwargs: Any) -> Profile:
        """What each operation of a planned program takes: ``print(fast.profile(image))`` shows a table.

        Args:
            args, kwargs: what the model takes; a shape that is not prepared yet is prepared.
            repeat: runs, whose medians are returned.

        Raises:
            ValueError: ``repeat`` is less than 1.
            RuntimeError: another way than a planned program runs these arguments: torch.profiler shows its operators.
        """
        if repeat < 1:
            raise ValueError(f"repeat: expected at least 1, got {repeat}")
        self(*args, **kwargs)
        call = self._expected.check(args, kwargs)
        with self._lock, torch.no_grad():
            prepared = self._shapes.get(call.key)
            if prepared is None or prepared.engine != "planned":
                raise RuntimeError(
                    f"profile: {self.engine!r} runs these arguments, not a planned program: "
                    "torch.profiler shows what it does"
                )
            return prepared.run.profile([t.detach() for t in call.tensors()], repeat)

    def sensitivity(self, images: Tensor | Iterable, **kwargs: Any) -> Sensitivity:
        """In int8, what each convolution loses: ``print(fast.sensitivity(images))`` shows a table, the worst first.

        Args:
            images: as ``optimize`` takes them for a calibration; one or two are enough.
            kwargs: keyword arguments of every call.

        Raises:
            TypeError, ValueError: as for a calibration.
            RuntimeError: not in int8.
        """
        if self.calibration is None:
            raise RuntimeError("sensitivity: only int8 has it")
        with self._lock, torch.inference_mode(False):
            return sensitivity(self._kept[0], self._recorder(), images, self.calibration, kwargs)

    def train(self, mode: bool = True) -> "OptimizedModel":
        """Only evaluation: train the original model, then ``refresh()``.

        Raises:
            ValueError: ``mode`` is True.
        """
        if mode:
            raise ValueError("an optimized model is for inference only: train the original model, then call refresh()")
        return self

    def extra_repr(self) -> str:
        """The engine, and why it is that one."""
        dtype = self._settings["dtype"] if self.calibration is None else torch.int8
        about = f"engine={self.engine!r}, dtype={dtype}"
        return about if self.reason is None else f"{about}, reason={self.reason!r}"

    def _apply(self, fn: Callable, recurse: bool = True) -> "OptimizedModel":
        raise ValueError("an optimized model stays in its dtype and on its device: optimize(model, ..., dtype=...)")

    def __deepcopy__(self, memo: dict) -> "OptimizedModel":
        return type(self)(copy.deepcopy(self._kept[0], memo), *copy.deepcopy(self._example), self._settings)

    def __reduce__(self):
        return type(self), (self._kept[0], *self._example, self._settings)

    def _prepare(self, call: Arguments, is_example: bool = False) -> None:
        """Is ready for arguments of these shapes, by the first way that can run them and is right."""
        model, start = self._kept[0], time.perf_counter()
        if not is_example:
            if any(m.training for m in model.modules()):
                raise RuntimeError(
                    "the model is in training mode, and this shape is not prepared: eval(), then refresh()"
                )
            if self.is_stale():  # some weights are packed, others would be packed now: a mixture
                raise RuntimeError("the model's weights have changed, and this shape is not prepared: refresh()")
        # what is made here serves calls outside of inference mode as well
        with torch.inference_mode(False), torch.no_grad():
            prepared = self._ways.prepare(call, is_example)
        self._shapes[call.key] = prepared
        while len(self._shapes) > self._settings["max_shapes"]:
            self._shapes.popitem(last=False)
        operations = 0 if prepared.graph is None else len(prepared.graph.nodes)
        steps = getattr(prepared.run, "steps", 0)
        self.preparations.append(
            Preparation(call.shapes(), time.perf_counter() - start, operations, steps, prepared.engine, prepared.reason)
        )
        if prepared.reason is not None:
            _LOG.info("%s is run by %r: %s", list(call.shapes()), prepared.engine, prepared.reason)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    closed = why_closed(model)
    if closed is not None:
        raise ValueError(f"model: it is {closed}: optimize the original module")
    if isinstance(model, OptimizedModel):
        raise ValueError("model: it is optimized already")
    _check_training(model)
    _check_finite(model)


def _check_training(model: nn.Module) -> None:
    training = [name or "the model itself" for name, m in model.named_modules() if m.training]
    if training:
        raise ValueError(f"model: {training[0]} is in training mode: call model.eval() first")


def _normalization(mean, std, args: tuple, kwargs: dict) -> Normalization | None:
    if mean is None and std is None:
        return None
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].dim() != 4:
        raise ValueError("mean, std: they are for networks that take one image [N, C, H, W]")
    channels, made = args[0].shape[1], []
    for name, values, otherwise in (("mean", mean, 0.0), ("std", std, 1.0)):
        values = tuple(float(v) for v in ([otherwise] * channels if values is None else values))
        if len(values) != channels or not all(math.isfinite(v) for v in values) or (name == "std" and min(values) <= 0):
            least = "finite" if name == "mean" else "finite, positive"
            raise ValueError(f"{name}: expected {channels} {least} numbers, one for each channel, got {list(values)}")
        made.append(values)
    return Normalization(*made)


def _check_finite(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # a sum is quick, and finite only if every number is; the other way round it may overflow
        if tensor.is_floating_point() and not (tensor.sum().isfinite() or tensor.isfinite().all()):
            raise ValueError(f"model: {name} holds NaN or Inf")
