"""The GPU benchmark's program on the CPU: every part builds its contenders, they agree, and time limits hold."""

import json
import time
import types
from fnmatch import fnmatchcase

import pytest
import torch

from benchmarks import cases as registry
from benchmarks import goals, gpu, gpu_table, gpu_timing, readme_table
from hrnet_fast.bench import contenders
from hrnet_fast.bench.contenders import FAST, FOLDED
from hrnet_fast.bench.record import Entry, Record, Report, finish
from hrnet_fast.tolerances import MODEL, OPERATOR


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(registry.GPU_SIZES, "512x1024", (16, 24))
    monkeypatch.setattr(gpu_timing, "CACHE_BYTES", 1 << 16)
    monkeypatch.setattr(gpu_timing, "ROUNDS", 2)


def run(part, folder, *more):
    cases = "w18-512x1024-bfloat16"
    assert gpu.main(["--part", part, "--results", str(folder), "--device", "cpu", "--cases", cases, *more]) == 0
    return json.loads((folder / f"{part}.json").read_text())


@pytest.mark.parametrize("part", registry.GPU_PARTS)
def test_every_part_builds_its_contenders(part, tmp_path, small, capsys):
    report = run(part, tmp_path)
    assert len(report["cases"]) == {"head": 2, "conv": 4}.get(part, 1)
    for case in report["cases"]:
        assert [entry["name"] for entry in case["entries"]] == [FOLDED, FAST]
        assert all(entry["failure"] is None and entry["rounds"] == 2 for entry in case["entries"])
        tolerance = MODEL if part in ("conv", "model") else OPERATOR
        assert case["entries"][1]["error"] < tolerance[torch.bfloat16] and case["entries"][1]["agrees"]
        assert case["useful_bytes"] > 0
    assert "hrnet_fast" in capsys.readouterr().out
    assert {"driver", "clocks", "copy_bytes_per_second", "bfloat16_flops_per_second"} <= {
        *report["machine"],
        *(report["machine"]["gpu"] or {"driver": None}),
    }


def test_every_contender_is_timed_with_its_own_module(small, monkeypatch):
    """Also those that were prepared before the last one."""
    (case,) = (case for case in registry.gpu("op") if case.name == "op-w18-512x1024-bfloat16")
    called = []

    def prepare(name):
        def counting(problem):
            module = problem.fast(problem.plain).to(problem.dtype)
            return contenders.Bound(lambda *x: (called.append(name), module(*x))[1], problem.at())

        return contenders.Form(counting, contenders.always, ours=True)

    monkeypatch.setattr(gpu_timing.contenders, "TABLE", {name: prepare(name) for name in (FOLDED, FAST)})
    gpu_timing.measure(case, "cpu", gpu_timing.Clock(60))
    assert called.count(FOLDED) == called.count(FAST) > 2


def test_what_is_there_is_not_measured_again(tmp_path, small, monkeypatch, capsys):
    first = run("op", tmp_path)
    with monkeypatch.context() as no_second:
        no_second.setattr(gpu_timing, "measure", lambda *arguments: pytest.fail("measured again"))
        assert run("op", tmp_path) == first
    stored = tmp_path / "op.json"
    text = stored.read_text()
    for change in (
        lambda report: report["machine"].update(commit="another"),
        lambda report: report["cases"][0]["entries"][0].update(failure="OutOfTime: it was late"),
        lambda report: report.pop("machine"),
    ):
        report = json.loads(text)
        change(report)
        stored.write_text(json.dumps(report))
        assert run("op", tmp_path)["cases"] != first["cases"]
    stored.write_text("{")  # cut short while it was written
    assert len(run("op", tmp_path)["cases"]) == 1


LATE = "OutOfTime: the part's time is up"


def late(name: str, *failures: str | None) -> Record:
    """A record with a contender for each failure; those without one were timed."""
    entries = [
        Entry(str(k), 1e-4, True, failure, samples=[] if failure else [1e-3]) for k, failure in enumerate(failures)
    ]
    return Record(name, "", "float16", 1e-3, finish(entries), useful_bytes=1)


