"""``optimize(model, example)``: a whole network for inference, as fast as the machine allows."""

import collections
import contextlib
import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.autograd import transformed
from hrnet_fast.network.nodes import Constant, Constants, Graph, Refused, Value
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.network.sums import Call, Step, exchanges
from hrnet_fast.network.trees import flatten
from hrnet_fast.network.untouched import restored
from hrnet_fast.runtime import trial
from hrnet_fast.runtime.arguments import Arguments, Expected
from hrnet_fast.runtime.changes import Fingerprint
from hrnet_fast.runtime.cpu import planned
from hrnet_fast.runtime.cuda_graphs import GraphedModule
from hrnet_fast.runtime.cuda_streams import Branches
from hrnet_fast.runtime.normalization import Normalization
from hrnet_fast.runtime.torch_steps import TorchSteps
from hrnet_fast.standard import standard_operators

__all__ = ["Memory", "OptimizedModel", "Preparation", "optimize"]

_LOG = logging.getLogger("hrnet_fast")
_LAYOUTS = {"auto": None, torch.contiguous_format: False, torch.channels_last: True}
# With more operators than this left to torch, both ways are timed: kernels gain nothing where torch does the work.
_MANY_CALLS = 16


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
) -> "OptimizedModel":
    """A network for inference only: the same outputs, as fast as this machine allows. ``model`` is left as it is.

    Made for HRNets, whoever wrote them, patched or not; any other network works too. It is recorded as one graph of
    operators without side effects. Passes fuse them: BatchNorm, ReLU and residual sums into convolutions; exchange units
    and heads into sums with upsampling; strided convolutions of one stream into one. Then the first of these runs it that
    can, and that gives the model's own results on a random image (``hrnet_fast.tolerances``):

    1. "planned": C++ kernels in planned memory, on CPUs that have the instructions. In half precision, and where many
       operators have no kernel, it is timed beside "torch", and the faster one is kept.
    2. "torch": torch's operators and this package's exchange, step by step; on GPUs under CUDA graphs.
    3. "model": the model itself, if it cannot be recorded; ``reason`` says why. Models that write into their buffers,
       remember what they computed, look at pixels in Python, or have hooks that only observe, run this way.

    Args:
        model: the network, in evaluation. While a shape is prepared, no other thread may use it.
        example: an image [N, C, H, W] as it will come, of any floating dtype, on the model's device. Or whatever the
            model takes: a tuple stands for several positional arguments; lists, dicts, named tuples and dataclasses may
            hold tensors. Other shapes work too: each is prepared when it first comes (``preparations``).
        kwargs: keyword arguments that calls will have.
        dtype: that the network computes in and returns: float32, bfloat16, float16 or float64; None: that of the
            parameters.
        memory_format: that the network computes in; "auto": the fastest. torch.channels_last keeps to torch's operators,
            torch.contiguous_format to planned programs where they can run.
        cuda_graph: on GPUs, whether a CUDA graph is recorded for each shape; "auto": yes.
        streams: on GPUs, whether independent steps run side by side; "auto": not, since it has not been measured yet
            where that pays.
        winograd: on CPUs, whether 3x3 convolutions may be computed by Winograd's algorithm with tiles of 4x4 or 2x2,
            which needs a fourth of the multiplications and rounds differently: errors against float64 grow about five
            times, to about 2e-6 for a whole network in float32.
        max_shapes: shapes that are kept prepared, those that came last.
        mean, std: of each channel, in the images' own units: the result then takes images that are not normalized yet,
            and the network gets (image - mean) / std. In planned programs that is free: ``std`` goes into the weights of
            the first convolution, ``mean`` into its bias and into the border around the image. ``example`` is such an
            image. None: 0 and 1.

    Returns:
        A module that takes what ``model`` takes and returns what it returns, with outputs that belong to the caller.

    Raises:
        TypeError: model is no nn.Module, an unknown dtype, or an example of a type that the model does not take.
        ValueError: the model is in training mode, compiled or scripted, on another device than the example, holds NaN or
            Inf, or does not take the example; another argument is unknown.
    """
    args, kwargs = (example if type(example) is tuple else (example,)), dict(kwargs or {})
    _check_model(model)
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
    normalization = _normalization(mean, std, args, kwargs)
    settings = {"dtype": dtype, "memory_format": memory_format, "cuda_graph": cuda_graph, "streams": streams,
                "winograd": winograd, "max_shapes": max_shapes, "normalization": normalization}  # fmt: skip
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


