"""A module under CUDA graphs: one launch in place of hundreds, one graph for each kind of input.

At batch 1 a network of small kernels waits for the processor that launches them. A CUDA graph records all of them once
for inputs of given shapes and replays them with a single call.
"""

import collections
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hrnet_fast.ops.transforms import batched, transformed
from hrnet_fast.runtime.cuda_streams import CUDA

WARM_UP = 3  # runs before a capture: they fold, compile, and let cuDNN choose, none of which can be recorded


class _Graph(NamedTuple):
    """A recorded call."""

    graph: Any
    inputs: list[Tensor]  # the tensors that it reads, in the order of the call's
    outputs: Any  # what it writes, as the module returned it


class GraphedModule:
    """``module`` under CUDA graphs, for inference: same arguments, same results.

    **Inputs** are tensors, or lists, tuples and dicts of them, on one GPU; other arguments must be hashable, and are
    recorded as constants. A module that writes into its inputs writes into copies. There is a graph for every combination of structure, constants, and the tensors' shapes,
    strides and dtypes, of autocast, of ``module.training`` and of torch's TF32 and determinism settings; the
    ``max_graphs`` used last are kept. Every call copies its inputs into the tensors that the graph reads, unless they are
    those very tensors (``buffers``).

    **Outputs** are new tensors that belong to the caller. With ``clone_outputs=False`` they are the graph's own, which
    the next call with the same kind of inputs overwrites: two copies less, for callers who are done by then.

    **Gradients** are not recorded: results are those under ``torch.no_grad()``. Forward-mode derivatives and vmap run the
    module as it is.

    **Parameters** are read where they lay when a graph was recorded. In-place changes of what the graph reads take
    effect; anything that puts them elsewhere (``.to()``, ``.half()``, a new Parameter) or that was computed from them
    (folded BatchNorms) does not, until ``invalidate()``. ``state``, if given, is called before every call; where its
    result (compared by ``==``) is another one than before, all graphs are dropped.

    **Threads and streams** may share it: calls are recorded and launched one at a time, on the caller's stream, and
    wait on the GPU for the one before, because all graphs share their memory.

    Calls that no graph can serve run the module as it is: ``why_eager`` says why. A module that cannot be recorded warns
    once for each kind of inputs.

    Args:
        module: any callable whose work depends on nothing but its arguments and its parameters.
        max_graphs: how many graphs are kept; each needs memory for its inputs and outputs, its intermediates are shared.
        clone_outputs: whether outputs belong to the caller.
        state: what graphs depend on besides the arguments, as a value that can be compared.
        backend: captures, streams and events; CUDA's, or a stand-in in tests.

    Raises:
        ValueError: ``max_graphs`` is less than 1.
    """

    def __init__(
        self,
        module: Callable,
        max_graphs: int = 8,
        clone_outputs: bool = True,
        state: Callable[[], Any] | None = None,
        backend=CUDA,
    ):
        if max_graphs < 1:
            raise ValueError(f"max_graphs: expected 1 or more, got {max_graphs}")
        self.module, self.max_graphs, self.clone_outputs = module, max_graphs, clone_outputs
        self._state, self._known_state = state, None
        self._backend = backend
        self._graphs: collections.OrderedDict[tuple, _Graph] = collections.OrderedDict()  # used last comes last
        self._failures: dict[tuple, str] = {}
        self._pool = None  # memory for all graphs: they never run at the same time
        self._done = self._stream = None  # an event behind the last launch, and where that was
        self._lock = threading.RLock()

    def __call__(self, *args, **kwargs):
        leaves, structure = pytree.tree_flatten((args, kwargs))
        if self._why_not(leaves) is not None:
            return self.module(*args, **kwargs)
        key = self._key(leaves, structure)
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        with self._lock, torch.inference_mode(False), torch.no_grad(), self._backend.device(tensors[0].device):
            self._look_at_state()
            if key not in self._failures:
                recorded = self._graph(key, leaves, structure)
                if recorded is not None:
                    return self._replay(recorded, tensors)
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def why_eager(self, *args, **kwargs) -> str | None:
        """Why a call with these arguments runs without a graph; None where it has one, or gets one."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        return self._why_not(leaves) or self._failures.get(self._key(leaves, structure))

    def buffers(self, *args, **kwargs):
        """The tensors that the graph for such arguments reads, as (args, kwargs); recorded now if need be.

        Who writes into them and calls with them saves the copy.

        Raises:
            RuntimeError: no graph can serve the call.
        """
        leaves, structure = pytree.tree_flatten((args, kwargs))
        reason = self._why_not(leaves)
        key = None if reason else self._key(leaves, structure)
        recorded = None
        if reason is None:
            device = next(x for x in leaves if isinstance(x, Tensor)).device
            with self._lock, torch.inference_mode(False), torch.no_grad(), self._backend.device(device):
                self._look_at_state()
                if key not in self._failures:
                    recorded = self._graph(key, leaves, structure)
        if recorded is None:
            raise RuntimeError(f"no CUDA graph can serve these arguments: {reason or self._failures.get(key)}")
        given = iter(recorded.inputs)
        return pytree.tree_unflatten([next(given) if isinstance(x, Tensor) else x for x in leaves], structure)

    def invalidate(self) -> None:
        """Drops all graphs and what is known of failures. Outputs that were handed out stay what they are."""
        with self._lock:
            if self._done is not None:
                self._done.synchronize()  # a graph that runs must not lose its memory
            for recorded in self._graphs.values():
                recorded.graph.reset()
            self._graphs.clear()
            self._failures.clear()
            self._pool = None

    @property
    def kept(self) -> int:
        """How many graphs are kept at the moment."""
        return len(self._graphs)

    def _why_not(self, leaves: list) -> str | None:
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        if not tensors:
            return "there is no tensor among the arguments"
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "the call is being compiled or traced"
        if transformed() or batched():
            return "forward-mode differentiation or vmap is under way"
        for x in tensors:
            if type(x) not in (Tensor, nn.Parameter):
                return f"an argument is a {type(x).__name__}"
            if x.device != tensors[0].device:
                return "the arguments are on several devices"
            if x.requires_grad and torch.is_grad_enabled():
                return "an argument wants a gradient"
            if x.layout != torch.strided:
                return f"an argument has the layout {x.layout}"
        for x in leaves:
            if not isinstance(x, Tensor) and getattr(type(x), "__hash__", None) is None:
                return f"an argument is a {type(x).__name__}, which has no hash"
        return self._backend.why_not(tensors[0].device)

    def _key(self, leaves: list, structure) -> tuple:
        described = tuple(
            (tuple(x.shape), x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x) for x in leaves
        )
        return (described, structure, getattr(self.module, "training", None), *self._backend.settings())

    def _look_at_state(self) -> None:
        if self._state is None:
            return
        state = self._state()
        if self._known_state is not None and state != self._known_state[0]:
            self.invalidate()
        self._known_state = (state,)

    def _graph(self, key: tuple, leaves: list, structure) -> _Graph | None:
        recorded = self._graphs.get(key)
        if recorded is not None:
            self._graphs.move_to_end(key)
            return recorded
        while len(self._graphs) >= self.max_graphs:
            self._drop_oldest()
        for last in (False, True):
            try:
                recorded = self._graphs[key] = self._record(leaves, structure)
                return recorded
            except Exception as error:
                if last or not isinstance(error, torch.OutOfMemoryError):
                    self._remember(key, error)
                    return None
                self.invalidate()  # each graph keeps memory: rather this one than those before it
                self._backend.empty_cache()
        return None

    def _remember(self, key: tuple, error: Exception) -> None:
        lines = str(error).splitlines()
        reason = f"it cannot be recorded ({type(error).__name__}: {lines[0] if lines else ''})"
        self._failures[key] = reason
        if not self._graphs:
            self._pool = None  # what a broken capture has left of it is of no use
        warnings.warn(f"no CUDA graph for {_name(self.module)}, which runs as it is: {reason}", RuntimeWarning, 4)

    def _record(self, leaves: list, structure) -> _Graph:
        self._wait()
        held = [torch.empty_like(x).copy_(x) if isinstance(x, Tensor) else x for x in leaves]
        args, kwargs = pytree.tree_unflatten(held, structure)
        if self._pool is None:
            self._pool = self._backend.new_pool()
        graph, outputs = self._backend.capture(lambda: self.module(*args, **kwargs), self._pool, WARM_UP)
        self._launched()
        return _Graph(graph, [x for x in held if isinstance(x, Tensor)], outputs)

    def _replay(self, recorded: _Graph, tensors: list[Tensor]):
        self._wait()
        for held, x in zip(recorded.inputs, tensors, strict=True):
            if held is not x:
                held.copy_(x, non_blocking=True)
        recorded.graph.replay()
        outputs = recorded.outputs
        if self.clone_outputs:
            outputs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, outputs)
        self._launched()
        return outputs

    def _wait(self) -> None:
        if self._done is not None and self._stream != self._backend.current_stream():
            self._backend.wait_event(self._done)

    def _launched(self) -> None:
        self._done, self._stream = self._backend.record_event(), self._backend.current_stream()

    def _drop_oldest(self) -> None:
        _, recorded = self._graphs.popitem(last=False)
        if self._done is not None:
            self._done.synchronize()
        recorded.graph.reset()


def _name(module: Callable) -> str:
    return type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__name__", repr(module))
