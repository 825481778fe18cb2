"""CUDA graphs and concurrent branches, on the CPU with a stand-in for CUDA; on a GPU the same with the real one."""

import threading
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from hrnet_fast.runtime.cuda_graphs import WARM_UP, GraphedModule
from hrnet_fast.runtime.cuda_streams import Branches
from support.fake_cuda import FakeBackend


@pytest.fixture
def cuda():
    return FakeBackend()


def counted(function):
    """The function, and how often it was called."""
    calls = []

    def call(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return call, calls


def test_one_graph_for_each_kind_of_input(cuda):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    graphed = GraphedModule(module, backend=cuda)
    for shape in ((1, 3, 8, 9), (2, 3, 8, 9), (1, 3, 8, 9), (1, 3, 8, 9)):
        x = torch.randn(shape)
        assert torch.equal(graphed(x), module(x))
    x = torch.randn(1, 3, 8, 9).contiguous(memory_format=torch.channels_last)
    assert torch.equal(graphed(x), module(x))
    assert cuda.log.count("capture") == graphed.kept == 3
    assert cuda.log.count("replay") == 5
    assert cuda.graphs[-1].outputs.is_contiguous(memory_format=torch.channels_last)


def test_inputs_and_outputs_of_any_structure(cuda):
    def module(streams, scale, *, other=None):
        return {"sum": sum(streams) * scale, "rest": (other["a"] + 1, None, "text")}

    graphed = GraphedModule(module, backend=cuda)
    for scale in (2, 3, 2.0):  # 2 and 2.0 are equal, and give other dtypes
        streams, other = [torch.ones(4, dtype=torch.int64), torch.arange(4)], {"a": torch.zeros(1)}
        found, expected = graphed(streams, scale, other=other), module(streams, scale, other=other)
        assert found["sum"].dtype == expected["sum"].dtype
        assert torch.equal(found["sum"], expected["sum"])
        assert torch.equal(found["rest"][0], expected["rest"][0]) and found["rest"][1:] == (None, "text")
    assert graphed.kept == 3


def test_keeps_those_used_last(cuda):
    graphed = GraphedModule(torch.neg, max_graphs=2, backend=cuda)
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    for x in (one, two, one, three):  # two goes
        graphed(x)
    assert graphed.kept == 2
    assert [graph.alive for graph in cuda.graphs] == [True, False, True]
    assert cuda.log.index("synchronize") < cuda.log.index("reset")
    graphed(one)
    assert cuda.log.count("capture") == 3
    graphed(two)
    assert cuda.log.count("capture") == 4
    with pytest.raises(ValueError, match="max_graphs: expected 1 or more, got 0"):
        GraphedModule(torch.neg, max_graphs=0)


def test_outputs_belong_to_the_caller_unless_asked_otherwise(cuda):
    for clone in (True, False):
        graphed = GraphedModule(torch.neg, clone_outputs=clone, backend=cuda)
        first = graphed(torch.ones(2))
        second = graphed(torch.full((2,), 5.0))
        assert second.tolist() == [-5, -5]
        assert first.tolist() == ([-1, -1] if clone else [-5, -5])
        assert (first is second) is not clone


def test_buffers_save_the_copy(cuda):
    graphed = GraphedModule(lambda x, y=None: x + y, backend=cuda)
    (x,), keywords = graphed.buffers(torch.zeros(3), y=torch.ones(3))
    x.fill_(4)
    assert graphed(x, **keywords).tolist() == [5, 5, 5]
    with pytest.raises(RuntimeError, match="no tensor among the arguments"):
        graphed.buffers(1)


@pytest.mark.parametrize("inference", [True, False])
def test_under_inference_mode_and_outside(cuda, inference):
    module = nn.Linear(3, 2).eval()
    graphed = GraphedModule(module, backend=cuda)
    for _ in range(2):  # the graph is recorded in one mode and used in the other
        with torch.inference_mode(inference):
            x = torch.randn(4, 3)
            y = graphed(x)
        inference = not inference
        assert not y.requires_grad and not y.is_inference()
        assert torch.equal(y, module(x).detach() if not x.is_inference() else module(x.clone()).detach())
    assert cuda.log.count("capture") == 1


def test_calls_that_no_graph_can_serve(cuda):
    module, calls = counted(lambda x, y=None: x * 2)
    graphed = GraphedModule(module, backend=cuda)
    x = torch.ones(2, requires_grad=True)
    assert graphed(x).requires_grad
    assert graphed.why_eager(x) == "an argument wants a gradient"
    assert graphed.why_eager(torch.ones(2), {1, 2}) == "an argument is a set, which has no hash"
    assert graphed.why_eager(torch.ones(2).to_sparse()) == "an argument has the layout torch.sparse_coo"
    assert "several devices" in graphed.why_eager(torch.ones(2), torch.ones(2, device="meta"))
    cuda.capturing = True
    assert graphed.why_eager(torch.ones(2)) == "the call is being captured already"
    assert len(calls) == 1
    real = GraphedModule(module)
    assert real.why_eager(torch.ones(2)) == "it serves tensors on NVIDIA GPUs, these are on cpu"
    assert real(torch.ones(2)).tolist() == [2, 2]


def test_transforms_run_the_module_as_it_is(cuda):
    """A graph would drop the tangents."""
    weight = torch.tensor([2.0, 3.0])
    graphed = GraphedModule(lambda x: (x * weight).square(), backend=cuda)
    x, direction = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 10.0])
    graphed(x)
    expected = 2 * x * weight.square() * direction
    torch.testing.assert_close(torch.func.jvp(graphed, (x,), (direction,))[1], expected)
    torch.testing.assert_close(torch.func.jacfwd(graphed)(x) @ direction, expected)
    torch.testing.assert_close(torch.func.grad(lambda t: graphed(t) @ direction)(x), expected)
    torch.testing.assert_close(
        torch.func.vmap(graphed)(torch.stack([x, direction])), graphed(torch.stack([x, direction]))
    )
    with forward_ad.dual_level():
        assert "forward-mode" in graphed.why_eager(x)
        with pytest.raises(RuntimeError, match="forward-mode"):
            graphed.buffers(x)
        y = graphed(forward_ad.make_dual(x, direction))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, expected)
    assert "replay" in cuda.log and torch.equal(graphed(x), (x * weight).square())


