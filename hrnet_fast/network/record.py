"""A model as a graph of functional operators: recorded, never computed.

Between the model and the recorder lies torch's own functionalization, the C++ one of AOTAutograd: views, in-place
writes and ``out=`` arrive here as plain operators with the right meaning, and a write that outlives the call can be
seen. Below the recorder the operators run on fake tensors, which have shapes and no elements.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hrnet_fast.network.fake_results import Fakes, fake, result_of
from hrnet_fast.network.nodes import Constant, Constants, Graph, Node, Refused, Value, same
from hrnet_fast.network.trees import flatten, flatten_arguments
from hrnet_fast.network.untouched import untouched
from hrnet_fast.nn.plain_mode import standard_operators

aten = torch.ops.aten
_NORMS = (aten.native_batch_norm.default, aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default)
# In a graph without writes these are other names of the same tensor.
_NAMES = (aten.alias.default, aten.detach.default, aten.lift_fresh.default)
# Programs keep images in memory of their own layout. And what torch makes of a write through windows (Tensor.unfold)
# loses the elements that are in none.
_BY_STRIDES = (
    aten.as_strided.default,
    aten._reshape_alias.default,
    aten.as_strided_scatter.default,
    aten.unfold_backward.default,
)
# What would read the memory of a functional tensor, or change its size.
_FORBIDDEN = frozenset(
    getattr(Tensor, name)
    for name in (
        "numpy data_ptr tolist __array__ __dlpack__ storage untyped_storage share_memory_ __reduce_ex__ __deepcopy__ "
        "__repr__ __format__ resize_ resize_as_ set_"
    ).split()
)
_LOCK = threading.RLock()  # modes and global hooks: one recording at a time


def record(model: nn.Module, args: tuple, kwargs: dict | None = None, *, constants: Constants, calls: int = 1) -> Graph:
    """The operators that a model calls for arguments of these shapes. The model is left as it is.

    While it is recorded the model must not be used by another thread: its parameters are replaced for that time.

    Args:
        model: the network, in evaluation.
        args, kwargs: what it is called with; of tensors only shape, strides, dtype and device are looked at.
        constants: parameters and what is made of them alone; the same ones for all recordings of a model.
        calls: how often it is called in a row; 2 finds out whether a call changes what the next one computes.

    Raises:
        Refused: it writes into its parameters or buffers, remembers what it computed, draws random numbers, looks at
            pixels, has hooks that only observe, or raises; the message names the module.
    """
    with _LOCK:
        recorder, graphs, reason, raised = _Recorder(constants), [], None, False
        try:
            with untouched(model, recorder.varies) as made:
                recorder.alive = made
                try:
                    _watch_hooks(model)
                    twins = _put_twins(model, recorder)
                    graphs = [_one_call(model, recorder, twins, args, kwargs or {}) for _ in range(calls)]
                except Exception as error:  # Refused; of fake tensors, of functionalization, or the model's own
                    reason, raised = _reason(model, error), not isinstance(error, Refused)
                    _clear_frames(error)
                twins = None
        except Refused as refused:
            reason = reason or str(refused)
        recorder.forget()
        if reason is not None:
            raise Refused(reason, raised)
        if any(not same(graphs[0], g) for g in graphs[1:]):
            raise Refused("it computes something else when it is called again")
        return graphs[-1]


def _reason(model: nn.Module, error: Exception) -> str:
    """In one line, with the module whose code was running."""
    names = {id(module): name for name, module in model.named_modules()}
    at, trace = "", error.__traceback__
    while trace is not None:
        name = names.get(id(trace.tb_frame.f_locals.get("self")))
        at, trace = (f"{name}: " if name else "") if name is not None else at, trace.tb_next
    if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
        return f"{at}{error.func} gives numbers or shapes that depend on the pixels"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return at + (lines[0] if isinstance(error, Refused) else f"it raises while it is recorded ({lines[0]})")


def _clear_frames(error: Exception) -> None:
    """Lets go of the tensors in the frames of a traceback, which keep each other alive."""
    trace = error.__traceback__
    while trace is not None:
        with contextlib.suppress(RuntimeError):  # a frame that still runs
            trace.tb_frame.clear()
            _ = trace.tb_frame.f_locals  # a dictionary that is brought up to date when it is looked at
        trace = trace.tb_next


def _one_call(model: nn.Module, recorder: "_Recorder", twins: list, args: tuple, kwargs: dict) -> Graph:
    recorder.begin()
    leaves, build = flatten((args, kwargs))
    inputs: list[tuple[Value, Tensor]] = []
    for k, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            image = fake(recorder.fake, leaf.shape, leaf.dtype, leaf.device, leaf.stride())
            value = recorder.know(image, Value(tuple(leaf.shape), leaf.dtype))
            with recorder:  # it answers for the device; a fake tensor on its own lets torch.distributed be imported
                leaves[k] = torch._to_functional_tensor(image)
            inputs.append((value, leaves[k]))
    given, named = build(leaves)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else contextlib.nullcontext(),
        standard_operators(),
        recorder.fake,
        recorder,
    ):
        with _functionalization(), _PythonCode():
            result = model(*given, **named)
        for name, twin, tensor in twins:
            torch._sync(twin)
            if torch._from_functional_tensor(twin) is not tensor:
                raise Refused(f"it writes into {name}")
        leaves, build = flatten(result)
        results = [recorder.functional(x) if isinstance(x, Tensor) else x for x in leaves]
        after = [(value, recorder.functional(tensor)) for value, tensor in inputs]
    allowed = (Value, Constant, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
    for x in results:
        if not isinstance(x, allowed):
            raise Refused(f"it returns a {type(x).__name__}")
    writes = [(old, new) for old, new in after if old is not new]
    if any(isinstance(new, Constant) for _, new in writes):
        raise Refused("it overwrites its input with what does not depend on it")
    return Graph([value for value, _ in inputs], recorder.nodes, results, build, writes, recorder.baked)


@contextlib.contextmanager
def _functionalization() -> Iterator[None]:
    torch._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        torch._disable_functionalization()


def _put_twins(model: nn.Module, recorder: "_Recorder") -> list[tuple[str, Tensor, Tensor]]:
    """Puts functional twins in the places of parameters, buffers and tensors that are attributes."""
    twins: dict[int, tuple[str, Tensor, Tensor]] = {}
    for prefix, module in model.named_modules():
        for kind, place in (("parameter", module._parameters), ("buffer", module._buffers), ("tensor", vars(module))):
            for name, tensor in place.items():
                if not isinstance(tensor, Tensor):
                    continue
                if id(tensor) not in twins:
                    inner = tensor.data  # writes to the twin must not count up the version of the user's tensor
                    recorder.know(inner, recorder.constants.of(tensor))
                    twin = torch._to_functional_tensor(inner)
                    twin._is_param = isinstance(tensor, nn.Parameter)
                    twins[id(tensor)] = (f"the {kind} {prefix + '.' if prefix else ''}{name}", twin, inner)
                place[name] = twins[id(tensor)][1]
    return list(twins.values())


def _watch_hooks(model: nn.Module) -> None:
    """Lets hooks that only observe be noticed: a recorded network would never call them. ``untouched`` undoes it."""
    everywhere = nn.modules.module
    places = [(f"{name or 'the model'}", m._forward_pre_hooks, m._forward_hooks) for name, m in model.named_modules()]
    places.append(("every module", everywhere._global_forward_pre_hooks, everywhere._global_forward_hooks))
    for name, *tables in places:
        for table in tables:
            for key, hook in table.items():
                # torch's own, as of weight_norm, set attributes that are recorded
                if not (getattr(hook, "__module__", None) or "").startswith("torch."):
                    table[key] = _watched(hook, name)


def _watched(hook: Callable, name: str) -> Callable:
    @functools.wraps(hook, updated=())
    def watched(*args, **kwargs):
        result = hook(*args, **kwargs)
        if result is None:
            raise Refused(f"a hook on {name} returns nothing: it observes, and a recorded network would not call it")
        return result

    return watched


class _PythonCode(TorchFunctionMode):
    """Refuses what looks into a functional tensor, which has no memory and does not say so."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _FORBIDDEN:
            raise Refused(f"its Python code looks into a tensor by {func.__name__}")
        name = getattr(func, "__name__", "")
        if name.startswith("_foreach_") and name.endswith("_"):
            return self._one_by_one(name.removeprefix("_foreach_"), *args, **kwargs)
        if func is Tensor.data.__get__:  # a view of the memory, which functionalization must know of
            return args[0].detach()
        if func is F.one_hot and (classes := (*args[1:], *kwargs.values(), -1)[0]) > 0:  # it would look for the largest
            return (args[0].unsqueeze(-1) == torch.arange(classes, device=args[0].device)).long()
        out = kwargs.get("out")
        # functionalization forgets the views of a tensor that is resized; one without memory has none to speak of
        before = out.shape if isinstance(out, Tensor) and out.untyped_storage().nbytes() > 0 else None
        result = func(*args, **kwargs)
        if before is not None and (out.shape != before or 0 in before):
            raise Refused("it resizes a tensor by out=")
        return result

    @staticmethod
    def _one_by_one(name: str, written: list[Tensor], *args: Any, **kwargs: Any) -> None:
        """In the order of eager execution: functionalization would read all tensors before it writes the first."""
        if name not in ("add_", "sub_", "mul_", "div_", "neg_", "abs_", "sqrt_", "exp_", "zero_"):
            raise Refused(f"torch._foreach_{name} writes into several tensors at once")
        for k, tensor in enumerate(written):
            getattr(tensor, name)(*(a[k] if isinstance(a, (list, tuple)) else a for a in args), **kwargs)


