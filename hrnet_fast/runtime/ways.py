"""The ways to run one network: planned, by torch's operators, as the model itself; recorded, timed, tried beside it."""

import contextlib
import copy
import fnmatch
import functools
import gc
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrnet_fast.network.integers import Factor, multiplied
from hrnet_fast.network.names import names
from hrnet_fast.network.nodes import Constant, Constants, Graph, Refused, Value
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.network.sizes import of_one_network
from hrnet_fast.network.sums import Call, Step, Weight, exchanges
from hrnet_fast.network.trees import flatten
from hrnet_fast.network.untouched import restored
from hrnet_fast.nn.plain_mode import standard_operators
from hrnet_fast.runtime import trial
from hrnet_fast.runtime.arguments import Arguments
from hrnet_fast.runtime.cpu import planned
from hrnet_fast.runtime.cuda_graphs import GraphedModule
from hrnet_fast.runtime.cuda_streams import Branches
from hrnet_fast.runtime.gpu import grouped
from hrnet_fast.runtime.torch_steps import TorchPlan, TorchSteps
from hrnet_fast.runtime.watch import Recording

_LOG = logging.getLogger("hrnet_fast")
LAYOUTS = {"auto": None, torch.contiguous_format: False, torch.channels_last: True}
# With more operators than this left to torch, both ways are timed: kernels gain nothing where torch does the work.
_MANY_CALLS = 16
_LONG_ENOUGH, _ENOUGH = 0.2, 20  # seconds and runs of a measurement


@dataclass(frozen=True)
class Prepared:
    """A network for inputs of some shapes."""

    run: Callable[[list[Tensor]], list[Tensor]] | None  # None: the model itself
    graph: Graph | None
    steps: list[Step]
    engine: str
    reason: str | None
    way: str = ""  # of those of one engine

    @functools.cached_property
    def places(self) -> dict[Value, int]:
        """Where each Value that is returned stands among what ``run`` returns."""
        return {value: k for k, value in enumerate(self.graph.outputs())}


class Candidate(NamedTuple):
    """A way that may run a network."""

    engine: str
    why: str | None  # it is not planned, or not in the dtype that was asked for
    make: Callable[[], planned.Plan | TorchPlan | grouped.GroupedPlan]
    way: str = ""


