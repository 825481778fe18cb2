"""The comparison with other inference engines: same weights for all, reasons of those that cannot run, the program."""

import contextlib
import ctypes
import dataclasses
import json
import logging
import sys
import types

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from benchmarks import engines, engines_table, peers
from benchmarks.peers import compiled, forms, onnx_runtime, openvino_runtime, optimized
from hrnet_fast.bench import images, memory, report
from hrnet_fast.bench.contenders import COMPILED
from hrnet_fast.bench.harness import Contender, Prepared, compare
from hrnet_fast.tolerances import MODEL, relative_error

TINY = engines.Case("w18_small_v1", "segmentation", (64, 96), "float32")
TINY_INT8 = engines.Case("w18_small_v1", "classification", (64, 96), "int8")


@pytest.fixture(scope="module")
def job():
    return TINY.job(threads=1)


@pytest.fixture(scope="module")
def int8_job():
    return TINY_INT8.job(threads=1)


@pytest.fixture
def only_tiny(monkeypatch):
    monkeypatch.setattr(engines, "CASES", (TINY,))
    monkeypatch.setattr(engines, "memory_alone", lambda case, name, threads: engines.alone(case, name, threads)["resident_peak_bytes"])  # fmt: skip


def test_every_contender_has_the_interface():
    for name, module in peers.table().items():
        assert name == module.NAME
        assert module.why_not(torch.float32) is None or isinstance(module.why_not(torch.float32), str)
        assert callable(module.prepare)
    assert list(peers.table())[-2:] == list(peers.ours())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["eager channels_last", "hrnet_fast"])
def test_contenders_compute_the_same(name, dtype):
    job = peers.Job.create("hrnet_w18_small_v1", "segmentation", torch.randn(1, 3, 64, 64), dtype, 1, batch=2)
    before = {key: value.clone() for key, value in job.plain.state_dict().items()}
    with torch.inference_mode():
        output = peers.table()[name].prepare(job)()
    assert output.shape == (2, 19, 64, 64)
    assert output.dtype == dtype
    assert relative_error(output, job.reference()) < MODEL[dtype]
    assert all(value.equal(before[key]) for key, value in job.plain.state_dict().items())


def test_jobs_in_int8_keep_their_numbers_and_have_other_images_to_calibrate_with(int8_job):
    whole = engines.Case(TINY_INT8.width, TINY_INT8.task, TINY_INT8.size, "float32").job(threads=1)
    assert int8_job.image.equal(whole.image)
    assert all(value.equal(whole.plain.state_dict()[key]) for key, value in int8_job.plain.state_dict().items())
    assert int8_job.calibration.shape == (16, 3, 64, 96)
    assert int8_job.calibration.dtype == torch.float32
    assert whole.calibration is None
    for dtype, calibration in ((torch.int8, None), (torch.float32, whole.image)):
        with pytest.raises(ValueError, match="calibration"):
            peers.Job.create("hrnet_w18_small_v1", "classification", whole.image, dtype, 1, calibration=calibration)


def test_variants_are_other_photographs_and_always_the_same():
    made, image = images.variants(4, (64, 96)), images.load(size=(64, 96))
    assert made.equal(images.variants(4, (64, 96)))
    assert made[:2].equal(images.variants(2, (64, 96)))
    everything = [*made, *image]
    assert all(relative_error(a, b) > 0.1 for i, a in enumerate(everything) for b in everything[:i])
    assert images.load().amin() - 0.1 <= made.amin() < made.amax() <= (1 - 0.406) / 0.225 + 1e-3  # pixels from 0 to 255


def test_every_case_is_there_in_int8():
    assert {case.name.rpartition("-")[2] for case in engines.CASES} == set(engines.DTYPES)
    assert len(engines.select(["*-int8"])) == len(engines.NETWORKS)


def test_who_computes_in_int8(monkeypatch):
    assert all("int8" in peers.table()[name].why_not(torch.int8) for name in ("eager channels_last", "hrnet_fast"))
    assert "torchao" in compiled.why_not(torch.int8)
    monkeypatch.setattr(hf, "optimize", lambda model, example, *, dtype=None: None)
    assert "int8" in optimized.why_not(torch.int8)
    assert optimized.why_not(torch.float32) is None
    monkeypatch.setattr(hf, "optimize", lambda model, example, *, dtype=None, calibration=None: None)
    assert optimized.why_not(torch.int8) is None


