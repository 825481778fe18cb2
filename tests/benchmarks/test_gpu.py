"""The GPU benchmark's program on the CPU: every part builds its contenders, they agree, and time limits hold."""

import json
import time
import types
from fnmatch import fnmatchcase

import pytest
import torch

from benchmarks import gpu, gpu_cases, gpu_goals, gpu_measure, gpu_table, readme_table
from hrnet_fast.tolerances import MODEL, OPERATOR


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(gpu_cases.SIZES, "512x1024", (16, 24))
    monkeypatch.setattr(gpu_measure, "CACHE_BYTES", 1 << 16)
    monkeypatch.setattr(gpu_measure, "ROUNDS", 2)


def run(part, folder, *more):
    cases = "w18-512x1024-bfloat16"
    assert gpu.main(["--part", part, "--results", str(folder), "--device", "cpu", "--cases", cases, *more]) == 0
    return json.loads((folder / f"{part}.json").read_text())


@pytest.mark.parametrize("part", gpu_cases.PARTS)
def test_every_part_builds_its_contenders(part, tmp_path, small, capsys):
    report = run(part, tmp_path)
    assert len(report["cases"]) == {"head": 2, "conv": 4}.get(part, 1)
    for case in report["cases"]:
        assert set(case["contenders"]) == {gpu_cases.EAGER, gpu_cases.FAST}
        for entry in case["contenders"].values():
            assert entry["failure"] is None
            assert len(entry["seconds"]) == gpu_measure.ROUNDS
        tolerance = MODEL if part in ("conv", "model") else OPERATOR
        assert case["contenders"][gpu_cases.FAST]["error"] < tolerance[torch.bfloat16]
        assert case["useful_bytes"] > 0
    assert "hrnet_fast" in capsys.readouterr().out
    assert {"driver", "clocks", "copy_bytes_per_second", "bfloat16_flops_per_second"} <= {
        *report, *(report["machine"]["gpu"] or {"driver": None})}  # fmt: skip


def test_what_is_there_is_not_measured_again(tmp_path, small, monkeypatch, capsys):
    first = run("op", tmp_path)
    with monkeypatch.context() as no_second:
        no_second.setattr(gpu_measure, "measure", lambda *arguments: pytest.fail("measured again"))
        assert run("op", tmp_path) == first
    stored = tmp_path / "op.json"
    text = stored.read_text()
    for change in (
        lambda report: report["machine"].update(commit="another"),
        lambda report: report["cases"][0]["contenders"]["eager folded"].update(failure="not timed: it was late"),
        lambda report: report.pop("machine"),
    ):
        report = json.loads(text)
        change(report)
        stored.write_text(json.dumps(report))
        assert run("op", tmp_path)["cases"] != first["cases"]
    stored.write_text("{")  # cut short while it was written
    assert len(run("op", tmp_path)["cases"]) == 1


def test_what_was_cut_short_waits_behind_what_nobody_has_measured(tmp_path, monkeypatch, capsys):
    """Each run has time for two cases, and never enough for max-autotune of those of w48."""
    tried, clock = [], types.SimpleNamespace(left=0)
    every = [case for case in gpu_cases.cases("unit") if case.size == "512x1024" and case.dtype == "float16"]

    def measure(case, device, clock):
        tried.append(case.width)
        clock.left -= 100
        cut = case.width == "w48" and "not timed: the part's time is up"
        entry = {"seconds": [1e-3], "error": 1e-4, "failure": None}
        return {"name": case.name, "useful_bytes": 1, "contenders": {
            "eager folded": entry, "hrnet_fast": entry,
            "torch.compile max-autotune": {**entry, "seconds": [], "failure": cut} if cut else entry}}  # fmt: skip

    monkeypatch.setattr(gpu_cases, "cases", lambda part: sorted(every, key=lambda case: case.width, reverse=True))
    monkeypatch.setattr(gpu, "goals_first", list)
    monkeypatch.setattr(gpu_measure, "measure", measure)
    monkeypatch.setattr(gpu_measure, "Clock", lambda limit: clock)
    for expected in (["w48", "w32"], ["w18", "w48"], ["w48"]):
        clock.left = 200
        assert gpu.main(["--part", "unit", "--results", str(tmp_path), "--device", "cpu"]) == 0
        assert tried == expected
        tried.clear()


def test_cases_that_were_cut_short_take_turns():
    def record(name, *failures):
        return {"name": name, "contenders": {str(k): {"failure": failure} for k, failure in enumerate(failures)}}

    cases = gpu_cases.cases("conv")[:4]
    a, b, c, d = (case.name for case in cases)
    late = "not timed: the part's time is up"
    done = {b: record(b, late), d: record(d, None, "its output is off, therefore not timed"), a: record(a, None, late)}
    assert [case.name for case in gpu.in_turn(cases, done)] == [c, b, a]
    done[b] = done.pop(b)  # tried again, in vain
    assert [case.name for case in gpu.in_turn(cases, done)] == [c, a, b]


