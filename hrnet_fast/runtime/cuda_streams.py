"""Streams, events and captures on NVIDIA GPUs, and independent work side by side on several streams."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")


class CudaBackend:
    """What graphs and branches ask of CUDA. Tests put a stand-in in its place."""

    def why_not(self, device: torch.device) -> str | None:
        """Why there can be no graph for tensors on this device; None where there can."""
        if device.type != "cuda":
            return f"it serves tensors on NVIDIA GPUs, these are on {device.type}"
        if torch.cuda.is_current_stream_capturing():
            return "the call is being captured already"
        return None

    def settings(self) -> tuple:
        """What changes the kernels that a module launches, besides its arguments."""
        enabled = torch.is_autocast_enabled("cuda")
        return (
            torch.get_autocast_dtype("cuda") if enabled else None,
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.are_deterministic_algorithms_enabled(),
        )

    def device(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Makes it the current device."""
        return torch.cuda.device(device)

    def new_pool(self) -> Any:
        """Memory for captures."""
        return torch.cuda.graph_pool_handle()

    def empty_cache(self) -> None:
        """Gives unused memory back."""
        torch.cuda.empty_cache()

    def capture(self, function: Callable[[], Any], pool: Any, warm_up: int) -> tuple[Any, Any]:
        """Runs the function a few times, then records it. Returns the graph, and what the function returned."""
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a cast weight would be freed, or lie in the graph's memory unwritten
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(warm_up):
                    function()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # what other threads do meanwhile is none of this capture's business
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = function()
            return graph, outputs
        finally:
            torch.set_autocast_cache_enabled(cached)

    def current_stream(self) -> Any:
        """Of the current device."""
        return torch.cuda.current_stream()

    def new_stream(self) -> Any:
        """On the current device."""
        return torch.cuda.Stream()

    def stream(self, stream: Any) -> contextlib.AbstractContextManager:
        """Makes it the current stream."""
        return torch.cuda.stream(stream)

    def record_event(self) -> Any:
        """An event behind what the current stream has been given so far."""
        return torch.cuda.current_stream().record_event()

    def wait_event(self, event: Any) -> None:
        """Lets the current stream wait, on the GPU."""
        torch.cuda.current_stream().wait_event(event)

    def used_by(self, value: Any, stream: Any) -> None:
        """Keeps the memory of tensors until this stream has done what it was given before they are freed."""
        if torch.cuda.is_current_stream_capturing():
            return  # the memory of a capture serves nobody else, and the next fork comes after this join
        for x in pytree.tree_leaves(value):
            if isinstance(x, Tensor):
                x.record_stream(stream)


CUDA = CudaBackend()


class Branches:
    """Functions side by side on the GPU, as for HRNet's parallel streams, whose convolutions PyTorch runs in series.

    The first function runs on the current stream, every other one on a stream of its own that waits for the current one
    and that the current one waits for afterwards: one fork and one join, by events, so that a CUDA graph that is being
    captured gets parallel branches. Whether that pays depends on the GPU and the size: a branch that fills the GPU by
    itself gains nothing. The functions must not wait for each other, and what they read must stay alive until they are
    done, which holds for what they refer to.

    Args:
        backend: streams and events; CUDA's, or a stand-in in tests.
    """

    def __init__(self, backend=CUDA):
        self._backend = backend
        # of each thread: what one of them captures must not get the work of another
        self._streams = threading.local()

    def run(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """The results of the functions, in their order. An exception of one is raised after all are joined."""
        backend = self._backend
        if len(functions) < 2:
            return [function() for function in functions]
        results: list = [None] * len(functions)
        main, fork, ends = backend.current_stream(), backend.record_event(), []
        try:
            for k, side in enumerate(self._side_streams(main, len(functions) - 1), 1):
                with backend.stream(side):
                    backend.wait_event(fork)
                    try:
                        results[k] = functions[k]()
                    finally:
                        ends.append(backend.record_event())
            results[0] = functions[0]()
        finally:
            for end in ends:
                backend.wait_event(end)
        backend.used_by(results[1:], main)
        return results

    def _side_streams(self, main: Any, count: int) -> list:
        """``count`` streams on the device of ``main``, the same ones at every call of a thread."""
        by_device = self._streams.__dict__.setdefault("by_device", {})
        known = by_device.setdefault(getattr(main, "device", None), [])
        while len(known) < count:
            known.append(self._backend.new_stream())
        free = [stream for stream in known if stream != main]
        while len(free) < count:  # a function forks in turn
            free.append(self._backend.new_stream())
            known.append(free[-1])
        return free[:count]
