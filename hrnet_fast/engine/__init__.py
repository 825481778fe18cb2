"""The inference engine: ``optimize(model, example)`` makes a whole network fast."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.engine import planned, torch_modules
from hrnet_fast.engine.cuda_streams import Branches
from hrnet_fast.engine.lowering import Normalization
from hrnet_fast.engine.tape import NotPlannable

__all__ = ["OptimizedModel", "optimize"]

_LOG = logging.getLogger("hrnet_fast")
_LAYOUTS = {"auto": None, torch.contiguous_format: False, torch.channels_last: True}
_NOTHING = ("model: no exchange between resolutions was recognized in it, so it is no HRNet that this engine knows; "
            "hrnet_fast.patch(model) says what it makes of every module")  # fmt: skip


def optimize(
    model: nn.Module,
    example: Tensor,
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | str = "auto",
    cuda_graph: bool | str = "auto",
    streams: bool | str = "auto",
    winograd: bool = True,
    max_shapes: int = 8,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> "OptimizedModel":
    """An HRNet for inference only: the same outputs, as fast as this machine allows. ``model`` is left as it is.

    Takes every HRNet that ``patch`` takes: those of ``create_model``, of timm, of OpenMMLab and of the official
    repositories, patched or not. On CPUs with AVX2 or AVX-512 the network is recorded once for each shape of its input, its
    operators are fused (BatchNorm, ReLU and residual sums into convolutions; exchange units and heads into sums with
    upsampling; strided convolutions of one stream into one), its memory is planned, and C++ kernels run it. Elsewhere
    torch runs a patched copy; on GPUs under CUDA graphs. In half precision both are timed where the kernels lack
    instructions that torch may have (float16; bfloat16 without AVX512-BF16, or with AMX), and the faster one is kept.

    Args:
        model: the network, in evaluation.
        example: an image [N, C, H, W] as it will come, of any floating dtype, on the model's device. Other shapes work
            too: each is prepared when it first comes (``preparations`` says how long that took).
        dtype: that the network computes in and returns: float32, bfloat16 or float16; None: that of the parameters.
        memory_format: that the network computes in; "auto": the fastest. torch.channels_last keeps to torch's operators,
            torch.contiguous_format to planned programs where they can run.
        cuda_graph: on GPUs, whether a CUDA graph is recorded for each shape; "auto": yes.
        streams: on GPUs, whether the branches of a stage run side by side; "auto": not, since
            it has not been measured yet where that pays.
        winograd: on CPUs, whether 3x3 convolutions may be computed by Winograd's algorithm with tiles of 4x4 or 2x2,
            which needs a fourth of the multiplications and rounds differently: errors against float64 grow about five
            times, to about 2e-6 for a whole network in float32.
        max_shapes: shapes that are kept prepared, those that came last.
        mean, std: of each channel, in the images' own units: the result then takes images that are not normalized yet,
            and the network gets (image - mean) / std. In planned programs that is free: ``std`` goes into the weights of
            the first convolution, ``mean`` into its bias and into the border around the image. ``example`` is such an
            image. None: 0 and 1.

    Returns:
        A module that takes an image and returns what ``model`` returns, with outputs that belong to the caller.

    Raises:
        TypeError: model is no nn.Module, example no tensor of a floating dtype, or an unknown dtype.
        ValueError: the model is in training mode, compiled or scripted, on another device than the example, holds NaN or
            Inf, or nothing in it was recognized; the example is not four-dimensional; another argument is unknown.
    """
    _check(model, example)
    if memory_format not in _LAYOUTS:
        raise ValueError(f"memory_format: expected 'auto', torch.channels_last or torch.contiguous_format, "
                         f"got {memory_format!r}")  # fmt: skip
    for name, value in (("cuda_graph", cuda_graph), ("streams", streams)):
        if value not in (True, False, "auto"):
            raise ValueError(f"{name}: expected True, False or 'auto', got {value!r}")
    if max_shapes < 1:
        raise ValueError(f"max_shapes: expected at least 1, got {max_shapes}")
    dtype = _parameter_dtype(model) if dtype is None else dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(f"dtype: expected float32, bfloat16, float16 or float64, got {dtype}")
    normalization = _normalization(mean, std, example.shape[1])
    settings = {"dtype": dtype, "memory_format": memory_format, "cuda_graph": cuda_graph, "streams": streams,
                "winograd": winograd, "max_shapes": max_shapes, "normalization": normalization}  # fmt: skip
    return OptimizedModel(model, tuple(example.shape), settings)


class OptimizedModel(nn.Module):
    """What ``optimize`` returns; see there.

    It may be called from several threads: calls run one after the other. It can be pickled and copied; the copy prepares
    itself anew. Its state dict is empty: the parameters are those of the original model, which it keeps.

    Attributes:
        engine: "planned" (C++ kernels run the whole network) or "modules" (torch runs a patched copy).
        reason: why it is not "planned"; None where it is.
        preparations: of "planned", what it took to be ready for each shape (``Preparation``).
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], settings: dict[str, Any]):
        super().__init__()
        super().train(False)
        # in a list, where nn.Module does not look for submodules
        self._kept, self._shape, self._settings = [model], shape, settings
        self.engine, self.reason, self._run = _start(model, shape, settings)
        self._fingerprint = _fingerprint(model)
        if isinstance(self._run, planned.Planned):
            self._run.is_stale = self.is_stale

    def forward(self, image: Tensor) -> Any:
        """What the original model returns for an image [N, C, H, W], without gradients, in the engine's dtype.

        Raises:
            TypeError: not a tensor of a floating dtype.
            ValueError: another rank, number of channels or device; and what the model itself raises for an image.
            RuntimeError: a shape that is not prepared yet, and the weights have changed since the last ``refresh``.
        """
        _check_image(image, "image")
        device = self._device()
        if image.device != device:
            raise ValueError(f"image: expected a tensor on {device}, where the model is, got one on {image.device}")
        if image.shape[1] != self._shape[1]:
            raise ValueError(f"image: expected {self._shape[1]} channels, got {list(image.shape)}")
        if 0 in image.shape:
            raise ValueError(f"image: it is empty, {list(image.shape)}")
        return self._run(image)

    @property
    def preparations(self) -> list[planned.Preparation]:
        return list(getattr(self._run, "preparations", []))

    def is_stale(self) -> bool:
        """Whether a parameter or buffer of the original model has changed since its weights were taken.

        Writes through ``parameter.data`` leave no trace, and those to tensors made under inference_mode neither.
        """
        return _fingerprint(self._kept[0]) != self._fingerprint

    def refresh(self) -> "OptimizedModel":
        """Takes the weights that the original model has now; returns itself.

        Where they were changed in place (an optimizer's step, load_state_dict) nothing is recorded again.

        Raises:
            ValueError: a weight is NaN or Inf; the old weights stay in use.
        """
        model = self._kept[0]
        _check_finite(model)
        now = _fingerprint(model)
        same = [f[:2] for f in now] == [f[:2] for f in self._fingerprint]
        self._run.refill() if same else self._run.rebuild()
        self._fingerprint = now
        return self

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
        about = f"engine={self.engine!r}, dtype={self._settings['dtype']}"
        return about if self.reason is None else f"{about}, reason={self.reason!r}"

    def _device(self) -> torch.device:
        return next((p.device for p in self._kept[0].parameters()), torch.device("cpu"))

    def __deepcopy__(self, memo: dict) -> "OptimizedModel":
        import copy

        return type(self)(copy.deepcopy(self._kept[0], memo), self._shape, self._settings)

    def __reduce__(self):
        return type(self), (self._kept[0], self._shape, self._settings)