def test_a_module_that_cannot_be_recorded_runs_as_it_is(cuda):
    def module(x):
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return x + 1

    graphed = GraphedModule(module, backend=cuda)
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing"):
        assert graphed(torch.ones(1)).item() == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert graphed(torch.ones(1)).item() == 2
    assert "RuntimeError: operation not permitted" in graphed.why_eager(torch.ones(1))
    assert graphed.kept == 0
    with pytest.raises(RuntimeError, match="not permitted"):
        graphed.buffers(torch.ones(1))
    graphed.invalidate()
    assert graphed.why_eager(torch.ones(1)) is None


def test_out_of_memory_drops_the_other_graphs_and_tries_again(cuda):
    graphed = GraphedModule(torch.neg, backend=cuda)
    graphed(torch.ones(1))
    cuda.out_of_memory = 1
    assert graphed(torch.ones(2)).tolist() == [-1, -1]
    assert graphed.kept == 1 and not cuda.graphs[0].alive
    assert cuda.log.count("empty_cache") == 1
    cuda.out_of_memory = 2
    with pytest.warns(RuntimeWarning, match="out of memory"):
        assert graphed(torch.ones(3)).tolist() == [-1, -1, -1]


def test_invalidation(cuda):
    module = nn.Linear(2, 2, bias=False).eval()
    version = [0]
    graphed = GraphedModule(module, backend=cuda, state=lambda: version[0])
    x = torch.ones(1, 2)
    y = graphed(x)
    kept = y.clone()
    version[0] = 1
    graphed(x)
    assert cuda.log.count("capture") == 2 and not cuda.graphs[0].alive
    assert torch.equal(y, kept)
    graphed.invalidate()
    assert graphed.kept == 0 and not cuda.graphs[1].alive
    graphed(x)
    module.train()  # its training flag is part of what a graph was recorded for
    graphed(x)
    assert cuda.log.count("capture") == 4
    cuda.given_settings = ("bfloat16",)
    graphed(x)
    assert cuda.log.count("capture") == 5


