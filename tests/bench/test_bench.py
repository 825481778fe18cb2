"""The measuring: order of turns, refusal of wrong outputs, percentiles, results on disk, plots, the README's table."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from hrnet_fast import create_model
from hrnet_fast.bench import BadInput, contenders, images, machine, memory, networks, oracle, report, shares
from hrnet_fast.bench.harness import ROUNDS, Contender, compare, worst_error
from hrnet_fast.bench.measure import Case, measure
from hrnet_fast.bench.plain_forms import fold_batchnorm
from hrnet_fast.bench.record import Entry, Record, Report, Spread, finish
from hrnet_fast.bench.variation import LEAST_VARIATION, variation
from hrnet_fast.checkpoints.header import MEAN, STD
from hrnet_fast.models import TASKS
from hrnet_fast.ops.exchange.call import ExchangeCall
from support.records import stored_report

ONES = torch.ones(3, dtype=torch.float64)


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def worker(self, name: str, seconds: float, log: list[str], value: float = 1.0) -> Contender:
        def call():
            log.append(name)
            self.now += seconds
            return torch.full((3,), value)

        return Contender(name, call)


def test_contenders_take_turns():
    clock, log = Clock(), []
    trio = [clock.worker(name, 0.1 * (i + 1), log) for i, name in enumerate("abc")]
    results = compare(trio, ONES, 1e-6, budget=10.0, clock=clock)
    rounds = results[0].rounds
    assert "".join(log[-3 * rounds :]) == "abc" * rounds
    assert all(len(result.samples) == rounds and result.loops == 1 for result in results)
    assert [r.seconds.median for r in results] == pytest.approx([0.1, 0.2, 0.3])
    assert rounds > ROUNDS[0]
    assert clock.now <= 10.0 + 3 * 0.6


def test_at_least_the_least_rounds_are_made():
    clock, log = Clock(), []
    (result,) = compare([clock.worker("slow", 7.0, log)], ONES, 1e-6, budget=1.0, clock=clock)
    assert result.rounds == ROUNDS[0]


def test_short_calls_are_timed_in_loops():
    clock, log = Clock(), []
    (result,) = compare([clock.worker("quick", 1e-5, log)], ONES, 1e-6, budget=0.05, clock=clock)
    assert result.loops >= 99
    assert result.seconds.median == pytest.approx(1e-5)


def test_wrong_output_is_never_timed():
    clock, log = Clock(), []
    pair = [clock.worker("right", 0.1, log), clock.worker("wrong", 0.001, log, value=1.01)]
    right, wrong = compare(pair, ONES, 1e-3, budget=2.0, clock=clock)
    assert right.agrees
    assert right.seconds
    assert not wrong.agrees
    assert wrong.seconds is None
    assert wrong.speedup_over == {}
    assert wrong.error == pytest.approx(0.01, rel=1e-4)
    assert log.count("wrong") == 1  # the check
    case = Record("c", "a case", "float32", 1e-3, [right, wrong])
    assert not case.agrees
    assert any("wrong is off" in line for line in report.notes(case))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_wrong(value):
    assert worst_error(torch.tensor([1.0, value]), torch.ones(2)) == float("inf")


def test_shapes_and_counts_must_match():
    assert worst_error(torch.ones(1), torch.ones(2)) == float("inf")
    assert worst_error([torch.ones(2)], [torch.ones(2), torch.ones(2)]) == float("inf")


def test_a_contender_that_fails_does_not_end_the_others():
    clock, log = Clock(), []

    def broken():
        raise RuntimeError("no compiler\nand a long story")

    pair = [Contender("broken", broken), clock.worker("fine", 0.1, log)]
    failed, fine = compare(pair, ONES, 1e-6, budget=1.0, clock=clock)
    assert failed.failure == "RuntimeError: no compiler"
    assert not failed.agrees
    assert fine.seconds
    assert failed.error is None


def test_percentiles_interpolate():
    s = Spread.of([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (s.p20, s.median, s.p80) == pytest.approx((1.8, 3.0, 4.2))
    assert Spread.of([2.0]).p80 == 2.0


def test_speedups_pair_runs_of_the_same_round():
    # a machine that is three times slower in every other round: the ratio must not see it
    _, fast = finish([Entry("slow", samples=[2.0, 6.0, 2.0, 6.0]), Entry("fast", samples=[1.0, 3.0, 1.0, 3.0])])
    s = fast.speedup_over["slow"]
    assert (s.p20, s.median, s.p80) == pytest.approx((2.0, 2.0, 2.0))


def test_progress_and_observe_are_called():
    clock, log, shown, seen = Clock(), [], [], []
    compare(
        [clock.worker("a", 0.1, log)],
        ONES,
        1e-6,
        budget=1.0,
        clock=clock,
        progress=lambda doing, done: shown.append(done),
        observe=lambda name, out: seen.append(name),
    )
    assert shown[-1] == 1.0
    assert all(0.0 <= done <= 1.0 for done in shown)
    assert seen == ["a"]


def test_results_survive_json(tmp_path):
    stored = stored_report()
    stored.save(tmp_path / "made" / "r.json")
    assert Report.load(tmp_path / "made" / "r.json") == stored


def test_results_of_another_schema_are_refused(tmp_path):
    (tmp_path / "r.json").write_text('{"schema": 0, "cases": []}')
    with pytest.raises(ValueError, match="schema"):
        Report.load(tmp_path / "r.json")


def test_table_shows_every_contender():
    case = stored_report().cases[0]
    text = report.table(case, contenders.CHANNELS_LAST).text()
    assert all(entry.name in text for entry in case.entries)
    assert "1.52x" in text or "1.53x" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.53e-5, "0.0153 ms"), (0.00144, "1.44 ms"), (0.614, "614 ms"), (2.5, "2500 ms")]
)
def test_milliseconds(seconds, text):
    assert report.milliseconds(seconds) == text


def test_plot_is_written(tmp_path):
    from hrnet_fast.bench.plot import plot

    plot(stored_report().cases * 2, tmp_path / "p.png", baseline=contenders.CHANNELS_LAST, title="t", footnote="f")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 600
        assert picture.height > 200


def test_plot_of_nothing_is_refused(tmp_path):
    from hrnet_fast.bench.plot import plot

    with pytest.raises(ValueError, match="nothing to plot"):
        plot([Record("c", "d", "float32", 1.0, [])], tmp_path / "p.png", baseline="eager")


def test_machine_names_no_host_and_no_path():
    import platform

    described = json.dumps(machine.describe())
    assert "/" not in described.replace(" / ", "") or "home" not in described
    if len(platform.node()) > 6:
        assert platform.node() not in described
    assert machine.describe()["torch"] == torch.__version__


def test_peak_memory_counts_live_tensors():
    x = torch.ones(1 << 18)  # 1 MiB

    def call():
        y = x + 1
        z = y + 1
        del y
        return z + 1

    assert memory.peak_bytes(call) == pytest.approx(2 << 20, rel=0.01)


def test_neighbours_are_noticed(monkeypatch):
    readings = iter([(10.0, 4.0, 20.0), (14.0, 5.0, 26.0)])
    monkeypatch.setattr(machine, "_busy_and_own", lambda: next(readings))
    case = Record("c", "d", "float32", 1.0, [], neighbours=machine.Neighbours().share())
    assert case.neighbours == pytest.approx(0.5)
    assert case.disturbed
    assert any("50 % of the cores" in line for line in report.notes(case))


def test_shares_do_not_count_twice():
    class Inner(nn.Module):
        def forward(self, x):
            clock.now += 1.0
            return x

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            clock.now += 1.0
            return self.inner(x)

    clock = Clock()
    model = nn.Sequential(Outer(), Inner(), Inner())
    found = shares.shares(model, torch.ones(1), {"outer": (Outer,), "inner": (Inner,)}, clock=clock)
    assert found == {"outer": 0.5, "inner": 0.5}


def test_folding_batchnorm_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1))
    model(torch.randn(4, 3, 9, 9))
    model.eval()
    x = torch.randn(1, 3, 9, 9)
    folded = fold_batchnorm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "source", "size"),
    [
        (torch.float32, (21, 45), (133, 129)),
        (torch.bfloat16, (21, 45), (133, 129)),
        (torch.float64, (26, 13), (46, 23)),
    ],
)
def test_oracle_picks_the_pixels_that_torch_picks(dtype, source, size):
    # at these sizes an index computed in float32 is another one than in float64
    x = torch.arange(source[0] * source[1]).remainder(97).view(1, 1, *source).to(dtype)
    call = ExchangeCall([x], [None], None, None, None, *size, "nearest", False, False, False)
    expected = torch.nn.functional.interpolate(x, size, mode="nearest")
    assert torch.equal(oracle.exact(call), expected.double())


def test_image_is_rotated_and_converted(tmp_path):
    picture = Image.new("L", (64, 40), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture.save(tmp_path / "grey.jpg", exif=exif)
    assert images.load(str(tmp_path / "grey.jpg")).shape == (1, 3, 64, 40)
    Image.new("RGBA", (50, 40), (0, 0, 0, 0)).save(tmp_path / "rgba.png")
    loaded = images.load(str(tmp_path / "rgba.png"), (33, 47))
    assert loaded.shape == (1, 3, 33, 47)
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    torch.testing.assert_close(loaded[0, :, 0, 0], black)


def test_missing_scikit_learn_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(BadInput, match="--image FILE, or pip install scikit-learn"):
        images.load()


@pytest.mark.parametrize("text", ["512", "axb", "31x640", "-64x64", "0x0", "64x64x64"])
def test_bad_sizes(text):
    with pytest.raises(BadInput, match="size"):
        images.parse_size(text)


@pytest.mark.parametrize("task", TASKS)
def test_outputs_of_every_benchmark_network_vary(task):
    """With the official initialization those of segmentation do not: errors would not show."""
    photographs = torch.cat([images.load(name, (64, 96)) for name in images.SAMPLES])
    plain = networks.create("hrnet_w18_small_v1", task, image=photographs[:1])
    with torch.inference_mode():
        outputs = plain(photographs)
    assert variation(outputs) > LEAST_VARIATION
    tensors = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    assert all(0.1 < y.abs().mean() < 100 for y in tensors)


@pytest.mark.parametrize("task", ["segmentation", "segmentation_ocr"])
def test_variation_sees_the_constant_outputs_of_a_fresh_network(task):
    image = images.load(size=(64, 96))
    with torch.inference_mode():
        assert variation(create_model("hrnet_w18_small_v1", task).eval()(image)) < 1e-3 * LEAST_VARIATION


def test_variation_is_that_within_channels():
    constant = torch.tensor([3.0, -7.0]).view(1, 2, 1, 1).expand(1, 2, 4, 5)  # differs between channels only
    assert variation(constant) == 0.0
    varying = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2)
    assert variation(varying) == 1.0
    assert variation([varying, constant]) == 0.0  # the least
    assert variation(torch.zeros(1, 1, 2, 2)) == 0.0
    assert variation(torch.ones(1, 10)) is None  # one value per class: nothing to compare with
    case = Record("c", "d", "float32", 1.0, [], variation=0.0)
    assert any("almost constant" in line for line in report.notes(case))


def test_an_optimize_that_fails_does_not_end_the_others(monkeypatch):
    def broken(*arguments, **keywords):
        raise ValueError("no engine")

    monkeypatch.setattr(contenders, "optimize", broken)
    make = lambda device: contenders.Problem(nn.Conv2d(1, 1, 1), (torch.ones(1, 1, 2, 2),), torch.float32, lambda m: m)  # noqa: E731
    case = Case("c", "d", torch.float32, make, (contenders.OPTIMIZED, contenders.EAGER))
    failed, fine = measure(case, budget=0.1).entries
    assert failed.failure == "ValueError: no engine"
    assert failed.engine is None
    assert fine.agrees and fine.seconds and fine.gflops == 4 / 2**30


def test_a_contender_has_its_own_tolerance_and_dtype():
    off = Contender("int8", lambda: torch.full((3,), 1.1), tolerance=0.15, dtype="int8")
    exact, rounded = compare([Contender("float32", lambda: torch.ones(3)), off], ONES, 1e-4, budget=0.01)
    assert exact.agrees and rounded.agrees and rounded.seconds
    assert (rounded.dtype, rounded.tolerance) == ("int8", 0.15)
    stricter = Contender("int8", lambda: torch.full((3,), 1.2), tolerance=0.15, dtype="int8")
    (entry,) = compare([stricter], ONES, 1e-4, budget=0.01)
    assert "int8 is off by more than 1e-01: not timed" in report.notes(Record("c", "d", "float32", 1e-4, [entry]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_form_computes_the_same_and_leaves_the_problem_alone(dtype):
    def make(device):
        plain = networks.create("hrnet_w18_small_v1", "segmentation")
        return contenders.Problem(plain, (images.load(size=(64, 64)),), dtype, networks.same_weights, batch=2)

    problem = make("cpu")
    before = {key: value.clone() for key, value in problem.plain.state_dict().items()}
    names = [n for n in contenders.TABLE if "compile" not in n and "int8" not in n]
    case = Case("c", "d", dtype, lambda device: problem, names)
    record = measure(case, budget=0.01)
    assert [entry.name for entry in record.entries] == names
    assert record.agrees and not any(entry.failure for entry in record.entries)
    assert all(entry.first_result_seconds > 0 and entry.seconds.median > 0 for entry in record.entries)
    assert all(value.equal(before[key]) for key, value in problem.plain.state_dict().items())
    assert problem.reference().shape == (2, 19, 64, 64)


def test_notes_say_which_engine_it_was_and_why():
    entry = Entry(contenders.OPTIMIZED, 0.0, True, engine="torch", engine_reason="a reason to be read")
    assert "hrnet_fast.optimize: engine 'torch', because a reason to be read" in report.notes(
        Record("c", "d", "float32", 1.0, [entry])
    )