def _start(model: nn.Module, shape: tuple[int, ...], settings: dict[str, Any]) -> tuple[str, str | None, Any]:
    """The name of an engine, why it is not the planned one, and the engine, ready for images of a shape."""
    dtype, layout = settings["dtype"], _LAYOUTS[settings["memory_format"]]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    reason = "torch.channels_last was asked for" if layout else planned.why_not(dtype, device)
    if reason is None:
        engine = planned.Planned(model, dtype, settings["max_shapes"], settings["winograd"], settings["normalization"])
        try:
            # of a tiny image all streams are of one size, and nothing is exchanged
            if engine.prepare(shape) == 0 and not any(hasattr(m, "fuse_layers") for m in model.modules()):
                raise ValueError(_NOTHING)
            return _measured(model, shape, settings, engine) if layout is None else ("planned", None, engine)
        except NotPlannable as error:
            reason = str(error)
    _LOG.info("the network is not planned: %s", reason)
    on_gpu = device.type == "cuda"
    graphs = settings["max_shapes"] if on_gpu and settings["cuda_graph"] is not False else 0
    # "auto" is no: nobody has measured yet where it pays
    branches = Branches() if on_gpu and settings["streams"] is True else None
    modules = torch_modules.TorchModules(model, dtype, layout is not False, graphs, branches, settings["normalization"])
    if modules.exchanges() == 0:
        raise ValueError(_NOTHING)
    return "modules", reason, modules


