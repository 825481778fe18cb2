"""Which backend serves tensors on a GPU, and what happens where one cannot: on fake tensors, with a made-up GPU."""

import contextlib
import functools
import subprocess
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hrnet_fast as hf
from hrnet_fast.cli import main
from hrnet_fast.ops import backends
from hrnet_fast.ops.backends import cuda, gpu, preferences, reference, triton
from hrnet_fast.ops.exchange import autograd
from hrnet_fast.ops.exchange.api import _validate, exchange_group
from hrnet_fast.ops.exchange.call import BackendFailed
from support.fake_gpu import made_up_gpu

NO_IMAGE = "no kernel image is available for execution on the device"
LAUNCHING_TRITON = functools.partial(triton._launching, "up_sum_relu")
OLD_DRIVER = "CUDA driver version is insufficient for CUDA runtime version"


@pytest.fixture
def machine(monkeypatch):
    """A machine with GPUs on which both backends run, as far as they are asked; ``capability`` may be changed."""
    there = SimpleNamespace(capability=(9, 0), loading={})
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu, "capability", lambda index: there.capability)
    monkeypatch.setattr(cuda, "extension_error", None)
    monkeypatch.setattr(torch.ops.hrnet_fast, "cuda_kernels_error", lambda index: there.loading.get(index, ""))
    cuda.kernels_error.cache_clear()
    for module in (cuda, triton):
        monkeypatch.setattr(module, "failures", gpu.Failures())
    monkeypatch.setattr(triton, "is_installed", lambda: True)
    yield there
    cuda.kernels_error.cache_clear()


@pytest.fixture
def served(monkeypatch):
    """The names of the backends that have served calls, in turn."""
    names = []
    for name, module in backends.TABLE.items():

        def run(call, name=name, module=module, original=module.run):
            result = original(call)
            names.append(name)
            return result

        monkeypatch.setattr(module, "run", run)
    return names


def tensors(dtype=torch.float16, device="cuda:0", weight=True):
    x = [torch.empty(1, c, n, n, dtype=dtype, device=device) for c, n in ((8, 16), (16 if weight else 8, 8))]
    return [t.contiguous(memory_format=torch.channels_last) for t in x], [
        None,
        torch.empty(8, 16, dtype=dtype, device=device) if weight else None,
    ]


def exchange(**arguments):
    backend = arguments.pop("backend", "auto")
    with made_up_gpu():
        y = hf.exchange(*tensors(**arguments), backend=backend)
    assert y.shape == (1, 8, 16, 16) and y.is_cuda


def test_the_table_decides(machine, served):
    exchange()
    exchange(weight=False)
    machine.capability = (7, 5)
    exchange()
    exchange(weight=False)
    exchange(dtype=torch.bfloat16)  # whose products tensor cores have from 8.0 on
    exchange(dtype=torch.float64)
    assert served == ["cuda", "triton", "cuda", "cuda", "reference", "reference"]
    assert all(row.measured is None for row in preferences.GPU)  # until somebody has


@pytest.mark.parametrize(
    ("name", "capability", "reason"),
    [
        ("cuda", (7, 0), "it needs compute capability 7.5 or newer, this GPU has 7.0"),
        ("triton", (7, 5), "it needs compute capability 8.0 or newer, this GPU has 7.5"),
    ],
)
def test_a_gpu_that_is_too_old(machine, served, name, capability, reason):
    machine.capability = (6, 1)
    exchange()
    assert served == ["reference"]
    machine.capability = capability
    with pytest.raises(RuntimeError, match=f"backend '{name}' cannot serve this call: {reason}"):
        exchange(backend=name)


@pytest.mark.parametrize("reason", [NO_IMAGE, OLD_DRIVER])
def test_kernels_that_the_driver_cannot_load(machine, served, reason, capsys):
    machine.loading = {0: reason}
    exchange()
    exchange(device="cuda:1")
    assert served == ["triton", "cuda"]
    with pytest.raises(RuntimeError, match=f"on this GPU of compute capability 9.0: {reason}"):
        exchange(backend="cuda")
    assert reason in cuda.why_not(None)
    assert reason in cuda.why_not_backward(SimpleNamespace(dtype=torch.float16, device=torch.device("cuda:0")))


def test_without_the_compiled_kernels_or_triton(machine, served, monkeypatch):
    monkeypatch.setattr(cuda, "extension_error", "the compiled extension hrnet_fast._C_cuda is not there (it is not)")
    exchange()
    monkeypatch.setattr(triton, "is_installed", lambda: False)
    exchange()
    assert served == ["triton", "reference"]
    with pytest.raises(RuntimeError, match="_C_cuda is not there"):
        exchange(backend="cuda")
    with pytest.raises(RuntimeError, match="triton is not installed"):
        exchange(backend="triton")