def test_optimize_gets_the_images_for_calibration(int8_job, monkeypatch):
    def optimize(model, example, *, dtype, calibration):
        assert (example.dtype, dtype) == (torch.float32, torch.int8)
        assert calibration is int8_job.calibration
        return model

    monkeypatch.setattr(hf, "optimize", optimize)
    with torch.inference_mode():
        assert relative_error(optimized.prepare(int8_job)(), int8_job.reference()) < MODEL[torch.float32]


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_commuted_head_is_the_same_head(align_corners):
    plain = hf.create_model("hrnet_w18_small_v1", fast=False, align_corners=align_corners).eval().double()
    torch.nn.init.normal_(plain.last_layer[3].weight)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    commuted = forms.commuted(plain)
    assert isinstance(commuted.last_layer, forms.CommutedHead)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in commuted.modules())
    with torch.inference_mode():
        assert relative_error(commuted(image), plain(image)) < MODEL[torch.float64]


def test_networks_without_that_head_are_folded_only():
    plain = hf.create_model("hrnet_w18_small_v1", task="classification", fast=False).eval().double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(forms.commuted(plain)(image), plain(image)) < MODEL[torch.float64]


def test_onnx_files_get_the_commuted_network_and_go_away(job, monkeypatch):
    def export(network, arguments, path, *, opset_version, dynamo):
        assert isinstance(network.last_layer, forms.CommutedHead)
        assert arguments[0] is job.image
        assert opset_version >= 17
        with open(path, "wb") as file:
            file.write(b"a network")

    monkeypatch.setattr(torch.onnx, "export", export)
    with forms.onnx_file(job) as path:
        assert path.read_bytes() == b"a network"
    assert not path.exists()


