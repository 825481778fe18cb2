"""The comparison with other inference engines: same weights for all, reasons of those that cannot run, the program."""

import contextlib
import dataclasses
import logging
import pickle
import sys
import types

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from benchmarks import cases, contenders, engines, engines_table
from benchmarks.peers import forms, onnx_runtime, openvino_runtime
from hrnet_fast.bench import contenders as shipped
from hrnet_fast.bench import images, memory, networks, report
from hrnet_fast.bench.contenders import COMPILED, OPTIMIZED, Problem
from hrnet_fast.bench.harness import Contender, compare
from hrnet_fast.bench.measure import measure
from hrnet_fast.bench.plain_forms import CommutedHead, commuted
from hrnet_fast.bench.record import Entry, Record, Report, Spread
from hrnet_fast.tolerances import MODEL, relative_error

TINY = cases.engine("w18_small_v1", "segmentation", (64, 96), "float32")
TINY_INT8 = cases.engine("w18_small_v1", "classification", (64, 96), "int8")


@pytest.fixture(scope="module")
def problem():
    return TINY.make("cpu")


@pytest.fixture(scope="module")
def int8_problem():
    return TINY_INT8.make("cpu")


@pytest.fixture
def only_tiny(monkeypatch):
    monkeypatch.setattr(cases, "cpu", lambda prefix="", dtypes=None: [TINY])
    monkeypatch.setattr(memory, "alone", lambda function, *arguments: function(*arguments))


def test_every_contender_says_whether_it_can_run():
    for name, form in contenders.TABLE.items():
        for dtype in (torch.float32, torch.int8):
            assert form.unsupported_reason(dtype) is None or isinstance(form.unsupported_reason(dtype), str), name
    assert contenders.ENGINES[-2:] == tuple(name for name in contenders.ENGINES if name in contenders.ours())
    assert [name for name in contenders.TABLE if name in contenders.ENGINES] == list(contenders.ENGINES)


def test_problems_in_int8_keep_their_numbers_and_have_other_images_to_calibrate_with(int8_problem):
    whole = cases.engine("w18_small_v1", "classification", (64, 96), "float32").make("cpu")
    assert int8_problem.image.equal(whole.image)
    assert all(v.equal(whole.plain.state_dict()[key]) for key, v in int8_problem.plain.state_dict().items())
    assert int8_problem.calibration.shape == (16, 3, 64, 96)
    assert int8_problem.calibration.dtype == torch.float32
    assert whole.calibration is None
    with pytest.raises(ValueError, match="calibration"):
        Problem(whole.plain, (whole.image,), torch.int8, networks.same_weights)


def test_variants_are_other_photographs_and_always_the_same():
    made, image = images.variants(4, (64, 96)), images.load(size=(64, 96))
    assert made.equal(images.variants(4, (64, 96)))
    assert made[:2].equal(images.variants(2, (64, 96)))
    everything = [*made, *image]
    assert all(relative_error(a, b) > 0.1 for i, a in enumerate(everything) for b in everything[:i])
    assert images.load().amin() - 0.1 <= made.amin() < made.amax() <= (1 - 0.406) / 0.225 + 1e-3  # pixels from 0 to 255


def test_the_registry_has_every_case_once_and_each_can_go_to_another_process():
    every = [*cases.cpu("", ("float32", "bfloat16", "float16")), *cases.cpu(cases.ENGINES)]
    assert len({case.name for case in every}) == len(every) == 119
    assert [len(cases.gpu(part)) for part in cases.GPU_PARTS] == [12, 12, 24, 32, 8, 12]
    assert len(cases.select(["*-int8"], cases.cpu(cases.ENGINES))) == len(cases.NETWORKS)
    assert all(name in contenders.TABLE or name == cases.PAPER for case in every for name in case.contenders)
    for case in (*every, *cases.gpu("head")):
        assert pickle.loads(pickle.dumps(case)).name == case.name


@pytest.mark.parametrize("name", ["order-c18-128x128-bfloat16", "unit-w18-stage3-bfloat16", "head-w18-128x128-float32",
                                  "backward-c18-128x128-bfloat16", "training-unit-w18-stage4-float32"])  # fmt: skip