def test_what_was_cut_short_waits_behind_what_nobody_has_measured(tmp_path, monkeypatch, capsys):
    """Each run has time for two cases, and never enough for max-autotune of those of w48."""
    tried, clock = [], types.SimpleNamespace(left=0)
    every = [case for case in registry.gpu("unit") if "-512x1024-float16" in case.name]

    def measure(case, device, clock):
        tried.append(case.name.split("-")[1])
        clock.left -= 100
        return late(case.name, None, LATE if "w48" in case.name else None)

    monkeypatch.setattr(registry, "gpu", lambda part: sorted(every, key=lambda case: case.name, reverse=True))
    monkeypatch.setattr(gpu, "goals_first", list)
    monkeypatch.setattr(gpu_timing, "measure", measure)
    monkeypatch.setattr(gpu_timing, "Clock", lambda limit: clock)
    for expected in (["w48", "w32"], ["w18", "w48"], ["w48"]):
        clock.left = 200
        assert gpu.main(["--part", "unit", "--results", str(tmp_path), "--device", "cpu"]) == 0
        assert tried == expected
        tried.clear()


def test_cases_that_were_cut_short_take_turns():
    cases = registry.gpu("conv")[:4]
    a, b, c, d = (case.name for case in cases)
    done = {b: late(b, LATE), d: late(d, None, "RuntimeError: no kernel"), a: late(a, None, LATE)}
    assert [case.name for case in gpu.in_turn(cases, done)] == [c, b, a]
    done[b] = done.pop(b)  # tried again, in vain
    assert [case.name for case in gpu.in_turn(cases, done)] == [c, a, b]


def test_a_shorter_second_try_does_not_replace_the_first(tmp_path, small, monkeypatch, capsys):
    for cut, kept in ((1, 1), (2, 1), (0, 0)):
        failures = [LATE if k < cut else None for k in range(3)]
        monkeypatch.setattr(
            gpu_timing, "measure", lambda case, device, clock, failures=failures: late(case.name, *failures)
        )
        run("op", tmp_path)
        assert gpu_timing.cut_short(Report.load(tmp_path / "op.json").cases[0]) == kept


def test_a_part_ends_in_time(tmp_path, small, monkeypatch, capsys):
    assert gpu.main(["--part", "op", "--results", str(tmp_path), "--device", "cpu", "--limit", "1"]) == 0
    assert not (tmp_path / "op.json").exists()
    assert "the time is up" in capsys.readouterr().out

    def slow(call, sets, device):
        time.sleep(30)

    monkeypatch.setattr(gpu_timing, "replayed", slow)
    (case,) = (case for case in registry.gpu("op") if case.name == "op-w18-512x1024-bfloat16")
    start = time.monotonic()
    record = gpu_timing.measure(case, "cpu", gpu_timing.Clock(1.0))
    assert time.monotonic() - start < 10
    assert record.entry(FAST).failure == LATE
    assert gpu_timing.cut_short(record)
    with pytest.raises(gpu_timing.OutOfTime), gpu_timing.Clock(20).bounded(needs=30):
        pytest.fail("it was begun")


def test_one_bad_contender_leaves_the_others(small, monkeypatch):
    def broken(*streams):
        raise RuntimeError("no kernel\nmore")

    (case,) = (case for case in registry.gpu("op") if case.name == "op-w18-512x1024-float16")
    for module, failure in ((lambda streams: streams[0] * 0, None), (broken, "RuntimeError: no kernel")):
        form = contenders.Form(lambda p, m=module: contenders.Bound(m, p.at()), contenders.always, ours=True)
        monkeypatch.setattr(gpu_timing.contenders, "TABLE", {**gpu_timing.contenders.TABLE, FAST: form})
        record = gpu_timing.measure(case, "cpu", gpu_timing.Clock(60))
        assert record.entry(FAST).failure == failure and not record.entry(FAST).seconds
        assert not record.entry(FAST).agrees
        assert record.entry(FOLDED).rounds == gpu_timing.ROUNDS


def test_goals_are_those_of_cases_and_come_first():
    names = [case.name for part in registry.GPU_PARTS for case in registry.gpu(part)]
    assert all(any(fnmatchcase(name, goal.pattern) for name in names) for goal in goals.GPU_GOALS)
    first = gpu.goals_first(registry.gpu("unit"))
    assert [case.name for case in first[:4]] == [
        f"unit-{w}-512x1024-{d}" for w in ("w18", "w48") for d in ("float16", "bfloat16")
    ]
    assert len(set(names)) == len(names)