@pytest.mark.parametrize("module", [onnx_runtime, openvino_runtime])
def test_what_is_not_installed_says_so(module, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in module.why_not(torch.float32)


def test_openvino_in_int8_needs_nncf(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", FakeOpenVINO())
    monkeypatch.setattr(openvino_runtime.importlib.util, "find_spec", lambda name: None if name == "nncf" else object())
    assert openvino_runtime.why_not(torch.int8) == "not installed: pip install nncf"
    assert openvino_runtime.why_not(torch.float32) is None
    monkeypatch.setattr(openvino_runtime.importlib.util, "find_spec", lambda name: object())
    assert "does not compute in int8" in openvino_runtime.why_not(torch.int8)


def test_calibration_comes_in_pieces_of_the_batch(int8_job):
    assert [part.shape[0] for part in forms.calibration_batches(int8_job)] == [1] * 16
    three = dataclasses.replace(int8_job, image=int8_job.image.repeat(3, 1, 1, 1))
    assert [part.shape[0] for part in forms.calibration_batches(three)] == [3] * 5


def test_quiet_hides_what_is_printed_and_logged(capsys):
    with forms.quiet():
        print("a bar")
        assert not logging.getLogger("hrnet_fast.test").isEnabledFor(logging.WARNING)
    assert logging.getLogger("hrnet_fast.test").isEnabledFor(logging.WARNING)
    assert capsys.readouterr().out == ""


def test_onnx_runtime_in_int8_is_near(int8_job, capfd):
    output = onnx_runtime.prepare(int8_job)()
    assert 1e-4 < relative_error(output, int8_job.reference()) < MODEL[torch.int8]
    assert capfd.readouterr().out == ""


def test_onnx_runtime_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr(onnx_runtime.importlib.util, "find_spec", lambda name: object())
    assert onnx_runtime.why_not(torch.float32) is None
    assert "bfloat16" in onnx_runtime.why_not(torch.bfloat16)


def test_compiling_needs_a_compiler(monkeypatch):
    from torch._inductor import cpp_builder

    def missing():
        raise RuntimeError("none found")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    assert "no C++ compiler" in compiled.why_not(torch.float32)


@contextlib.contextmanager
def some_file(job):
    yield "network.onnx"


class FakeOpenVINO(types.ModuleType):
    """What the contender uses of OpenVINO. The network that it runs doubles its input."""

    def __init__(self, capabilities=("FP32", "BF16")):
        super().__init__("openvino")
        self.calls = {}
        fake = self

        class Core:
            def get_property(self, device, name):
                return list(capabilities)

            def read_model(self, path):
                return types.SimpleNamespace(reshape=lambda shape: fake.calls.update(shape=shape))

            def compile_model(self, model, device, options):
                fake.calls.update(model=model, device=device, options=options)
                return types.SimpleNamespace(create_infer_request=Request)

        class Request:
            def set_input_tensor(self, tensor):
                self.array = tensor

            def infer(self):
                self.result = 2 * self.array

            def get_output_tensor(self, index):
                return types.SimpleNamespace(data=self.result)

        def tensor(array, shared_memory):
            assert shared_memory
            return array

        self.Core, self.Tensor = Core, tensor


def test_openvino_gets_its_best_options(job, monkeypatch):
    fake = FakeOpenVINO()
    monkeypatch.setitem(sys.modules, "openvino", fake)
    monkeypatch.setattr(openvino_runtime.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(forms, "onnx_file", some_file)
    assert openvino_runtime.why_not(torch.bfloat16) is None
    assert "float16" in openvino_runtime.why_not(torch.float16)
    assert openvino_runtime.prepare(job)().equal(2 * job.image)
    assert fake.calls["shape"] == [1, 3, 64, 96]
    assert fake.calls["device"] == "CPU"
    options = fake.calls["options"]
    assert options["INFERENCE_PRECISION_HINT"] == "f32"
    assert (options["PERFORMANCE_HINT"], options["INFERENCE_NUM_THREADS"]) == ("LATENCY", 1)


class FakeNNCF(types.ModuleType):
    """What the contender uses of NNCF, with its bars of progress."""

    def __init__(self):
        super().__init__("nncf")
        fake = self

        class Dataset(list):
            def get_length(self):
                return len(self)

        def quantize(model, images, **options):
            print("working")
            fake.images, fake.options = images, options
            return "quantized"

        self.Dataset, self.quantize = Dataset, quantize
        self.QuantizationPreset = types.SimpleNamespace(PERFORMANCE="performance")


@pytest.mark.parametrize(("capabilities", "precision"), [(["FP32", "INT8"], "f32"), (["FP32", "BF16", "INT8"], "bf16")])
def test_openvino_in_int8_is_quantized_by_nncf(int8_job, monkeypatch, capsys, capabilities, precision):
    fake, nncf = FakeOpenVINO(capabilities), FakeNNCF()
    monkeypatch.setitem(sys.modules, "openvino", fake)
    monkeypatch.setitem(sys.modules, "nncf", nncf)
    monkeypatch.setattr(openvino_runtime.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(forms, "onnx_file", some_file)
    assert openvino_runtime.why_not(torch.int8) is None
    assert openvino_runtime.prepare(int8_job)().equal(2 * int8_job.image)
    assert fake.calls["model"] == "quantized"
    assert fake.calls["options"]["INFERENCE_PRECISION_HINT"] == precision
    assert nncf.options == {"preset": "performance", "subset_size": 16}
    assert torch.cat([torch.from_numpy(image) for image in nncf.images]).equal(int8_job.calibration)
    assert capsys.readouterr().out == ""


class FakeONNXRuntime(types.ModuleType):
    """What the contender uses of ONNX Runtime. The network that it runs is the identity."""

    def __init__(self, shape):
        super().__init__("onnxruntime")
        fake = self

        class SessionOptions:
            def add_session_config_entry(self, key, value):
                fake.entries[key] = value

        class InferenceSession:
            def __init__(self, path, options, providers):
                fake.options, fake.providers = options, providers

            def get_inputs(self):
                return [types.SimpleNamespace(name="x", shape=shape)]

            get_outputs = get_inputs

            def io_binding(self):
                return types.SimpleNamespace(bind_input=fake.bind("x"), bind_output=fake.bind("y"))

            def run_with_iobinding(self, binding):
                ctypes.memmove(fake.bound["y"], fake.bound["x"], 4 * torch.Size(shape).numel())

        self.entries, self.bound = {}, {}
        self.SessionOptions, self.InferenceSession = SessionOptions, InferenceSession
        self.GraphOptimizationLevel = types.SimpleNamespace(ORT_ENABLE_ALL="all")

    def bind(self, key):
        return lambda name, device, index, dtype, shape, pointer: self.bound.update({key: pointer})


def test_onnx_runtime_gets_its_best_options(job, monkeypatch):
    fake = FakeONNXRuntime([1, 3, 64, 96])
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(forms, "onnx_file", some_file)
    assert onnx_runtime.prepare(job)().equal(job.image)
    assert fake.options.intra_op_num_threads == 1
    assert fake.options.graph_optimization_level == "all"
    assert fake.providers == ["CPUExecutionProvider"]
    assert fake.entries == {"session.force_spinning_stop": "1"}


def test_measures_and_lists_those_that_cannot_run(monkeypatch):
    def broken(job):
        raise RuntimeError("broken")

    monkeypatch.setattr(onnx_runtime, "why_not", lambda dtype: None)
    monkeypatch.setattr(onnx_runtime, "prepare", broken)
    monkeypatch.setattr(openvino_runtime, "why_not", lambda dtype: "not today")
    monkeypatch.setattr(hf, "optimize", lambda model, example, *, dtype=None: model.to(dtype), raising=False)
    case = engines.measure(TINY, 0.01, 1, [COMPILED], with_memory=False)
    assert [entry.name for entry in case.entries] == [name for name in peers.table() if name != COMPILED]
    for name in ("eager channels_last", *peers.ours()):
        assert case.entry(name).agrees
        assert case.entry(name).first_result_seconds > 0
        assert case.entry(name).seconds.median > 0
    assert "broken" in case.entry("ONNX Runtime").failure
    assert case.entry("OpenVINO").failure == "not today"
    best = engines_table.best(case, peers.ours())
    assert engines_table.lead(case) == best.speedup_over["eager channels_last"].median
    assert {"OpenVINO did not run: not today", "1,540,819 parameters"} <= set(report.notes(case))


def test_program(only_tiny, tmp_path, capsys):
    arguments = ["--budget", "0.01", "--threads", "1", "--results", str(tmp_path), "--no-compile"]
    threads = torch.get_num_threads()
    try:
        assert engines.main([*arguments, "--without", "ONNX Runtime", "OpenVINO"]) == 0
    finally:
        torch.set_num_threads(threads)
    (case,) = report.Report.load(tmp_path / f"engines-{TINY.name}.json").cases
    weights = 4 * case.params
    assert case.entry("eager channels_last").resident_peak_bytes > weights
    shown = capsys.readouterr().out
    assert all(words in shown for words in engines_table.LEADS[1].split())
    assert "process peak" in shown


def test_markdown_has_every_contender_and_every_reason():
    def entry(name, seconds, error=1e-6, agrees=True, failure=None):
        spreads = {other: report.Spread(2.0, 2.0, 2.0) for other in ("OpenVINO",)}
        timed = None if failure else report.Spread(seconds, seconds, seconds)
        return report.Entry(name, error, agrees, failure, timed, speedup_over=spreads)

    entries = [entry("OpenVINO", 0.1, 3.1e-2, False), entry("hrnet_fast", 0.05), entry("ONNX Runtime", 0, None, False, "no")]  # fmt: skip
    case = report.Case("engines-x", "a network, bfloat16", "bfloat16", 3e-2, entries)
    text = engines_table.markdown([{"engines-x": report.Report([case]), "other": report.Report([case])}])
    assert "| a network, bfloat16 | - | 100 ms † | 50.0 ms | - | 2.00x |" in text
    assert "OpenVINO (3.1e-02)" in text
    assert "ONNX Runtime did not run (bfloat16): no." in text
    assert "Errors" not in text
    assert "benchmarks.engines" in engines_table.markdown([])


def test_markdown_has_every_error_of_int8():
    def entry(name, error):
        same = report.Spread(1.0, 1.0, 1.0)
        return report.Entry(name, error, True, seconds=same, speedup_over={"OpenVINO": same})

    entries = [entry("OpenVINO", 4e-2), entry("hrnet_fast.optimize", 5e-2)]
    entries.append(report.Entry("ONNX Runtime", None, False, "no"))
    case = report.Case("engines-x", "a network, int8", "int8", 0.15, entries)
    text = engines_table.markdown([{"engines-x": report.Report([case])}])
    assert "Errors against float64, a network, int8: OpenVINO 4.0e-02, hrnet_fast.optimize 5.0e-02.\n" in text


def test_program_in_a_process_of_its_own(capsys):
    """What the memory is measured with, on one of the real cases."""
    assert engines.main(["--alone", "hrnet_fast", "--cases", "w18-classification-224x224-float32"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["contender"] == "hrnet_fast"
    assert told["resident_peak_bytes"] > 4 * 21_299_004


def test_wrong_arguments(capsys):
    for arguments in (["--cases", "nothing"], ["--threads", "0"], ["--without", "everything"]):
        with pytest.raises(SystemExit) as stop:
            engines.main(arguments)
        assert stop.value.code == 2
    assert engines.main(["--list", "--cases", "*pose*"]) == 0
    assert "w32-pose-256x192-bfloat16" in capsys.readouterr().out


def test_a_peer_within_its_slack_is_timed_but_does_not_agree():
    def off(by):
        return lambda: torch.full((3,), 1.0 + by)

    ones = torch.ones(3, dtype=torch.float64)
    trio = [Contender("near", off(0.015), slack=2.0), Contender("far", off(0.03), slack=2.0), Contender("ours", off(0.015))]  # fmt: skip
    near, far, ours = compare(Prepared(trio, ones, 0.01), budget=0.01)
    assert near.seconds and not near.agrees
    assert not far.seconds
    assert not ours.seconds
    case = report.Case("c", "a case", "float32", 0.01, report.entries([near, far, ours]))
    assert not case.agrees
    assert "near is off by more than 1e-02: timed all the same" in report.notes(case)
    assert "far is off by more than 1e-02: not timed" in report.notes(case)


def test_resident_peak_sees_memory_of_a_call_only():
    held = torch.ones(16 << 20, dtype=torch.uint8)
    small = memory.resident_peak(lambda: None)
    if small is None:
        pytest.fail("the system does not tell: /proc/self/clear_refs")
    large = memory.resident_peak(lambda: torch.ones(96 << 20, dtype=torch.uint8).sum())
    assert large - small > 90 << 20
    assert memory.resident_peak(lambda: None) < large - (80 << 20)
    assert memory.resident_bytes() > held.numel()