def test_a_shorter_second_try_does_not_replace_the_first(tmp_path, small, monkeypatch, capsys):
    def measured(name, cut):
        entry = {"seconds": [1e-3], "error": 1e-4, "failure": None}
        late = {**entry, "seconds": [], "failure": "not timed: the part's time is up"}
        return {"name": name, "useful_bytes": 1,
                "contenders": {str(k): late if k < cut else entry for k in range(3)}}  # fmt: skip

    for cut, kept in ((1, 1), (2, 1), (0, 0)):
        monkeypatch.setattr(gpu_measure, "measure", lambda case, device, clock, cut=cut: measured(case.name, cut))
        assert gpu.cut_short(run("op", tmp_path)["cases"][0]) == kept


def test_a_part_ends_in_time(tmp_path, small, monkeypatch, capsys):
    assert gpu.main(["--part", "op", "--results", str(tmp_path), "--device", "cpu", "--limit", "1"]) == 0
    assert not (tmp_path / "op.json").exists()
    assert "the time is up" in capsys.readouterr().out

    def slow(call, sets, device):
        time.sleep(30)

    monkeypatch.setattr(gpu_measure, "replayed", slow)
    case = gpu_cases.GpuCase("op", "w18", "512x1024", "bfloat16")
    start = time.monotonic()
    record = gpu_measure.measure(case, "cpu", gpu_measure.Clock(1.0))
    assert time.monotonic() - start < 10
    assert record["contenders"]["hrnet_fast"]["failure"] == "not timed: the part's time is up"
    assert gpu.is_open(record)


def test_one_bad_contender_leaves_the_others(small, monkeypatch):
    class Off(torch.nn.Module):
        def forward(self, streams):
            return streams[0] * 0

    class Broken(torch.nn.Module):
        def forward(self, streams):
            raise RuntimeError("no kernel\nmore")

    case = gpu_cases.GpuCase("op", "w18", "512x1024", "float16")
    for module, failure in ((Off(), "its output is off"), (Broken(), "RuntimeError: no kernel")):
        forms = gpu_cases.Forms(gpu_cases.OutputZero(18), module, {}, True)
        monkeypatch.setattr(gpu_cases.GpuCase, "forms", lambda self, forms=forms: forms)
        found = gpu_measure.measure(case, "cpu", gpu_measure.Clock(60))["contenders"]
        assert failure in found["hrnet_fast"]["failure"] and not found["hrnet_fast"]["seconds"]
        assert len(found["eager folded"]["seconds"]) == gpu_measure.ROUNDS


def test_goals_are_those_of_cases_and_come_first():
    for goal in gpu_goals.GOALS:
        assert any(fnmatchcase(case.name, goal.pattern) for part in gpu_cases.PARTS for case in gpu_cases.cases(part))
    first = gpu_goals.goals_first(gpu_cases.cases("unit"))
    assert [case.name for case in first[:4]] == [
        f"unit-{w}-512x1024-{d}" for w in ("w18", "w48") for d in ("float16", "bfloat16")
    ]
    names = [case.name for part in gpu_cases.PARTS for case in gpu_cases.cases(part)]
    assert len(set(names)) == len(names)


def test_goals_are_stored_as_reached_and_missed():
    def entry(*seconds):
        return {"seconds": list(seconds), "error": 1e-4, "failure": None}

    record = {
        "name": "op-w48-1024x2048-float16", "useful_bytes": 36_200_000, "contenders": {
            "eager folded": entry(70e-6, 80e-6, 60e-6), "hrnet_fast": entry(20e-6, 20e-6, 15e-6),
            "torch.compile default": entry(40e-6, 40e-6, 40e-6), "torch.compile max-autotune": entry(22e-6, 22e-6, 22e-6),
        },
    }  # fmt: skip
    found = {o["over"]: o for o in gpu_goals.outcomes(record, 3.0e12)}
    assert found["copy bandwidth"]["measured"] == pytest.approx(36.2e6 / 20e-6 / 3e12)
    assert not found["copy bandwidth"]["reached"]
    assert found["torch.compile"]["measured"] == pytest.approx(1.1)  # the faster of its modes
    assert not found["torch.compile"]["reached"]
    assert found["eager folded"]["measured"] == pytest.approx(4.0)
    assert found["eager folded"]["reached"]
    record["contenders"]["hrnet_fast"]["seconds"] = []
    found = gpu_goals.outcomes(record, 3.0e12)
    assert [o["reached"] for o in found] == [None] * 3
    assert ["not measured" in gpu.verdict(outcome) for outcome in found] == [True] * 3


def stored_report(folder, part, names, seconds, **more):
    """A file of made-up results; ``seconds`` of the contenders."""
    about = {"gpu": {"name": "NVIDIA H100", "driver": "580.1", "cuda": "13.0"}, "torch": "2.14.1", "commit": "abc"}
    contenders = {name: {"seconds": [s] * 3, "error": 1e-4, "failure": None} for name, s in seconds.items()}
    records = [{"name": name, "part": part, "useful_bytes": 36_200_000, "copy_bytes_per_second": 3.0e12,
                "contenders": contenders} for name in names]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    report = {"machine": about, "clocks": "clocks.sm\n1980 MHz", "copy_bytes_per_second": 3.0e12,
              "bfloat16_flops_per_second": 7.5e14, "cases": records, **more}  # fmt: skip
    (folder / f"{part}.json").write_text(json.dumps(report))


