"""Streams, events and graphs as hrnet_fast.runtime asks for them, on the CPU: a replay runs the function again."""

import contextlib

import torch
from torch.utils import _pytree as pytree


class FakeEvent:
    """Remembers on which stream, and behind how many entries of the log, it was recorded."""

    def __init__(self, backend):
        self.stream, self.backend = backend.current, backend

    def synchronize(self):
        self.backend.log.append("synchronize")


class FakeGraph:
    """Writes the results of its function into the very tensors that the capture returned, as a graph does."""

    def __init__(self, backend, function, outputs):
        self.backend, self.function, self.outputs = backend, function, outputs
        self.alive = True

    def replay(self):
        assert self.alive, "a graph was replayed after its reset"
        self.backend.log.append("replay")
        new, old = (pytree.tree_leaves(value) for value in (self.function(), self.outputs))
        for a, b in zip(old, new, strict=True):
            if isinstance(a, torch.Tensor) and a.data_ptr() != b.data_ptr():
                a.copy_(b)

    def reset(self):
        self.alive = False
        self.backend.log.append("reset")


class FakeBackend:
    """The stand-in for hrnet_fast.runtime.cuda_streams.CudaBackend; ``log`` tells what was asked of it."""

    def __init__(self):
        self.log, self.graphs, self.capturing = [], [], False
        self.current, self.streams = "main", 0
        self.out_of_memory = 0  # captures that find no memory
        self.given_settings = ()

    def why_not(self, device):
        return "the call is being captured already" if self.capturing else None

    def settings(self):
        return self.given_settings

    def device(self, device):
        return contextlib.nullcontext()

    def new_pool(self):
        return object()

    def empty_cache(self):
        self.log.append("empty_cache")

    def capture(self, function, pool, warm_up):
        assert torch.is_inference_mode_enabled() is False and torch.is_grad_enabled() is False
        if self.out_of_memory:
            self.out_of_memory -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        for _ in range(warm_up):
            function()
        self.capturing = True
        try:
            outputs = function()
        finally:
            self.capturing = False
        self.log.append("capture")
        self.graphs.append(FakeGraph(self, function, outputs))
        return self.graphs[-1], outputs

    def current_stream(self):
        return self.current

    def new_stream(self):
        self.streams += 1
        return f"side{self.streams}"

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def record_event(self):
        return FakeEvent(self)

    def wait_event(self, event):
        self.log.append(f"{self.current} waits for {event.stream}")

    def used_by(self, value, stream):
        self.log.append(f"kept for {stream}")