class Ways:
    """One model, which is left as it is; what is prepared shares weights and memory.

    Args:
        model: in evaluation.
        device: that it is on.
        settings: those of ``optimize``, checked.
    """

    def __init__(self, model: nn.Module, device: torch.device, settings: dict[str, Any]):
        self._model, self._device, self._settings = model, device, settings
        dtype, layout, normalization = settings["dtype"], LAYOUTS[settings["memory_format"]], settings["normalization"]
        on_gpu = device.type == "cuda"
        self._model_dtype = parameter_dtype(model)
        self._constants = Constants()
        branches = Branches() if on_gpu and settings["streams"] is not False else None
        layout_of_torch = torch.contiguous_format if layout is False else torch.channels_last
        self._torch = TorchSteps(dtype, device, layout_of_torch, branches, normalization)
        self._why_not_planned = "torch.channels_last was asked for" if layout else planned.why_not(dtype, device)
        self._planned = None
        if self._why_not_planned is None:
            self._planned = planned.Planned(dtype, settings["winograd"], normalization)
        self._wider = self._planned  # what int8 is compared with: the fastest other dtype
        if (
            self._planned is not None
            and settings["calibration"] is not None
            and planned.form(torch.bfloat16) == "pairs"
        ):
            self._wider = planned.Planned(torch.bfloat16, settings["winograd"], normalization)
        self._graphs = self._graphed = None
        if on_gpu and settings["cuda_graph"] is not False:
            # while a shape is prepared, every way of running it has one
            self._graphs = GraphedModule(self._run_steps, settings["max_shapes"] + 2, state=self._places)
        self._grouped = None
        if on_gpu and not layout and grouped.why_not(dtype, device) is None:
            self._grouped = grouped.Grouped(dtype, device, normalization)
        self._cast: list[nn.Module] = []  # the model in another dtype, once it is needed
        self._trusted: dict[tuple, Graph] = {}  # the last graph that was right beside the model, by what ran it
        self._kernels: set[tuple] = set()  # that have run in a program that was right
        self._factors: dict[str, Factor] = {}  # what convolutions multiply in bytes, by their names
        self._integers_pay = False  # they were measured to be faster
        self._why_not_integers: str | None = None

    def record(self, call: Arguments, calls: int = 1) -> Recording:
        """The network for arguments of these shapes, their floating tensors in the model's dtype.

        Raises:
            Refused: it cannot be recorded.
        """

        def blank(t: Tensor) -> Tensor:
            dtype = self._model_dtype if t.is_floating_point() else t.dtype
            return torch.empty(t.shape, dtype=dtype, device=t.device)

        graph = record(self._model, *call.like(blank), constants=self._constants, calls=calls)
        return Recording(graph, steps_of(graph), self._settings["normalization"])

    def prepare(self, call: Arguments, is_example: bool = False) -> Prepared:
        """The first way that can run arguments of these shapes and is right.

        Raises:
            TypeError, ValueError: the model does not take the example.
        """
        with _no_collector():
            return self._prepare(call, is_example)

    def _prepare(self, call: Arguments, is_example: bool) -> Prepared:
        try:
            graph, steps, _ = self.record(call, calls=2 if is_example else 1)
        except Refused as error:
            if error.raised and is_example:
                self._try_the_model(call)
            return Prepared(None, None, [], "model", f"the network cannot be recorded: {error}")
        if is_example and not exchanges(steps):
            _LOG.info("no exchange between resolutions was found: this is no HRNet that is known")
        expected = reason = None
        for engine, why, make, way in self._candidates(call, graph, steps):
            try:
                run = make()
            except Refused as error:
                reason = str(error)
                continue
            prepared = Prepared(run, graph, steps, engine, why if reason is None else reason, way)
            products = getattr(run, "products", self._settings["dtype"])
            if self._is_trusted(prepared, products):
                return prepared
            if expected is None:
                leaves, expected = self._expectation(call)
                if isinstance(expected, Exception):
                    return Prepared(None, None, [], "model", f"the model itself raises: {expected}")
            reason = self._why_wrong(prepared, products, call, leaves, expected)
            if reason is None:
                self._trusted[engine, products] = graph
                self._kernels |= getattr(run, "kernels", set())
                return prepared
            what = "int8" if products == torch.int8 else repr(engine)
            reason = f"{what} gave something else than the model: {reason}"
            _LOG.warning("%s", reason)
        return Prepared(None, None, [], "model", reason)

    def _is_trusted(self, prepared: Prepared, products: torch.dtype) -> bool:
        """Whether a trial of another shape says that this program is right, too.

        A trial costs as much as all the rest of preparing a shape. It is left out if the network is the same but for
        sizes (who reads what, every number that is no size, every constant), which was recorded for this very shape,
        and if every kernel that the program has was right in a trial. What int8 loses depends on the images.
        """
        before = self._trusted.get((prepared.engine, products))
        known = getattr(prepared.run, "kernels", set()) <= self._kernels
        return products != torch.int8 and before is not None and known and of_one_network([before, prepared.graph])

    def _candidates(self, call: Arguments, graph: Graph, steps: list[Step]) -> list[Candidate]:
        """Ways to run it, the one that is to be tried first in front."""
        by_torch = functools.partial(self._torch.prepare, graph, steps)
        if self._device.type == "cuda":
            return self._on_gpu(call, graph, steps)
        if self._planned is None:
            return [Candidate("torch", self._why_not_planned, by_torch)]
        wide = torch.bfloat16 if self._settings["calibration"] is not None and planned.has_tiles() else None
        planned_wide = functools.partial(self._wider.prepare, graph, steps, wide)
        integers, why = self._in_integers(call, graph, steps, planned_wide)
        if integers is not None:
            return [
                Candidate("planned", None, lambda: integers),
                Candidate("planned", None, planned_wide),
                Candidate("torch", None, by_torch),
            ]
        try:
            plan = planned_wide()
        except Refused as error:
            return [Candidate("torch", str(error), by_torch)]
        calls = sum(isinstance(s, Call) for s in steps)
        if (calls > _MANY_CALLS or plan.in_doubt) and LAYOUTS[self._settings["memory_format"]] is None:
            return self._by_time(call, plan, by_torch())
        return [Candidate("planned", why or plan.reason, lambda: plan), Candidate("torch", why, by_torch)]

    def _on_gpu(self, call: Arguments, graph: Graph, steps: list[Step]) -> list[Candidate]:
        """All ways of running it on a GPU, each timed as calls will run it, the fastest first."""
        ways: dict[str, tuple[str, Callable]] = {}
        if self._grouped is not None:
            ways["grouped launches"] = "grouped", functools.partial(self._grouped.prepare, graph, steps)
        streams = self._settings["streams"]
        for name, wanted in (("torch's operators", False), ("torch's operators on streams", True)):
            if streams in ("auto", wanted):
                ways[name] = "torch", functools.partial(self._torch.prepare, graph, steps, wanted)
        if len(ways) == 1:
            return [Candidate(engine, None, make, way) for way, (engine, make) in ways.items()]
        found: list[tuple[float, str, Callable]] = []
        said: list[str] = []
        for way, (engine, make) in ways.items():
            try:
                run = make()
                prepared = Prepared(run, graph, steps, engine, None, way)
                ms = milliseconds(functools.partial(self._outcome, prepared, call.key), _random(call), self._wait)
            except Exception as error:  # the others go on
                said.append(f"{way} cannot run it ({(str(error).splitlines() or [type(error).__name__])[0]})")
                continue
            found.append((ms, way, lambda run=run: run))
            said.append(f"{way} {ms:.2f} ms")
        if not found:  # the trial says what is wrong
            return [Candidate(engine, None, make, way) for way, (engine, make) in ways.items()]
        why = f"measured here, in {self._settings['dtype']}: {', '.join(said)}"
        return [Candidate(ways[way][0], why, make, way) for _, way, make in sorted(found, key=lambda f: f[0])]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _in_integers(
        self, call: Arguments, graph: Graph, steps: list[Step], wide: Callable[[], planned.Plan]
    ) -> tuple[planned.Plan | None, str | None]:
        """The program that multiplies bytes; or None, and why there is none where it was asked for."""
        if self._settings["calibration"] is None:
            return None, None
        why = planned.why_not_bytes() or self._why_not_integers
        if why is not None:
            return None, why
        try:
            plan = self._planned.prepare(graph, steps, torch.int8, self._multiplied(graph, steps))
        except Refused as error:
            return None, f"int8: {error}"
        if not self._integers_pay:
            tensors = _random(call)
            ours, theirs = milliseconds(plan, tensors), milliseconds(wide(), tensors)
            self._integers_pay = ours < theirs
            if not self._integers_pay:
                self._why_not_integers = f"int8 does not pay here: {ours:.1f} ms, without it {theirs:.1f} ms"
                return None, self._why_not_integers
        return plan, None

    def _multiplied(self, graph: Graph, steps: list[Step]) -> dict[Weight, Factor]:
        """What each convolution multiplies in bytes; those that are to stay wide are not there."""
        name_of, made = names(self._model, steps), {}
        for weight in multiplied(graph, steps):
            name = name_of[weight]
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self._settings["keep"]):
                continue
            if name not in self._factors:  # one for all shapes: they share what is packed
                self._factors[name] = Factor.of(*self._settings["calibration"].of(name, weight.shape[1]))
            made[weight] = self._factors[name]
        return made

    def _by_time(self, call: Arguments, ours: planned.Plan, theirs: TorchPlan) -> list[Candidate]:
        """The planned program and torch's operators, the faster first."""
        tensors = _random(call)
        try:
            ms = [milliseconds(run, tensors) for run in (ours, theirs)]
        except Exception:  # of an operator: the trial says which
            return [Candidate("planned", ours.reason, lambda: ours), Candidate("torch", None, lambda: theirs)]
        why = (
            f"here, in {self._settings['dtype']}, it was measured to be faster: {ms[1]:.1f} ms, planned {ms[0]:.1f} ms"
        )
        ranked = [Candidate("planned", ours.reason, lambda: ours), Candidate("torch", why, lambda: theirs)]
        return ranked if ms[0] <= ms[1] else ranked[::-1]

    def _expectation(self, call: Arguments) -> tuple[list, Any]:
        """Random arguments, and what the model itself makes of them: (result, the arguments afterwards), or its error.

        In int8 they are the given ones: it is right for images like those of its calibration.
        """
        normalization = self._settings["normalization"]
        moments = () if normalization is None else map(torch.tensor, (normalization.mean, normalization.std))
        as_given = self._settings["calibration"] is not None and trial.vary(call.leaves)
        leaves = _copies(call.leaves) if as_given else trial.random_inputs(call.leaves, *moments)
        try:
            result, given = self._plainly(self._model, call.build, leaves, self._model_dtype)
        except Exception as error:  # whatever a model may raise
            return leaves, error
        return leaves, (result, [] if normalization is not None else given)

    def _plainly(self, model: nn.Module, build: Callable, leaves: list, dtype: torch.dtype) -> tuple[Any, list]:
        """What the model makes of copies of the leaves, and what becomes of them; its state is as before."""
        given = _copies(leaves)
        # by standard operators: what was recorded, and without the weights that fast modules would fold and keep
        with restored(self._model), standard_operators():
            return self._by_the_model(model, build, given, dtype), given

    def _why_wrong(
        self, prepared: Prepared, products: torch.dtype, call: Arguments, leaves: list, expected: Any
    ) -> str | None:
        given = _copies(leaves)

        def own_error() -> float:
            result, _ = self._plainly(self._model_in_dtype(), call.build, leaves, self._settings["dtype"])
            return trial.largest_error(result, expected[0])

        on_gpu = self._device.type == "cuda"
        if on_gpu and products == torch.float32 and torch.backends.cudnn.allow_tf32:
            products = torch.float16  # TF32 rounds as that does
        try:
            if on_gpu:  # operators hand uninitialized memory to cuDNN: without a graph, in memory full of NaN
                trial.poison(prepared.graph, self._settings["dtype"], self._device)
                if prepared.engine == "grouped":
                    self._grouped.poison()
                result = self.run(prepared, Arguments(_copies(leaves), call.build, call.key), captured=False)
                reason = trial.why_not((result, []), (expected[0], []), products, own_error, self._model_dtype)
                if reason is not None:
                    return reason
            result = self.run(prepared, Arguments(given, call.build, call.key))
        except Exception as error:  # the next way takes over, and the reason says what it was
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        compared = (result, given) if expected[1] else (result, [])
        return trial.why_not(compared, expected, products, own_error, self._model_dtype)

    def _try_the_model(self, call: Arguments) -> None:
        """The example must be something that the model takes."""
        model, given = self._model, _copies(call.leaves)
        try:
            with restored(model), contextlib.suppress(_NoCopy):
                self._by_the_model(_copied(model), call.build, given, self._model_dtype)
        except Exception as error:  # whatever a model may raise
            tensors = call.tensors()
            kinds = [f"{list(t.shape)} of {t.dtype}" for t in tensors] or [type(x).__name__ for x in call.leaves]
            in_type = isinstance(error, TypeError) or not all(t.is_floating_point() for t in tensors)
            first = (str(error).splitlines() or [""])[0]
            message = f"example: the model does not take {', '.join(kinds)} ({type(error).__name__}: {first})"
            raise (TypeError if in_type else ValueError)(message) from error

    def run(self, prepared: Prepared, call: Arguments, captured: bool = True) -> Any:
        """What the model returns; ``captured``: under a CUDA graph where there are such."""
        with torch.no_grad(), without_autocast(self._device.type):
            if prepared.run is None:
                return self._by_the_model(self._model_in_dtype(), call.build, call.leaves, self._settings["dtype"])
            graph, tensors = prepared.graph, [t.detach() for t in call.tensors()]
            made = self._outcome(prepared, call.key, tensors, captured)
            if self._settings["normalization"] is None:
                for old, new in graph.writes:
                    tensors[graph.inputs.index(old)].copy_(made[prepared.places[new]])
            return graph.build([self._result(x, prepared, made) for x in graph.results])

    def _outcome(self, prepared: Prepared, key: tuple, tensors: list[Tensor], captured: bool = True) -> list[Tensor]:
        """The graph's ``outputs()``."""
        self._graphed = prepared.run
        if self._graphs is None or not captured:
            return self._run_steps(prepared.way, key, *tensors)
        return self._graphs(prepared.way, key, *tensors)

    def _result(self, x: Any, prepared: Prepared, made: list[Tensor]) -> Any:
        if isinstance(x, Constant):
            return x.value().detach().to(self._result_dtype(x.dtype), copy=True)
        if isinstance(x, Value):
            return made[prepared.places[x]].to(self._result_dtype(x.dtype))
        return x

    def _result_dtype(self, recorded: torch.dtype) -> torch.dtype:
        """The network's where the model returns its own; what a model computes in another one stays in that."""
        return self._settings["dtype"] if recorded == self._model_dtype else recorded

    def _by_the_model(self, model: nn.Module, build: Callable, leaves: list, dtype: torch.dtype) -> Any:
        normalization = self._settings["normalization"]

        def cast(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.detach()
            x = x if normalization is None else normalization(x)
            return x.to(dtype) if x.is_floating_point() else x

        args, kwargs = build([cast(x) for x in leaves])
        with torch.no_grad(), without_autocast(self._device.type):
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
        model, dtype = self._model, self._settings["dtype"]
        if dtype == self._model_dtype:
            return model
        if not self._cast:
            try:
                self._cast.append(_copied(model).to(dtype))
            except _NoCopy as error:
                raise ValueError(f"model: it cannot be copied to run in {dtype} ({error.__cause__})") from error
        return self._cast[0]

    def refill(self) -> None:
        """Takes the weights that the model has now."""
        self._cast.clear()
        if self._planned is not None:
            self._planned.refill()
        self._torch.refill()
        if self._grouped is not None:
            self._grouped.refill()
        if self._graphs is not None:
            self._graphs.invalidate()

    def refilled(self, prepared: Prepared) -> Prepared:
        """The same with the weights that ``refill`` took."""
        if prepared.engine == "torch":
            streams = prepared.way != "torch's operators"
            return replace(prepared, run=self._torch.prepare(prepared.graph, prepared.steps, streams))
        if prepared.run is not None:
            prepared.run.refill()
        return prepared

    def memory(self) -> tuple[int, int]:
        """Bytes of memory for images, and of weights, beside the model's own."""
        parts = [way.memory() for way in {self._planned, self._wider, self._torch, self._grouped} if way is not None]
        return tuple(sum(p) for p in zip(*parts))

    def _run_steps(self, way: str, key: tuple, *tensors: Tensor) -> list[Tensor]:
        if self._device.type != "cuda":
            return self._graphed(list(tensors))  # the steps of the shape that is being run
        with fastest_algorithms():
            return self._graphed(list(tensors))

    def _places(self) -> tuple[int, ...]:
        """Where memory lies that captured graphs refer to."""
        return () if self._grouped is None else self._grouped.places()


def without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """No autocast; where there is none around it, nothing, for torch.autocast costs as much as a small convolution."""
    if not torch.is_autocast_enabled(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


@contextlib.contextmanager
def fastest_algorithms() -> Iterator[None]:
    """cuDNN measures its algorithms for each convolution that it has not seen, unless results must be reproducible."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = before or not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
    try:
        yield
    finally:
        cudnn.benchmark = before


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Python's collector of cycles would go through all of torch, 0.2 s each time, and recordings leave few of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _random(call: Arguments) -> list[Tensor]:
    return [torch.rand_like(t) if t.is_floating_point() else t for t in call.tensors()]


def _copies(leaves: list) -> list:
    return [x.clone() if isinstance(x, Tensor) else x for x in leaves]


class _NoCopy(Exception):
    """A model that cannot be copied."""


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a lock, a file, whatever somebody has in a module
        raise _NoCopy from error


def milliseconds(
    run: Callable[[list[Tensor]], Any], tensors: list[Tensor], wait: Callable[[], None] = lambda: None
) -> float:
    """The shortest of three runs or more, after one that prepares: short ones are disturbed easily.

    Args:
        run: what is timed.
        tensors: that it gets.
        wait: until it is done, where it only begins the work.
    """
    samples: list[float] = []
    run(tensors)
    wait()
    while len(samples) < 3 or (sum(samples) < _LONG_ENOUGH and len(samples) < _ENOUGH):
        start = time.perf_counter()
        run(tensors)
        wait()
        samples.append(time.perf_counter() - start)
    return 1e3 * min(samples)


def parameter_dtype(model: nn.Module) -> torch.dtype:
    """Of the first floating one; float32 where there is none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