def test_the_readme_says_not_yet_measured_where_nothing_is(tmp_path):
    nothing = "GPU: not yet measured.\n"
    assert gpu_table.block(tmp_path / "none") == nothing
    stored_report(tmp_path, "op", ["op-w48-1024x2048-float16"], {"eager folded": 80e-6})
    assert gpu_table.block(tmp_path) == nothing  # ours was not timed
    (tmp_path / "op.json").write_text('{"cases": []}')
    assert gpu_table.block(tmp_path) == nothing


def test_the_readme_table_of_made_up_results(tmp_path):
    seconds = {"eager folded": 80e-6, "hrnet_fast": 20e-6, "torch.compile default": 50e-6,
               "torch.compile max-autotune": 30e-6}  # fmt: skip
    stored_report(tmp_path, "op", ["op-w18-512x1024-bfloat16", "op-w48-1024x2048-float16"], seconds)
    stored_report(tmp_path, "model", ["model-w48-512x1024-float16"], {"eager folded": 8e-3, "hrnet_fast": 2e-3})
    (tmp_path / "memory.json").write_text('{"forms": 3}')  # of another kind
    lines = gpu_table.block(tmp_path).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2 : lines.index("")]] == [
        "HRNet segmentation, w48, 512x1024, float16",
        "exchange, stage 4 output 0, w48, 1024x2048, float16",
        "exchange, stage 4 output 0, w18, 512x1024, bfloat16",
    ]
    row = next(line for line in lines if "output 0, w48" in line)
    assert row.endswith("| 80.0 us | 30.0 us | 20.0 us | 4.00x | 1.50x | 60% |")
    assert next(line for line in lines if "segmentation, w48" in line).endswith(
        "| 8.00 ms | - | 2.00 ms | 4.00x | - | - |"
    )
    text = "\n".join(lines)
    for said in ("NVIDIA H100", "580.1", "torch 2.14.1", "commit abc", "3.00 TB/s", "750 TFLOP/s", "1980 MHz"):
        assert said in text, said
    assert "not yet measured" not in text


def test_the_readme_table_is_inserted_and_checked(tmp_path):
    folder = tmp_path / "benchmarks" / "results" / "gpu"
    begin, end = readme_table.GPU_MARKERS
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{readme_table.BEGIN}\n{readme_table.END}\nb\n{begin}\nstale\n{end}\nc\n")
    assert readme_table.main([], root=tmp_path) == 0
    assert f"b\n{begin}\nGPU: not yet measured.\n{end}\nc\n" in readme.read_text()
    assert readme_table.main(["--check"], root=tmp_path) == 0
    stored_report(folder, "op", ["op-w48-1024x2048-float16"], {"eager folded": 80e-6, "hrnet_fast": 20e-6})
    assert readme_table.main(["--check"], root=tmp_path) == 1
    assert readme_table.main([], root=tmp_path) == 0
    assert "4.00x" in readme.read_text() and "stale" not in readme.read_text()


def test_every_part_has_a_process_of_its_own(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(gpu, "_run", lambda command, limit: commands.append(command) or len(commands) == 2)
    given = ["--results", str(tmp_path), "--device", "cpu", "--limit", "7", "--cases", "w18-512x1024"]
    assert gpu.main(given) == 1  # the worst of all
    assert [command[-1] for command in commands] == [*gpu.STEPS, *gpu_cases.PARTS]
    for command in commands:
        assert command[command.index("--limit") + 1] == "7.0"
        assert command[command.index("--cases") + 1] == "w18-512x1024"
    assert gpu.LIMIT + gpu.SLACK <= 9 * 60


@pytest.mark.parametrize("reason", [None, "its kernels cannot be loaded on this GPU"])
def test_the_build_compiles_only_what_does_not_serve(tmp_path, monkeypatch, capsys, reason):
    environments = []
    monkeypatch.setattr(gpu, "_run", lambda command, limit, environment: environments.append(environment) or 0)
    monkeypatch.setattr(gpu.cuda, "why_not", lambda call: reason)
    monkeypatch.setattr(gpu.library, "extension_error", None)
    monkeypatch.delenv("HRNET_FAST_NO_EXT", raising=False)
    assert gpu.main(["--part", "build", "--results", str(tmp_path), "--device", "cpu"]) == 0
    assert environments[0].get("HRNET_FAST_NO_EXT") == ("1" if reason is None else None)
    assert ("compiling: its kernels" in capsys.readouterr().out) is (reason is not None)


def test_a_step_that_takes_too_long_is_cut_short(capsys):
    assert gpu._run(["sleep", "20"], 0.2) == 1
    assert "cut short" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_so_without_a_gpu(capsys):
    assert gpu.main(["--part", "op"]) == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err