class _Prepared(NamedTuple):
    run: Callable[[list[Tensor]], list[Tensor]] | None  # None: the model itself
    graph: Graph | None
    steps: list[Step]
    engine: str
    reason: str | None


class OptimizedModel(nn.Module):
    """What ``optimize`` returns; see there.

    It may be called from several threads: calls run one after the other. It can be pickled and copied; the copy prepares
    itself anew. Its state dict is empty: the parameters are those of the original model, which it keeps.

    Attributes:
        engine: "planned", "torch" or "model": what runs inputs like the example (``optimize`` explains them).
        reason: why it is not "planned"; None where it is.
        preparations: what it took to be ready for each shape (``Preparation``).
    """

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
        # small, and enough for a copy to prepare itself
        self._example = first.like(lambda t: t.new_zeros(1).expand(t.shape) if t.is_floating_point() else t)
        self.preparations: list[Preparation] = []
        self._fingerprint = Fingerprint.of(model)
        self._begin()
        self._prepare(first, is_example=True)
        self.engine, self.reason = self.preparations[0].engine, self.preparations[0].reason

    def _begin(self) -> None:
        """Nothing is prepared."""
        settings = self._settings
        dtype, layout, normalization = settings["dtype"], _LAYOUTS[settings["memory_format"]], settings["normalization"]
        on_gpu = self._device.type == "cuda"
        self._model_dtype = _parameter_dtype(self._kept[0])
        self._constants = Constants()
        self._shapes: collections.OrderedDict[tuple, _Prepared] = collections.OrderedDict()
        # "auto" is no: nobody has measured yet where it pays
        branches = Branches() if on_gpu and settings["streams"] is True else None
        layout_of_torch = torch.contiguous_format if layout is False else torch.channels_last
        self._torch = TorchSteps(dtype, self._device, layout_of_torch, branches, normalization)
        self._why_not_planned = "torch.channels_last was asked for" if layout else planned.why_not(dtype, self._device)
        self._planned = None
        if self._why_not_planned is None:
            self._planned = planned.Planned(dtype, settings["winograd"], normalization)
        self._graphs = None
        if on_gpu and settings["cuda_graph"] is not False:
            self._graphs = GraphedModule(self._run_by_torch, max_graphs=settings["max_shapes"])
        self._cast: list[nn.Module] = []  # the model in another dtype, once it is needed
        self._operators: tuple | None = None  # of a graph that was right beside the model, and what ran it

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
                return self._run(_Prepared(None, None, [], "model", self.reason), call)
            if call.key not in self._shapes:
                self._prepare(call)
            self._shapes.move_to_end(call.key)
            return self._run(self._shapes[call.key], call)

    def is_stale(self) -> bool:
        """Whether a parameter, buffer, module or hook of the original model has changed since its weights were taken.

        Steps of torch's optimizers are seen, fused ones too. Writes through ``parameter.data``, numpy or DLPack leave no
        trace, and those to tensors made under inference_mode neither: call ``refresh`` after them.
        """
        return Fingerprint.of(self._kept[0]) != self._fingerprint

    def refresh(self) -> "OptimizedModel":
        """Takes the weights that the original model has now; returns itself.

        Where they were changed in place (an optimizer's step, load_state_dict) nothing is recorded again.

        Raises:
            ValueError: a weight is NaN or Inf, or modules were changed and the model is in training mode; the old
                weights stay in use.
        """
        model = self._kept[0]
        _check_finite(model)
        now = Fingerprint.of(model)
        with self._lock:
            graphs = [p.graph for p in self._shapes.values() if p.graph is not None]
            if now.structure == self._fingerprint.structure and not any(g.baked for g in graphs):
                self._refill()
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
            parts = [way.memory() for way in (self._planned, self._torch) if way is not None]
        return Memory(*(sum(p) for p in zip(*parts)))

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
            prepared = self._record_and_try(call, is_example)
        self._shapes[call.key] = prepared
        while len(self._shapes) > self._settings["max_shapes"]:
            self._shapes.popitem(last=False)
        operations = 0 if prepared.graph is None else len(prepared.graph.nodes)
        steps = getattr(prepared.run, "steps", 0)
        self.preparations.append(Preparation(call.shapes(), time.perf_counter() - start, operations, steps,
                                             prepared.engine, prepared.reason))  # fmt: skip
        if prepared.reason is not None:
            _LOG.info("%s is run by %r: %s", list(call.shapes()), prepared.engine, prepared.reason)

    def _record_and_try(self, call: Arguments, is_example: bool) -> _Prepared:
        like = self._model_dtype

        def blank(t: Tensor) -> Tensor:
            return torch.empty(t.shape, dtype=like if t.is_floating_point() else t.dtype, device=t.device)

        try:
            graph = record(self._kept[0], *call.like(blank), constants=self._constants, calls=2 if is_example else 1)
            steps = steps_of(graph)
        except Refused as error:
            if error.raised and is_example:
                self._try_the_model(call)
            return _Prepared(None, None, [], "model", f"the network cannot be recorded: {error}")
        if is_example and not exchanges(steps):
            _LOG.info("no exchange between resolutions was found: this is no HRNet that is known")
        reason, candidates = self._why_not_planned, []
        if self._planned is not None:
            try:
                candidates.append(("planned", None, self._planned.prepare(graph, steps)))
            except Refused as error:
                reason = str(error)
        calls = sum(isinstance(s, Call) for s in steps)
        doubt = calls > _MANY_CALLS or planned.is_in_doubt(self._settings["dtype"]) if candidates else False
        if candidates and doubt and _LAYOUTS[self._settings["memory_format"]] is None:
            candidates = self._by_time(call, graph, steps, candidates)
        else:
            candidates.append(("torch", reason, None))
        expected = None
        for engine, why, run in candidates:
            run = self._torch.prepare(graph, steps) if run is None else run
            prepared = _Prepared(run, graph, steps, engine, why if reason is None else reason)
            operators = (engine, *(n.operator for n in graph.nodes))
            if operators == self._operators:
                return prepared  # it was right for another shape
            if expected is None:
                leaves, expected = self._expectation(call)
                if isinstance(expected, Exception):
                    return _Prepared(None, None, [], "model", f"the model itself raises: {expected}")
            reason = self._why_wrong(prepared, call, leaves, expected)
            if reason is None:
                self._operators = operators
                return prepared
            reason = f"{engine!r} gave something else than the model: {reason}"
            _LOG.warning("%s", reason)
        return _Prepared(None, None, [], "model", reason)

    def _by_time(self, call: Arguments, graph: Graph, steps: list[Step], candidates: list) -> list:
        """The planned program and torch's operators, the faster first."""
        ours, theirs = candidates[0][2], self._torch.prepare(graph, steps)
        tensors = [torch.rand_like(t) if t.is_floating_point() else t for t in call.tensors()]
        try:
            ms = [milliseconds(run, tensors) for run in (ours, theirs)]
        except Exception:  # of an operator: the trial says which
            return [*candidates, ("torch", None, theirs)]
        why = (
            f"here, in {self._settings['dtype']}, it was measured to be faster: {ms[1]:.1f} ms, planned {ms[0]:.1f} ms"
        )
        ranked = [("planned", None, ours), ("torch", why, theirs)]
        return ranked if ms[0] <= ms[1] else ranked[::-1]

    def _expectation(self, call: Arguments) -> tuple[list, Any]:
        """Random arguments, and what the model itself makes of them: (result, the arguments afterwards), or its error."""
        normalization = self._settings["normalization"]
        moments = () if normalization is None else map(torch.tensor, (normalization.mean, normalization.std))
        leaves = trial.random_inputs(call.leaves, *moments)
        given = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
        try:
            # by standard operators: what was recorded, and without the weights that fast modules would fold and keep
            with restored(self._kept[0]), standard_operators():
                result = self._by_the_model(self._kept[0], call.build, given, _parameter_dtype(self._kept[0]))
        except Exception as error:  # whatever a model may raise
            return leaves, error
        return leaves, (result, [] if normalization is not None else given)

    def _why_wrong(self, prepared: _Prepared, call: Arguments, leaves: list, expected: Any) -> str | None:
        dtype, given = self._settings["dtype"], [x.clone() if isinstance(x, Tensor) else x for x in leaves]

        def own_error() -> float:
            twins = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
            with restored(self._kept[0]), standard_operators():
                result = self._by_the_model(self._model_in_dtype(), call.build, twins, dtype)
            return trial.largest_error(result, expected[0])

        try:
            result = self._run(prepared, Arguments(given, call.build, call.key))
        except Exception as error:  # the next way takes over, and the reason says what it was
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        compared = (result, given) if expected[1] else (result, [])
        return trial.why_not(compared, expected, dtype, own_error, _parameter_dtype(self._kept[0]))

    def _try_the_model(self, call: Arguments) -> None:
        """The example must be something that the model takes."""
        given = [x.clone() if isinstance(x, Tensor) else x for x in call.leaves]
        model = self._kept[0]
        try:
            with restored(model), contextlib.suppress(_NoCopy):
                self._by_the_model(_copied(model), call.build, given, _parameter_dtype(model))
        except Exception as error:  # whatever a model may raise
            tensors = call.tensors()
            kinds = [f"{list(t.shape)} of {t.dtype}" for t in tensors] or [type(x).__name__ for x in call.leaves]
            in_type = isinstance(error, TypeError) or not all(t.is_floating_point() for t in tensors)
            first = (str(error).splitlines() or [""])[0]
            message = f"example: the model does not take {', '.join(kinds)} ({type(error).__name__}: {first})"
            raise (TypeError if in_type else ValueError)(message) from error

    def _run(self, prepared: _Prepared, call: Arguments) -> Any:
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            if prepared.run is None:
                return self._by_the_model(self._model_in_dtype(), call.build, call.leaves, self._settings["dtype"])
            graph, tensors = prepared.graph, [t.detach() for t in call.tensors()]
            if prepared.engine == "torch" and self._graphs is not None:
                made = self._graphs(call.key, *tensors)
            else:
                made = prepared.run(tensors)
            env = dict(zip(graph.outputs(), made))
            if self._settings["normalization"] is None:
                for old, new in graph.writes:
                    tensors[graph.inputs.index(old)].copy_(env[new])
            return graph.build([self._result(x, env) for x in graph.results])

    def _result(self, x: Any, env: dict[Value, Tensor]) -> Any:
        if isinstance(x, Constant):
            return x.value().detach().to(self._result_dtype(x.dtype), copy=True)
        if isinstance(x, Value):
            return env[x].to(self._result_dtype(x.dtype))
        return x

    def _result_dtype(self, recorded: torch.dtype) -> torch.dtype:
        """The network's where the model returns its own; what a model computes in another one stays in that."""
        return self._settings["dtype"] if recorded == self._model_dtype else recorded

    def _run_by_torch(self, key: tuple, *tensors: Tensor) -> list[Tensor]:
        return self._shapes[key].run(list(tensors))

    def _by_the_model(self, model: nn.Module, build: Callable, leaves: list, dtype: torch.dtype) -> Any:
        normalization = self._settings["normalization"]

        def cast(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.detach()
            x = x if normalization is None else normalization(x)
            return x.to(dtype) if x.is_floating_point() else x

        args, kwargs = build([cast(x) for x in leaves])
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            result = model(*args, **kwargs)
        theirs = {x.untyped_storage().data_ptr() for x in leaves if isinstance(x, Tensor)}
        out, again = flatten(result)
        return again([self._own(x, theirs) for x in out])

    def _own(self, x: Any, theirs: set[int]) -> Any:
        """A result that belongs to the caller and has the network's dtype."""
        if not isinstance(x, Tensor):
            return x
        x = x.detach()
        return x.clone() if x.untyped_storage().data_ptr() in theirs else x

    def _model_in_dtype(self) -> nn.Module:
        """The model itself, or a copy in the network's dtype."""
        model, dtype = self._kept[0], self._settings["dtype"]
        if dtype == _parameter_dtype(model):
            return model
        if not self._cast:
            try:
                self._cast.append(_copied(model).to(dtype))
            except _NoCopy as error:
                raise ValueError(f"model: it cannot be copied to run in {dtype} ({error.__cause__})") from error
        return self._cast[0]

    def _refill(self) -> None:
        self._cast.clear()
        if self._planned is not None:
            self._planned.refill()
        self._torch.refill()
        if self._graphs is not None:
            self._graphs.invalidate()
        for key, prepared in self._shapes.items():
            if prepared.engine == "torch":
                run = self._torch.prepare(prepared.graph, prepared.steps)
                self._shapes[key] = prepared._replace(run=run)
            elif prepared.run is not None:
                prepared.run.refill()


class _NoCopy(Exception):
    """A model that cannot be copied."""


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a lock, a file, whatever somebody has in a module
        raise _NoCopy from error


def milliseconds(run: Callable[[list[Tensor]], Any], tensors: list[Tensor]) -> float:
    """The shortest of three runs, after one that prepares."""
    samples = []
    for _ in range(4):
        start = time.perf_counter()
        run(tensors)
        samples.append(time.perf_counter() - start)
    return 1e3 * min(samples[1:])


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, (torch.jit.ScriptModule, torch.fx.GraphModule)) or hasattr(model, "_orig_mod"):
        raise ValueError("model: it is compiled, scripted or recorded already: optimize the original module")
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
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"model: {name} holds NaN or Inf")


def _parameter_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