def test_tensors_elsewhere():
    x = [torch.ones(1, 2, 4, 4)]
    for name, missing in (("cuda", cuda.extension_error), ("triton", None)):
        reason = missing or "it serves tensors on NVIDIA GPUs, these are on cpu"
        with pytest.raises(RuntimeError) as raised:
            hf.exchange(x, backend=name)
        assert str(raised.value) == f"backend '{name}' cannot serve this call: {reason}"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update."),
         "torch finds no NVIDIA GPU (The NVIDIA driver on your system is too old (found version 11040))"),
        (RuntimeError("No CUDA GPUs are available"), "torch finds no NVIDIA GPU (No CUDA GPUs are available)"),
        (None, "torch finds no NVIDIA GPU"),
    ],
)  # fmt: skip
def test_why_torch_has_no_gpu(monkeypatch, capsys, error, shown):
    def init():
        if error is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(triton, "is_installed", lambda: True)
    assert triton.why_not(None) == shown
    monkeypatch.setattr(torch.version, "cuda", None)
    assert triton.why_not(None) == "torch finds no NVIDIA GPU (this torch is not a CUDA build)"


def test_a_gpu_that_torch_cannot_use(machine, monkeypatch):
    def fail(index):
        raise RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment\nmore")

    monkeypatch.setattr(gpu, "capability", fail)
    for module in (cuda, triton):
        assert module.why_not(None).startswith("torch cannot use the GPU (CUDA unknown error")


def test_info_shows_the_reasons(machine, monkeypatch, capsys):
    from hrnet_fast.bench import machine as facts

    monkeypatch.setattr(facts, "gpu", lambda: None)
    monkeypatch.setenv("COLUMNS", "400")
    machine.loading = {0: OLD_DRIVER}
    triton.failures.remember(torch.device("cuda:0"), "Triton failed (RuntimeError: Failed to find C compiler)")
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert OLD_DRIVER in shown
    assert "Failed to find C compiler" in shown
    assert "not yet measured" in shown


def tritons_errors():
    pytest.importorskip("triton")
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return [
        CompilationError("def f(): pass", SimpleNamespace(lineno=1, col_offset=0), "unsupported"),
        OutOfResources(300000, 232448, "shared memory"),
        PTXASError("`ptxas` failed with error code 255"),
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
        RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
        RuntimeError("0 active drivers ([]). There should only be one."),
        subprocess.CalledProcessError(1, ["gcc", "main.c"]),
        PermissionError("[Errno 13] Permission denied: '.triton/cache'"),
        ImportError("libtriton.so: undefined symbol"),
    ]


@pytest.mark.parametrize("index", range(9))
def test_a_triton_that_fails(machine, served, monkeypatch, index):
    error = tritons_errors()[index]
    monkeypatch.setattr(triton, "run", failing(LAUNCHING_TRITON, error))
    exchange(weight=False)
    assert served == ["cuda"]
    with pytest.raises(RuntimeError, match=r"cannot serve this call: Triton failed at up_sum_relu \("):
        exchange(weight=False, backend="triton")
    reason = triton.why_not(None)
    assert type(error).__name__ in reason and gpu.first_line(error) in reason
    exchange(weight=False)
    assert served == ["cuda", "cuda"]
    assert len(monkeypatch_calls(triton)) == 1  # it was not tried again
    exchange(weight=False, device="cuda:1")  # where it fails as well
    assert len(monkeypatch_calls(triton)) == 2


def monkeypatch_calls(module):
    return module.run.calls


def failing(launching, error):
    """A backend's ``run`` whose launch raises."""

    def run(call):
        run.calls.append(call)
        with launching(call.inputs[0].device):
            raise error

    run.calls = []
    return run


def test_a_named_triton_that_fails_raises_its_reason(machine, monkeypatch):
    monkeypatch.setattr(triton, "run", failing(LAUNCHING_TRITON, RuntimeError("Failed to find C compiler")))
    with pytest.raises(BackendFailed, match="Failed to find C compiler"):
        exchange(weight=False, backend="triton")
    monkeypatch.setattr(triton, "failures", gpu.Failures())
    monkeypatch.setenv("HRNET_FAST_BACKEND", "triton")
    with pytest.raises(BackendFailed, match="Failed to find C compiler"):
        exchange(weight=False)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), ZeroDivisionError("a mistake of ours")]
)
def test_errors_that_are_not_tritons_own_go_through(machine, monkeypatch, error):
    monkeypatch.setattr(triton, "run", failing(LAUNCHING_TRITON, error))
    with pytest.raises(type(error)):
        exchange(weight=False)
    assert triton.why_not(None) is None