def measured(name: str, **samples: list[float]) -> Record:
    """A record of made-up times; the names of contenders with _ in place of other characters."""
    names = {
        "eager": FOLDED,
        "fast": FAST,
        "default": "torch.compile default",
        "autotune": "torch.compile max-autotune",
    }
    entries = [Entry(names[key], 1e-4, True, samples=list(values)) for key, values in samples.items()]
    return Record(name, "", "float16", 1e-3, finish(entries), useful_bytes=36_200_000)


def test_goals_are_stored_as_reached_and_missed():
    record = measured(
        "op-w48-1024x2048-float16",
        eager=[70e-6, 80e-6, 60e-6],
        fast=[20e-6, 20e-6, 15e-6],
        default=[40e-6] * 3,
        autotune=[22e-6] * 3,
    )
    found = {o["over"]: o for o in goals.outcomes(record, goals.GPU_GOALS, 3.0e12)}
    assert found["copy bandwidth"]["measured"] == pytest.approx(36.2e6 / 20e-6 / 3e12)
    assert not found["copy bandwidth"]["reached"]
    assert found["torch.compile"]["measured"] == pytest.approx(1.1)  # the faster of its modes
    assert not found["torch.compile"]["reached"]
    assert found[FOLDED]["measured"] == pytest.approx(4.0)
    assert found[FOLDED]["reached"]
    record = measured(record.name, eager=[70e-6], fast=[], default=[40e-6])
    found = goals.outcomes(record, goals.GPU_GOALS, 3.0e12)
    assert [o["reached"] for o in found] == [None] * 3
    assert ["not measured" in str(goals.Outcome(**outcome)) for outcome in found] == [True] * 3


def stored_report(folder, part, names, **more):
    """A file of made-up results."""
    about = {
        "gpu": {"name": "NVIDIA H100", "driver": "580.1", "cuda": "13.0"},
        "torch": "2.14.1",
        "commit": "abc",
        "clocks": "clocks.sm\n1980 MHz",
        "copy_bytes_per_second": 3.0e12,
        "bfloat16_flops_per_second": 7.5e14,
    }
    Report([measured(name, **{key: [value] * 3 for key, value in more.items()}) for name in names], about).save(
        folder / f"{part}.json"
    )


def test_the_readme_says_not_yet_measured_where_nothing_is(tmp_path):
    nothing = "GPU: not yet measured.\n"
    assert gpu_table.block(tmp_path / "none") == nothing
    stored_report(tmp_path, "op", ["op-w48-1024x2048-float16"], eager=80e-6)
    assert gpu_table.block(tmp_path) == nothing  # ours was not timed
    (tmp_path / "op.json").write_text('{"cases": []}')
    assert gpu_table.block(tmp_path) == nothing


def test_the_readme_table_of_made_up_results(tmp_path):
    seconds = {"eager": 80e-6, "fast": 20e-6, "default": 50e-6, "autotune": 30e-6}
    stored_report(tmp_path, "op", ["op-w18-512x1024-bfloat16", "op-w48-1024x2048-float16"], **seconds)
    stored_report(tmp_path, "model", ["model-w48-512x1024-float16"], eager=8e-3, fast=2e-3)
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
    begin, end = "<!-- gpu:begin -->", "<!-- gpu:end -->"
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{readme_table.BEGIN}\n{readme_table.END}\nb\n{begin}\nstale\n{end}\nc\n")
    assert readme_table.main([], root=tmp_path) == 0
    assert f"b\n{begin}\nGPU: not yet measured.\n{end}\nc\n" in readme.read_text()
    assert readme_table.main(["--check"], root=tmp_path) == 0
    stored_report(folder, "op", ["op-w48-1024x2048-float16"], eager=80e-6, fast=20e-6)
    assert readme_table.main(["--check"], root=tmp_path) == 1
    assert readme_table.main([], root=tmp_path) == 0
    assert "4.00x" in readme.read_text() and "stale" not in readme.read_text()


def test_every_part_has_a_process_of_its_own(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(gpu, "_run", lambda command, limit: commands.append(command) or len(commands) == 2)
    given = ["--results", str(tmp_path), "--device", "cpu", "--limit", "7", "--cases", "w18-512x1024"]
    assert gpu.main(given) == 1  # the worst of all
    assert [command[-1] for command in commands] == [*gpu.STEPS, *registry.GPU_PARTS]
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