def test_another_stream_waits_for_the_last_launch(cuda):
    graphed = GraphedModule(torch.neg, backend=cuda)
    graphed(torch.ones(1))
    graphed(torch.ones(1))
    assert not any("waits" in entry for entry in cuda.log)
    with cuda.stream("other"):
        graphed(torch.ones(1))
        graphed(torch.ones(1))
    assert cuda.log.count("other waits for main") == 1
    assert cuda.log.index("other waits for main") < len(cuda.log) - 1 - cuda.log[::-1].index("replay")


def test_threads_share_it(cuda):
    module, calls = counted(lambda x: x * 3)
    graphed = GraphedModule(module, max_graphs=3, backend=cuda)
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for k in range(60):
            x = torch.randn(1 + k % 3, generator=generator)
            if not torch.equal(graphed(x), x * 3):
                wrong.append((seed, k))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cuda.log.count("capture") == 3  # none was recorded twice
    assert len(calls) == 3 * (WARM_UP + 1) + 6 * 60


def test_branches_fork_and_join(cuda):
    branches = Branches(cuda)
    ran = []

    def on(name):
        return lambda: ran.append((name, cuda.current)) or name

    assert branches.run([on("a"), on("b"), on("c")]) == ["a", "b", "c"]
    assert dict(ran) == {"a": "main", "b": "side1", "c": "side2"}
    assert cuda.log == ["side1 waits for main", "side2 waits for main", "main waits for side1", "main waits for side2",
                        "kept for main"]  # fmt: skip
    branches.run([on("a"), on("b")])
    assert cuda.streams == 2  # the streams of before
    assert branches.run([on("d")]) == ["d"] and branches.run([]) == []
    with cuda.stream("side1"):  # a branch that forks in turn does not wait for itself
        branches.run([on("e"), on("f"), on("g")])
    assert {"e": "side1", "f": "side2", "g": "side3"}.items() <= dict(ran).items()


def test_a_failing_branch_is_joined_all_the_same(cuda):
    def fail():
        raise ValueError("in a branch")

    for functions in ([int, fail, int], [fail, int, int]):
        cuda.log.clear()
        with pytest.raises(ValueError, match="in a branch"):
            Branches(cuda).run(functions)
        forked = [entry for entry in cuda.log if entry.endswith("for main")]
        assert [f"main waits for {entry.split()[0]}" for entry in forked] == cuda.log[len(forked) :]


def test_threads_have_streams_of_their_own(cuda):
    branches, seen = Branches(cuda), []
    for _ in range(2):
        thread = threading.Thread(target=lambda: branches.run([int, lambda: seen.append(cuda.current)]))
        thread.start()
        thread.join()
    assert len(set(seen)) == 2


@pytest.mark.gpu
def test_on_a_gpu():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).cuda().eval()
    branches = Branches()

    def parallel(x):
        return branches.run([lambda: module(x), lambda: module(x * 2), lambda: module(x - 1)])

    graphed = GraphedModule(parallel, max_graphs=2)
    side = torch.cuda.Stream()
    for k in range(9):
        x = torch.randn(1, 3, 32 + k % 3, 48, device="cuda")
        with torch.no_grad():
            expected = [module(t) for t in (x, x * 2, x - 1)]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side if k % 2 else torch.cuda.current_stream()):
            found = graphed(x)
        torch.cuda.synchronize()
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert graphed.kept == 2
    assert graphed.why_eager(x) is None


@pytest.mark.gpu
def test_a_capture_that_fails_on_a_gpu():
    graphed = GraphedModule(lambda x: x * x.sum().item())
    with pytest.warns(RuntimeWarning, match="cannot be recorded"):
        assert graphed(torch.ones(2, device="cuda")).tolist() == [2, 2]
    working = GraphedModule(torch.neg)
    assert working(torch.ones(2, device="cuda")).tolist() == [-1, -1]