class _Recorder(TorchDispatchMode):
    """Notes every operator; ``alive`` holds every tensor, so that no later one has the id of an earlier one."""

    def __init__(self, constants: Constants):
        super().__init__()
        self.constants = constants
        self.fake = Fakes()
        self.alive: list[Tensor] = []
        self._known: dict[int, Value | Constant] = {}
        self.begin()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Of torch's: whether dispatching goes through torch._dynamo, whose import takes longer than a recording."""
        return False

    def begin(self) -> None:
        """A new call."""
        self.nodes: list[Node] = []
        self.baked = False
        self._mine: set[Value] = set()

    def forget(self) -> None:
        """Lets go of all tensors and their ids."""
        self._known.clear()

    def know(self, tensor: Tensor, place: Value | Constant) -> Value | Constant:
        self._known[id(tensor)] = place
        if isinstance(place, Value):
            self._mine.add(place)
        self.alive.append(tensor)
        return place

    def varies(self, tensor: Tensor) -> bool:
        """Whether a tensor that was recorded depends on the inputs."""
        if torch._is_functional_tensor(tensor):
            tensor = torch._from_functional_tensor(tensor)
        return isinstance(self._known.get(id(tensor)), Value)

    def place(self, tensor: Tensor) -> Value | Constant:
        """What a tensor is in the graph."""
        found = self._known.get(id(tensor))
        if found is None:
            if isinstance(tensor, FakeTensor):
                raise Refused("it uses a tensor that was made outside of the recorded operators")
            return self.know(tensor, self.constants.of(tensor))
        if isinstance(found, Value) and found not in self._mine:
            raise Refused("it reads a tensor that an earlier call has computed")
        return found

    def functional(self, tensor: Tensor) -> Value | Constant:
        """The same for a tensor that the model's code sees."""
        if torch._is_functional_tensor(tensor):
            torch._sync(tensor)
            tensor = torch._from_functional_tensor(tensor)
        return self.place(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        kwargs = kwargs or {}
        leaves, build = flatten((args, kwargs)) if kwargs else flatten_arguments(args)
        leaves = [self._argument(func, x) if isinstance(x, Tensor) else x for x in leaves]
        if func._schema.is_mutable:
            raise Refused(f"{func} writes into a tensor that is not the network's own")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Refused(f"{func} draws random numbers")
        if func is aten._local_scalar_dense.default:
            return self._number(leaves[0])
        if func in _NORMS and args[5] and args[3] is not None:  # its schema does not say so
            raise Refused(f"{func} writes into its running statistics")
        if func in _BY_STRIDES:
            raise Refused(f"{func} reads or writes memory by strides")
        out = result_of(self.fake, func, args, kwargs)
        is_list = isinstance(out, (list, tuple))
        results = list(out) if is_list else [out]
        node = Node(func, leaves, build, [], is_list)
        varies = any(isinstance(x, Value) for x in leaves)
        if varies and func in _NAMES:
            self.know(out, leaves[0])
            return out
        if not any(isinstance(r, Tensor) for r in results):
            if varies and out is not None:
                raise Refused(f"{func} gives a {type(out).__name__} that depends on the pixels")
            return out
        if varies:
            node.outputs = [Value(tuple(r.shape), r.dtype, node) if isinstance(r, Tensor) else None for r in results]
            self.nodes.append(node)
        else:
            node.outputs = self.constants.made_by(node, results)
        for result, made in zip(results, node.outputs):
            if isinstance(result, Tensor):
                self.know(result, made)
        return out

    def _argument(self, func: Any, tensor: Tensor) -> Value | Constant:
        literal = func in (aten.lift_fresh.default, aten.lift_fresh_copy.default) and tensor.numel() <= 4096
        if literal and id(tensor) not in self._known and not isinstance(tensor, FakeTensor) and not tensor.is_complex():
            guard = torch._C._DisableTorchDispatch()
            try:
                return self.know(tensor, self.constants.of(tensor, literal=True))
            finally:
                del guard
        return self.place(tensor)

    def _number(self, place: Value | Constant) -> Any:
        """What ``item()`` gives; of a constant its number at this moment."""
        if isinstance(place, Value):
            raise Refused("its Python code takes a number out of a tensor that depends on the pixels")
        self.baked = True
        guard = torch._C._DisableTorchDispatch()
        try:
            return place.value().item()
        finally:
            del guard