def _measured(
    model: nn.Module, shape: tuple[int, ...], settings: dict[str, Any], engine: planned.Planned
) -> tuple[str, str | None, Any]:
    """In half precision the faster of the two engines: processors differ in what their instructions gain there."""
    dtype = settings["dtype"]
    if not planned.is_in_doubt(dtype):
        return "planned", None, engine
    modules = torch_modules.TorchModules(model, dtype, True, normalization=settings["normalization"])
    image = torch.rand(shape)
    ours, theirs = _milliseconds(engine, image), _milliseconds(modules, image)
    if ours <= theirs or modules.exchanges() == 0:
        return "planned", None, engine
    return "modules", f"here, in {dtype}, it was measured to be faster: {theirs:.1f} ms, planned {ours:.1f} ms", modules


def _milliseconds(call: Any, image: Tensor) -> float:
    samples = []
    for _ in range(4):  # the first one prepares
        start = time.perf_counter()
        call(image)
        samples.append(time.perf_counter() - start)
    return 1e3 * min(samples[1:])


def _check(model: nn.Module, example: Tensor) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, (torch.jit.ScriptModule, torch.fx.GraphModule)) or hasattr(model, "_orig_mod"):
        raise ValueError("model: it is compiled, scripted or recorded already: optimize the original module")
    if isinstance(model, OptimizedModel):
        raise ValueError("model: it is optimized already")
    training = [name or "the model itself" for name, m in model.named_modules() if m.training]
    if training:
        raise ValueError(f"model: {training[0]} is in training mode: call model.eval() first")
    _check_image(example, "example")
    device = next((p.device for p in model.parameters()), example.device)
    if device != example.device:
        raise ValueError(f"example: it is on {example.device}, and the model is on {device}")
    channels = getattr(model, "in_chans", None)  # of our own models; others say it themselves when they run
    if isinstance(channels, int) and channels != example.shape[1]:
        raise ValueError(f"example: expected {channels} channels, got {list(example.shape)}")
    _check_finite(model)


def _normalization(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> Normalization | None:
    if mean is None and std is None:
        return None
    made = []
    for name, values, otherwise in (("mean", mean, 0.0), ("std", std, 1.0)):
        values = tuple(float(v) for v in ([otherwise] * channels if values is None else values))
        if len(values) != channels or not all(math.isfinite(v) for v in values) or (name == "std" and min(values) <= 0):
            least = "finite" if name == "mean" else "finite, positive"
            raise ValueError(f"{name}: expected {channels} {least} numbers, one for each channel, got {list(values)}")
        made.append(values)
    return Normalization(*made)


def _check_image(image: Tensor, name: str) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{name}: expected a tensor [N, C, H, W], got {type(image).__name__}")
    if not image.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {image.dtype}: normalize the image first")
    if image.dim() != 4:
        raise ValueError(f"{name}: expected [N, C, H, W], got {list(image.shape)}")


def _check_finite(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"model: {name} holds NaN or Inf")


def _parameter_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _fingerprint(model: nn.Module) -> list[tuple]:
    """Of every parameter and buffer its name, itself, version and address; compared by identity of the tensors."""
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return [(name, id(t), None if t.is_inference() else t._version, t.data_ptr()) for name, t in tensors]