@contextlib.contextmanager
def launching_cuda(device):
    """What a kernel of _C_cuda raises goes through the backend's own handling."""
    try:
        yield
    except RuntimeError as error:
        raised = error

        def operator():
            raise raised

        cuda._launch(operator, (), device)


def test_a_cuda_kernel_that_cannot_be_launched(machine, served, monkeypatch):
    error = RuntimeError("the kernel exchange_channels_last failed to launch: too many resources requested\nstack")
    monkeypatch.setattr(cuda, "run", failing(launching_cuda, error))
    exchange()
    exchange()
    assert served == ["triton", "triton"] and len(monkeypatch_calls(cuda)) == 1
    assert cuda.why_not(None) == str(error).splitlines()[0]
    with pytest.raises(
        RuntimeError, match="cannot serve this call: the kernel exchange_channels_last failed to launch"
    ):
        exchange(backend="cuda")
    monkeypatch.setattr(cuda, "failures", gpu.Failures())
    with pytest.raises(BackendFailed, match="exchange_channels_last failed to launch"):
        exchange(backend="cuda")


@pytest.mark.parametrize(
    "text",
    ["exchange: the result is too large for one launch", "the kernel exchange_planar failed to launch: out of memory"],
)
def test_what_another_call_may_not_meet_is_not_remembered(machine, monkeypatch, text):
    monkeypatch.setattr(cuda, "run", failing(launching_cuda, RuntimeError(text)))
    with pytest.raises(RuntimeError, match=text):
        exchange()
    assert cuda.why_not(None) is None


def test_a_group_that_fails_together_is_served_one_by_one(machine, served, monkeypatch):
    def together(calls):
        raise cuda.failures.remember(calls[0].inputs[0].device, "the kernel failed to launch")

    monkeypatch.setattr(cuda, "run_together", together)
    with made_up_gpu():
        rows = [(*tensors(), None, (16, 16)) for _ in range(2)]
        found = exchange_group(rows)
    assert [y.shape for y in found] == [(1, 8, 16, 16)] * 2
    assert served == ["triton", "triton"]


def test_the_backward_goes_on_to_the_next(machine, monkeypatch):
    def fail(*arguments):
        raise cuda.failures.remember(arguments[0].device, "the kernel exchange_backward failed to launch")

    def compute(*arguments):
        return ["by triton"]

    monkeypatch.setattr(cuda, "backward", fail)
    monkeypatch.setattr(triton, "backward", compute)
    with made_up_gpu():
        grad = torch.empty(1, 4, 8, 8, device="cuda:0")
        assert backends._backward_on_gpu(grad, None, [4, 4], "bilinear", False, False) == ["by triton"]
        assert "failed to launch" in cuda.why_not_backward(grad)
        machine.capability = (7, 5)  # no Triton there: standard operators
        (low,) = backends._backward_on_gpu(grad, None, [4, 4], "bilinear", False, False)
    assert low.shape == (1, 4, 4, 4)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_float32_products_on_gpus_are_no_convolutions(machine, layout):
    """cuDNN's would be rounded to TF32 by default, whatever torch.backends.cuda.matmul.allow_tf32 says."""

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    names = []
    with made_up_gpu(), Operators():
        x = [torch.empty(2, c, n, n, device="cuda:0").contiguous(memory_format=layout) for c, n in ((8, 16), (12, 8))]
        weight, projection = torch.empty(8, 12, device="cuda:0"), torch.empty(5, 8, device="cuda:0")
        call = _validate(x, [None, weight], None, None, "bilinear", False, "relu", (projection, projection[:, 0]))
        reference.run(call)
        for value in (
            gpu.product(x[1], weight, layout),
            gpu.project(x[0], call, layout),
            autograd._times(x[1], weight),
        ):
            assert value.is_contiguous(memory_format=layout)
    assert "convolution" not in names and names.count("bmm") + names.count("mm") + names.count("addmm") == 5, names


def test_empty_tensors_are_for_standard_operators():
    """A launch of nothing is an error, and would be remembered as one of the kernels."""
    with made_up_gpu():
        full, empty = torch.empty(1, 4, 8, 8, device="cuda:0"), torch.empty(1, 0, 8, 8, device="cuda:0")
        weight, none = torch.empty(4, 0, device="cuda:0"), torch.empty(0, 4, device="cuda:0")
        for arguments, projection in (
            (([full, empty], [None, weight]), None),
            (([full], [none]), None),
            (([full],), none),
            (([full[:0]],), None),
        ):
            call = _validate(*arguments, *[None] * (3 - len(arguments)), (8, 8), "bilinear", False, "relu", projection)
            assert gpu.why_not_tensors(call) == "a tensor is empty"
