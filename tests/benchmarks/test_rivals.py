"""HRNet against its published rivals: counts, when a published figure may stand there, the program and its picture."""

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import gpu, readme_table, rival_networks, rival_report, rivals
from benchmarks.rival_networks import COUNTED_SIZE, NETWORKS, Count, Network, Published
from hrnet_fast.bench import BadInput
from hrnet_fast.bench.record import Report

SMALL = Network(
    "hrnet_w18_small_v1",
    "HRNet-W18-small",
    lambda: rival_networks._hrnet("hrnet_w18_small_v1"),
    None,
    "it is not in the table",
)


def stand_in() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()


OTHER = Network("stand_in", "Stand-in", stand_in, Published("nothing", 268, (27 * 8 + 32) * 2**21 / 1e9, 12.3))
ABSENT = Network("unetplusplus", "UNet++", stand_in, Published("nothing", 1, 1, 1.0))


@pytest.fixture
def small(monkeypatch):
    """Two small networks that can be made here, and one that cannot."""
    for module in (rivals, rival_report, rival_networks):
        if hasattr(module, "NETWORKS"):
            monkeypatch.setattr(module, "NETWORKS", (SMALL, OTHER, ABSENT))

    def why_not(network):
        return "not installed" if network is ABSENT else None

    monkeypatch.setattr(rivals, "why_not", why_not)
    monkeypatch.setattr(rivals.memory, "alone", lambda function, *arguments: 123 << 20)


def test_counts_of_hrnet_are_the_published_ones():
    network = next(network for network in NETWORKS if network.name == "hrnet_w48")
    counted = rival_networks.count(network, COUNTED_SIZE)
    assert counted.params == 65_859_379
    assert counted.multiply_adds / 2**30 == pytest.approx(696.2, abs=0.05)
    assert rival_networks.is_published(network, counted)
    assert rival_networks.why_not_published(network, counted) == ""


def test_published_figures_stand_only_beside_their_network():
    published = Published("ResNet", 50e6, 100.0, 80.0)
    same = Network("a", "A", stand_in, published)
    assert rival_networks.is_published(same, Count(50_900_000, 99_000_000_000))
    assert not rival_networks.is_published(same, Count(51_100_000, 100_000_000_000))
    assert not rival_networks.is_published(same, Count(50_000_000, 103_000_000_000))
    other = Network("a", "A", stand_in, published, "another encoder")
    exact = Count(50_000_000, 100_000_000_000)
    assert not rival_networks.is_published(other, exact)
    assert rival_networks.why_not_published(other, exact).endswith("another encoder")
    assert not rival_networks.is_published(SMALL, exact)


def test_a_missing_library_is_a_reason(monkeypatch):
    def missing():
        raise BadInput("segmentation-models-pytorch cannot be imported: pip install it")

    monkeypatch.setattr(rival_networks, "_library", missing)
    rows = {network.name: rival_networks.why_not(network) for network in NETWORKS}
    assert rows["hrnet_w48"] is None
    assert "pip install" in rows["pspnet"]


def test_program(small, tmp_path, capsys):
    arguments = ["--networks", "hrnet_w18_small_v1", "stand_in", "unetplusplus", "--size", "64x96", "--budget", "0.01"]
    assert rivals.main([*arguments, "--results", str(tmp_path)]) == 0
    stored = Report.load(tmp_path / "rivals.json")
    hrnet, other, absent = stored.cases
    assert [entry.name for entry in hrnet.entries] == ["eager channels_last", "hrnet_fast", "hrnet_fast.optimize"]
    assert hrnet.entry("hrnet_fast").agrees
    assert hrnet.entry("hrnet_fast").seconds.median > 0
    assert hrnet.entry("hrnet_fast").resident_peak_bytes == 123 << 20
    assert other.entry("eager channels_last").agrees
    assert other.params == 268
    assert absent.entries[0].failure == "not installed"
    with Image.open(tmp_path / "rivals.png") as picture:
        assert picture.width > 800
    shown = " ".join(capsys.readouterr().out.split())
    assert "HRNet-W18-small: it is not in the table" in shown
    assert "UNet++, eager channels_last, did not run: not installed" in shown
    text = rival_report.markdown(readme_table.load(tmp_path))
    assert text.count("| HRNet-W18-small | ") >= 2
    assert "latency, 64x96, float32" in text
    assert "| 12.3 |" in text


def test_the_memory_is_that_of_a_network_in_its_form():
    assert rivals.alone("hrnet_w18", "hrnet_fast", (64, 64), "float32", 1) > 4 * 9_600_000


def test_nothing_measured(tmp_path):
    assert "benchmarks.rivals" in rival_report.markdown({})
    with pytest.raises(ValueError, match="nothing to plot"):
        rival_report.plot(Report([]), tmp_path / "none.png")


def test_part_of_the_gpu_benchmark(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "RIVALS_SIZE", (64, 64))
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(rivals, "take_turns", lambda timers, *more: [e.samples.append(timer()) for timer, e in timers])
    assert gpu.main(["--part", "rivals", "--results", str(tmp_path), "--device", "cpu"]) == 0
    hrnet = Report.load(tmp_path / "rivals.json").cases[0]
    assert hrnet.dtype == "float16"
    assert hrnet.entry("hrnet_fast").seconds is not None


def test_wrong_arguments(capsys):
    for arguments, said in (
        (["--size", "500x1024"], "multiples of 32"),
        (["--size", "x"], "HEIGHTxWIDTH"),
        (["--threads", "0"], "at least 1"),
        (["--networks", "nothing"], "invalid choice"),
    ):
        with pytest.raises(SystemExit) as stop:
            rivals.main(arguments)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_blocks_of_the_readme_are_optional_and_kept(tmp_path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    readme = tmp_path / "README.md"
    blocks = [f"<!-- {name}:begin -->\nstale\n<!-- {name}:end -->\n" for name in ("engines", "rivals")]
    readme.write_text(f"{readme_table.BEGIN}\n{readme_table.END}\n{blocks[0]}between\n{blocks[1]}end\n")
    assert readme_table.main([], root=tmp_path) == 0
    text = readme.read_text()
    assert "stale" not in text
    assert "between" in text and text.endswith("end\n")
    assert "python -m benchmarks.rivals" in text and "python -m benchmarks.engines" in text
    assert readme_table.main(["--check"], root=tmp_path) == 0