def test_parts_agree_in_every_form(name):
    (case,) = cases.select([name], cases.cpu())
    record = measure(case, budget=0.01, without=[COMPILED], table=contenders.TABLE)
    assert [entry.name for entry in record.entries] == [form for form in case.contenders if form != COMPILED]
    assert record.agrees and not any(entry.failure for entry in record.entries)
    assert len(record.timed()) == len(record.entries)
    counted = {entry.name: entry.gflops for entry in record.entries}
    assert all(value is None for value in counted.values()) == ("backward" in name or "training" in name)
    if cases.PAPER in counted:  # the convolutions of three streams at the first one's resolution
        assert counted[cases.PAPER] > 4 * counted["hrnet_fast"]


def test_who_computes_in_int8():
    table = contenders.TABLE
    for name in ("eager channels_last", "hrnet_fast"):
        assert "int8" in table[name].unsupported_reason(torch.int8)
    assert "torchao" in table[COMPILED].unsupported_reason(torch.int8)
    assert table[OPTIMIZED].unsupported_reason(torch.int8) is None


def test_optimize_gets_the_images_for_calibration(int8_problem, monkeypatch):
    def optimize(model, example, *, dtype, calibration):
        assert (example.dtype, dtype) == (torch.float32, torch.int8)
        assert calibration is int8_problem.calibration
        return model

    monkeypatch.setattr(shipped, "optimize", optimize)
    with torch.inference_mode():
        assert relative_error(shipped.optimized(int8_problem)(), int8_problem.reference()) < MODEL[torch.float32]


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_commuted_head_is_the_same_head(align_corners):
    plain = hf.create_model("hrnet_w18_small_v1", fast=False, align_corners=align_corners).eval().double()
    torch.nn.init.normal_(plain.last_layer[3].weight)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    moved = commuted(plain)
    assert isinstance(moved.last_layer, CommutedHead)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in moved.modules())
    with torch.inference_mode():
        assert relative_error(moved(image), plain(image)) < MODEL[torch.float64]


def test_networks_without_that_head_are_folded_only():
    plain = hf.create_model("hrnet_w18_small_v1", task="classification", fast=False).eval().double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(commuted(plain)(image), plain(image)) < MODEL[torch.float64]


def test_onnx_files_get_the_commuted_network_and_go_away(problem, monkeypatch):
    def export(network, arguments, path, *, opset_version, dynamo):
        assert isinstance(network.last_layer, CommutedHead)
        assert arguments[0] is problem.image
        assert opset_version >= 17
        with open(path, "wb") as file:
            file.write(b"a network")

    monkeypatch.setattr(torch.onnx, "export", export)
    with forms.onnx_file(problem) as path:
        assert path.read_bytes() == b"a network"
    assert not path.exists()


@pytest.mark.parametrize("module", [onnx_runtime, openvino_runtime])
def test_what_is_not_installed_says_so(module, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in module.unsupported_reason(torch.float32)


def test_openvino_in_int8_needs_nncf(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", FakeOpenVINO())
    monkeypatch.setattr(openvino_runtime.importlib.util, "find_spec", lambda name: None if name == "nncf" else object())
    assert openvino_runtime.unsupported_reason(torch.int8) == "not installed: pip install nncf"
    assert openvino_runtime.unsupported_reason(torch.float32) is None
    monkeypatch.setattr(openvino_runtime.importlib.util, "find_spec", lambda name: object())
    assert "does not compute in int8" in openvino_runtime.unsupported_reason(torch.int8)


def test_calibration_comes_in_pieces_of_the_batch(int8_problem):
    assert [part.shape[0] for part in forms.calibration_batches(int8_problem)] == [1] * 16
    three = dataclasses.replace(int8_problem, batch=3)
    assert [part.shape[0] for part in forms.calibration_batches(three)] == [3] * 5


def test_quiet_hides_what_is_printed_and_logged(capsys):
    with forms.quiet():
        print("a bar")
        assert not logging.getLogger("hrnet_fast.test").isEnabledFor(logging.WARNING)
    assert logging.getLogger("hrnet_fast.test").isEnabledFor(logging.WARNING)
    assert capsys.readouterr().out == ""


def test_onnx_runtime_in_int8_is_near(int8_problem, capfd):
    output = onnx_runtime.prepare(int8_problem)()
    assert 1e-4 < relative_error(output, int8_problem.reference()) < MODEL[torch.int8]
    assert capfd.readouterr().out == ""


def test_onnx_runtime_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr(onnx_runtime.importlib.util, "find_spec", lambda name: object())
    assert onnx_runtime.unsupported_reason(torch.float32) is None
    assert "bfloat16" in onnx_runtime.unsupported_reason(torch.bfloat16)


def test_compiling_needs_a_compiler(monkeypatch):
    from torch._inductor import cpp_builder

    def missing():
        raise RuntimeError("none found")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    assert "no C++ compiler" in shipped.no_compiler(torch.float32)


@contextlib.contextmanager
def some_file(problem):
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


def test_openvino_gets_its_best_options(problem, monkeypatch):
    fake = FakeOpenVINO()
    monkeypatch.setitem(sys.modules, "openvino", fake)
    monkeypatch.setattr(openvino_runtime.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(forms, "onnx_file", some_file)
    assert openvino_runtime.unsupported_reason(torch.bfloat16) is None
    assert "float16" in openvino_runtime.unsupported_reason(torch.float16)
    assert openvino_runtime.prepare(problem)().equal(2 * problem.image)
    assert fake.calls["shape"] == [1, 3, 64, 96]
    assert fake.calls["device"] == "CPU"
    options = fake.calls["options"]
    assert options["INFERENCE_PRECISION_HINT"] == "f32"
    threads = torch.get_num_threads()
    assert (options["PERFORMANCE_HINT"], options["INFERENCE_NUM_THREADS"]) == ("LATENCY", threads)


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
def test_openvino_in_int8_is_quantized_by_nncf(int8_problem, monkeypatch, capsys, capabilities, precision):
    fake, nncf = FakeOpenVINO(capabilities), FakeNNCF()
    monkeypatch.setitem(sys.modules, "openvino", fake)
    monkeypatch.setitem(sys.modules, "nncf", nncf)
    monkeypatch.setattr(openvino_runtime.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(forms, "onnx_file", some_file)
    assert openvino_runtime.unsupported_reason(torch.int8) is None
    assert openvino_runtime.prepare(int8_problem)().equal(2 * int8_problem.image)
    assert fake.calls["model"] == "quantized"
    assert fake.calls["options"]["INFERENCE_PRECISION_HINT"] == precision
    assert nncf.options == {"preset": "performance", "subset_size": 16}
    assert torch.cat([torch.from_numpy(image) for image in nncf.images]).equal(int8_problem.calibration)
    assert capsys.readouterr().out == ""


def test_onnx_runtime_gets_its_best_options(problem, monkeypatch):
    import onnxruntime

    made = []

    class Recorded(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers):
            made.append((options, providers))
            super().__init__(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    assert relative_error(onnx_runtime.prepare(problem)(), problem.reference()) < MODEL[torch.float32]
    ((options, providers),) = made
    assert options.intra_op_num_threads == torch.get_num_threads()
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert providers == ["CPUExecutionProvider"]
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_measures_and_lists_those_that_cannot_run(monkeypatch):
    def broken(problem):
        raise RuntimeError("broken")

    able = dataclasses.replace(contenders.TABLE["ONNX Runtime"], prepare=broken, unsupported_reason=shipped.always)
    unable = dataclasses.replace(contenders.TABLE["OpenVINO"], unsupported_reason=lambda dtype: "not today")
    table = contenders.TABLE | {"ONNX Runtime": able, "OpenVINO": unable}
    monkeypatch.setattr(shipped, "optimize", lambda model, example, *, dtype=None: model.to(dtype))
    case = measure(TINY, budget=0.01, without=[COMPILED], table=table, with_memory=False)
    assert [entry.name for entry in case.entries] == [name for name in contenders.ENGINES if name != COMPILED]
    for name in ("eager channels_last", "hrnet_fast", OPTIMIZED):
        assert case.entry(name).agrees
        assert case.entry(name).first_result_seconds > 0
        assert case.entry(name).seconds.median > 0
    assert "broken" in case.entry("ONNX Runtime").failure
    assert case.entry("OpenVINO").failure == "not today"
    best = case.best(*contenders.ours())
    assert engines_table.leads(case) == [best.speedup_over["eager channels_last"].median] * 2
    assert {"OpenVINO did not run: not today", "1,540,819 parameters"} <= set(report.notes(case))


def test_program(only_tiny, tmp_path, capsys):
    arguments = ["--budget", "0.01", "--threads", "1", "--results", str(tmp_path), "--no-compile"]
    threads = torch.get_num_threads()
    try:
        assert engines.main([*arguments, "--without", "ONNX Runtime", "OpenVINO"]) == 0
    finally:
        torch.set_num_threads(threads)
    (case,) = Report.load(tmp_path / f"{TINY.name}.json").cases
    weights = 4 * case.params
    assert case.entry("eager channels_last").resident_peak_bytes > weights
    shown = capsys.readouterr().out
    assert all(words in shown for words in engines_table.LEADS[1].split())
    assert "process peak" in shown


def test_markdown_has_every_contender_and_every_reason():
    def entry(name, seconds, error=1e-6, agrees=True, failure=None):
        spreads = {other: Spread(2.0, 2.0, 2.0) for other in ("OpenVINO",)}
        timed = None if failure else Spread(seconds, seconds, seconds)
        return Entry(name, error, agrees, failure, timed, speedup_over=spreads)

    entries = [
        entry("OpenVINO", 0.1, 3.1e-2, False),
        entry("hrnet_fast", 0.05),
        entry("ONNX Runtime", 0, None, False, "no"),
    ]
    case = Record("engines-x", "a network, bfloat16", "bfloat16", 3e-2, entries)
    text = engines_table.markdown([{"engines-x": Report([case]), "other": Report([case])}])
    assert "| a network, bfloat16 | - | 100 ms † | 50.0 ms | - | 2.00x |" in text
    assert "OpenVINO (3.1e-02)" in text
    assert "ONNX Runtime did not run (bfloat16): no." in text
    assert "Errors" not in text
    assert "benchmarks.engines" in engines_table.markdown([])


def test_markdown_has_every_error_of_int8():
    def entry(name, error):
        same = Spread(1.0, 1.0, 1.0)
        return Entry(name, error, True, seconds=same, speedup_over={"OpenVINO": same})

    entries = [entry("OpenVINO", 4e-2), entry("hrnet_fast.optimize", 5e-2)]
    entries.append(Entry("ONNX Runtime", None, False, "no"))
    case = Record("engines-x", "a network, int8", "int8", 0.15, entries)
    text = engines_table.markdown([{"engines-x": Report([case])}])
    assert "Errors against float64, a network, int8: OpenVINO 4.0e-02, hrnet_fast.optimize 5.0e-02.\n" in text


def test_memory_is_that_of_a_process_of_its_own():
    held = torch.ones(512 << 20, dtype=torch.uint8)  # here, not there
    peak = memory.alone(TINY.alone, TINY, "hrnet_fast", 1)
    assert peak > 4 * 1_540_819
    assert memory.resident_bytes() > held.numel()
    assert memory.alone(TINY.alone, TINY, "nobody", 1) is None


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
    trio = [
        Contender("near", off(0.015), slack=2.0),
        Contender("far", off(0.03), slack=2.0),
        Contender("ours", off(0.015)),
    ]
    near, far, ours = compare(trio, ones, 0.01, budget=0.01)
    assert near.seconds and not near.agrees
    assert not far.seconds
    assert not ours.seconds
    case = Record("c", "a case", "float32", 0.01, [near, far, ours])
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
