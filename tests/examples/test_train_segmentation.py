"""examples/train_segmentation.py: the data, the loss and the metric are right, and a run survives what runs meet."""

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hrnet_fast as hf

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--synthetic", "--crop", "64x64", "--batch", "2", "--workers", "0", "--lr", "0.05", "--eval-every", "0"]


@pytest.fixture(scope="module")
def program():
    pytest.importorskip("PIL")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import train_segmentation

        yield train_segmentation
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture
def few(program, monkeypatch):
    """A validation set of four, so that the evaluation takes no time."""
    shapes = program.data.Shapes
    monkeypatch.setattr(program, "sources", lambda a: (shapes(16, a.crop, a.seed), shapes(4, a.crop, 99)))


def curve(folder: Path) -> list[tuple[str, str]]:
    with open(folder / "log.csv", newline="") as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


def write(path: Path, picture) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def plain_folder(root: Path, label: int = 1, mask_size=(80, 70)) -> Path:
    from PIL import Image

    for split in ("train", "val"):
        for name in "ab":
            write(root / "images" / split / f"{name}.png", Image.new("RGB", (80, 70), (200, 10, 10)))
            write(root / "masks" / split / f"{name}.png", Image.new("L", mask_size, label))
    return root


def test_a_killed_run_resumes_with_the_same_losses(program, few, tmp_path):
    torch.set_num_threads(2)
    whole, cut = [*SMALL, "--steps", "8", "--save-every", "3"], tmp_path / "cut"
    assert program.main([*whole, "--out", str(tmp_path / "whole")]) == 0
    run = program.Run(program.arguments([*whole, "--out", str(cut)]))
    real = run._one_step

    def killed_at_step_5(*batch):
        if run.step == 5:
            raise KeyboardInterrupt
        return real(*batch)

    run._one_step = killed_at_step_5
    with pytest.raises(KeyboardInterrupt):
        run.train(program.Console(quiet=True))
    assert len(curve(cut)) == 5
    assert program.main([*whole, "--out", str(cut), "--resume"]) == 0
    assert curve(cut) == curve(tmp_path / "whole")
    ours, theirs = (torch.load(f / "last.pt", weights_only=True)["model"] for f in (cut, tmp_path / "whole"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_kill_9_while_a_checkpoint_is_written_leaves_the_previous_one(program, tmp_path):
    """A process that does nothing but save is killed in the middle of it, at ten different moments."""
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "from pathlib import Path\n"
        "import itertools, torch\n"
        "from segmentation_training import state\n"
        "for step in itertools.count():\n"
        "    weights = torch.full((1 << 21,), step)\n"
        f"    state.save(Path({str(tmp_path / 'last.pt')!r}), dict(configuration={{}}, step=step, model=weights))\n"
        "    print(step, flush=True)\n"
    )
    torn = 0
    for attempt in range(10):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        torn += (tmp_path / "last.pt.part").exists()
        found = program.state.load(tmp_path / "last.pt", {})
        assert (found["model"] == found["step"]).all()
        (tmp_path / "last.pt.part").unlink(missing_ok=True)
    assert torn, "no kill came in the middle of a write: the test proves nothing"


# Runs whose only cost is what they write: the network is one convolution. They are forked, so that torch is imported
# once; the process that forks them has no threads.
QUICK = f"""
import os, random, signal, sys, time
sys.path[:0] = [{str(EXAMPLES)!r}, {str(Path(hf.__file__).parents[1])!r}]
import torch, train_segmentation as program
torch.set_num_threads(1)
shapes = program.data.Shapes
program.sources = lambda a: (shapes(16, a.crop, a.seed), shapes(4, a.crop, 99))
program.Run._model = lambda self, gpu: torch.nn.Conv2d(3, shapes.CLASSES, 3, padding=1).train()
program.Run.evaluate = lambda self: 0.5
labels = torch.arange(4096).view(64, 64)
program.data.Positions.__getitem__ = lambda self, i: (torch.full((3, 64, 64), i / 99), (labels + i) % 4, i)

program.main([*{SMALL!r}, "--steps", "1", "--out", "warm"])  # what torch imports late

def forked(out, *more, before=lambda: None):
    pid = os.fork()
    if pid == 0:
        before()
        os._exit(program.main([*{SMALL!r}, "--steps", "60", "--save-every", "3", "--out", out, *more]))
    return pid

def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def quick(body: str) -> str:
    """What it prints."""
    done = subprocess.run([sys.executable, "-c", QUICK + body], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


KILLS = """
kills, chance = int(os.environ.get("HRNET_FAST_TEST_KILLS", "8")), random.Random(0)
written = lambda path: os.path.exists(path) and os.stat(path)[:]
def wait_for(log, before):
    while written(log) == before:
        time.sleep(0.0005)

pid = forked("whole")
wait_for("whole/log.csv", False)
began = time.perf_counter()
assert status(pid) == 0
seconds = time.perf_counter() - began
resume = lambda: ["--resume"] if os.path.exists("cut/last.pt") else []
for attempt in range(kills):
    before = written("cut/log.csv")
    pid = forked("cut", *resume())
    wait_for("cut/log.csv", before)  # it is written again before the first step
    if attempt % 3:
        time.sleep(chance.uniform(0, 2 * seconds / kills))
    os.kill(pid, signal.SIGKILL)
    assert status(pid) in (0, -signal.SIGKILL)
    if resume():
        step = torch.load("cut/last.pt", weights_only=True)["step"]
        rows = [[line.split(",")[:2] for line in open(f + "/log.csv")][: step + 1] for f in ("cut", "whole")]
        assert rows[0] == rows[1] and len(rows[0]) == step + 1, (attempt, step)
        print("resumes from", step)
assert status(forked("cut", *resume())) == 0
"""


def test_kill_9_at_any_moment_loses_no_row_before_the_checkpoint(program, tmp_path, monkeypatch):
    """Random kills, each run resuming the one before; the end is that of a run that was never killed."""
    monkeypatch.chdir(tmp_path)
    printed = quick(KILLS)
    assert "resumes from" in printed, "no kill came between a checkpoint and the end: the test proves nothing"
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    ours, theirs = (torch.load(tmp_path / f / "last.pt", weights_only=True)["model"] for f in ("cut", "whole"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_kill_9_while_the_log_is_written_again_keeps_it(program, tmp_path, monkeypatch):
    """Between --resume and the first step; then a row that was cut off in the middle is dropped."""
    path = tmp_path / "log.csv"
    log = program.state.Log(path, 0)
    for step in range(20):
        log.write(step=step, loss=repr(step / 3), learning_rate="0.1", seconds="0.1", miou="")
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(program.state.os, name, killed)
            with pytest.raises(KeyboardInterrupt):
                program.state.Log(path, 20)
        assert path.read_bytes() == before
    path.write_bytes(before + b"1")  # of step 19 or of 1?
    program.state.Log(path, 20)
    assert path.read_bytes() == before
    program.state.Log(path, 7)
    assert [step for step, _ in curve(tmp_path)] == [str(k) for k in range(7)]


# From step 9 on, with a checkpoint of step 9 on the disk, no file may grow over a limit.
FULL = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the process dies of it before it can say a word
real = program.Run._one_step
def full_from_step_9(self, *batch):
    if self.step == 9:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST, MOST))
    return real(self, *batch)
def full():
    program.Run._one_step = full_from_step_9
assert status(forked("run", before=full)) == 2
print("left", *sorted(os.listdir("run")), torch.load("run/last.pt", weights_only=True)["step"], flush=True)
assert status(forked("run", "--resume")) == 0  # there is room again
"""


@pytest.mark.parametrize("limit", [600, 2000], ids=["in the log", "in the checkpoint"])
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint(program, tmp_path, monkeypatch, limit):
    monkeypatch.chdir(tmp_path)
    printed = quick(FULL.replace("MOST", str(limit)))
    assert printed.count("error: ") == printed.count("File too large") == 1 and "Traceback" not in printed, printed
    assert "left last.pt log.csv 9" in printed
    assert [step for step, _ in curve(tmp_path / "run")] == [str(k) for k in range(60)]


@pytest.mark.parametrize("room", [0, 1, 700, 1 << 16])
def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(program, tmp_path, monkeypatch, room):
    """Wherever in the file the disk is full, the error is the disk's own."""
    path = tmp_path / "last.pt"
    program.state.save(path, {"configuration": {}, "step": 1})
    before, real = path.read_bytes(), open

    class Full:
        def __init__(self, file):
            self._file, self._left = file, room

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            self._left -= len(data)
            if self._left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._file.write(data)

    monkeypatch.setattr(program.state, "open", lambda *a, **k: Full(real(*a, **k)), raising=False)
    with pytest.raises(OSError, match="No space left on device"):
        program.state.save(path, {"configuration": {}, "step": 2, "model": torch.zeros(1 << 16)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_resume_of_another_configuration_lists_what_differs(program, few, tmp_path, capsys):
    assert program.main([*SMALL, "--steps", "1", "--out", str(tmp_path)]) == 0
    assert program.main([*SMALL, "--steps", "1", "--seed", "3", "--out", str(tmp_path), "--resume"]) == 2
    assert "seed: 0 there, 3 here" in capsys.readouterr().out
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    assert program.main([*SMALL, "--steps", "1", "--out", str(tmp_path), "--resume"]) == 2
    assert "not a checkpoint of this program" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_with_the_batch(program, few, tmp_path, capsys):
    assert program.main([*SMALL, "--steps", "1", "--out", str(tmp_path)]) == 0
    before = (tmp_path / "last.pt").read_bytes()
    run = program.Run(program.arguments([*SMALL, "--steps", "3", "--out", str(tmp_path)]))
    with torch.no_grad():
        run.model.conv1.weight[0, 0, 0, 0] = torch.nan
    weights = [p.clone() for p in run.model.parameters()]
    with pytest.raises(FloatingPointError, match=r"step 0: the loss is nan; the batch: shape \d+ of seed 0, shape"):
        run.train(program.Console(quiet=True))
    assert (tmp_path / "last.pt").read_bytes() == before
    assert all(torch.equal(a, b) for a, b in zip(weights[1:], list(run.model.parameters())[1:], strict=True))


@pytest.mark.parametrize("extra", [["--amp", "bf16"], ["--checkpoint"], ["--plain"], ["--loss", "ohem"]])
def test_every_form_trains(program, few, tmp_path, extra):
    assert program.main([*SMALL, *extra, "--steps", "2", "--out", str(tmp_path), "--scales", "0.5", "1", "--flip"]) == 0
    assert len(curve(tmp_path)) == 2


def test_training_lowers_the_loss_alike_plain_and_fast(program, few, tmp_path):
    for form in ([], ["--plain"]):
        out = tmp_path / "-".join(["run", *form])
        assert program.main([*SMALL, *form, "--steps", "30", "--out", str(out)]) == 0
    fast, plain = ([float(v) for _, v in curve(p)] for p in (tmp_path / "run", tmp_path / "run---plain"))
    assert fast[0] == pytest.approx(plain[0], rel=1e-4)
    assert sum(fast[-5:]) < 0.8 * sum(fast[:5]) and sum(plain[-5:]) < 0.8 * sum(plain[:5])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_checkpointing_changes_neither_gradients_nor_statistics(program, layout):
    models = []
    for wanted in (False, True):
        torch.manual_seed(0)
        model = hf.create_model("hrnet_w18_small_v1", task="segmentation", num_classes=3).double().train()
        models.append(program.checkpointing.enable(model) if wanted else model)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64).contiguous(memory_format=layout)
    for model in models:
        model(image).square().mean().backward()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, p), q in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        assert torch.equal(p, q), name


def gradients_of_a_rank(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=Path(folder, "port").read_text())
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model, images, target = case_for_ranks()
    network = nn.parallel.DistributedDataParallel(model)
    F.cross_entropy(network(images[rank::2]), target[rank::2]).backward()
    if rank == 0:
        torch.save([p.grad for p in model.parameters()], Path(folder, "gradients.pt"))
    torch.distributed.destroy_process_group()


def case_for_ranks():
    torch.manual_seed(0)
    model = hf.create_model("hrnet_w18_small_v1", task="segmentation", num_classes=3).double().train()
    for m in model.modules():  # each rank has statistics of its own, unless they are frozen (or synchronised, on GPUs)
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    model, images = model.to(memory_format=torch.channels_last), torch.randn(4, 3, 64, 64, dtype=torch.float64)
    return model, images.contiguous(memory_format=torch.channels_last), torch.randint(0, 3, (4, 64, 64))


def test_two_ranks_give_the_gradients_of_the_double_batch(tmp_path):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(s.getsockname()[1]))
    torch.multiprocessing.spawn(gradients_of_a_rank, (str(tmp_path),), nprocs=2)
    model, images, target = case_for_ranks()
    F.cross_entropy(model(images), target).backward()
    for p, g in zip(model.parameters(), torch.load(tmp_path / "gradients.pt"), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-8, atol=1e-12)


def test_ranks_split_the_very_same_batches(program):
    one = list(program.data.batches(3, 6, 4, 0, 1))
    two = [list(program.data.batches(3, 6, 2, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*two, strict=True)] == one


def test_layouts_are_told_apart(program, tmp_path):
    from PIL import Image

    data = program.data
    image, mask = data.Folder(plain_folder(tmp_path / "plain"), "train", 2).load(1)
    assert image.shape == (3, 70, 80) and image[:, 0, 0].tolist() == [200, 10, 10] and mask.unique().tolist() == [1]

    voc = tmp_path / "voc"
    write(voc / "JPEGImages" / "x.jpg", Image.new("RGB", (8, 6)))
    palette = Image.new("P", (8, 6), 255)
    palette.putpalette([v for i in range(256) for v in (i, 255 - i, 0)])
    write(voc / "SegmentationClass" / "x.png", palette)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("x\n")
    assert data.Folder(voc, "train", 21).load(0)[1].unique().tolist() == [255]

    city = tmp_path / "city"
    write(city / "leftImg8bit" / "train" / "ulm" / "ulm_0_1_leftImg8bit.png", Image.new("RGB", (8, 6)))
    write(city / "gtFine" / "train" / "ulm" / "ulm_0_1_gtFine_labelIds.png", Image.new("L", (8, 6), 26))  # a car
    assert data.Folder(city, "train", 19).load(0)[1].unique().tolist() == [13]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"label": 7}, "labels [7]: expected 0 to 1, or 255"),
        ({"mask_size": (80, 71)}, "[71, 80] pixels, but its image has [70, 80]"),
    ],
)
def test_bad_masks_are_named(program, tmp_path, capsys, bad, message):
    folder = plain_folder(tmp_path / "data", **bad)
    options = ["--data", str(folder), "--num-classes", "2", "--crop", "64x64", "--steps", "1", "--workers", "0"]
    assert program.main([*options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().out


def test_an_empty_folder_and_a_missing_mask_are_errors(program, tmp_path):
    with pytest.raises(ValueError, match="no images of the split 'train'"):
        program.data.Folder(tmp_path, "train", 2)
    folder = plain_folder(tmp_path / "data")
    (folder / "masks" / "train" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 masks are missing, the first: .*b\.png"):
        program.data.Folder(folder, "train", 2)


def test_ohem_keeps_the_hard_pixels(program):
    target = torch.zeros(1, 2, 4, dtype=torch.long)
    target[0, 1, 3] = 255
    logits = torch.zeros(1, 2, 2, 4)
    logits[0, 0, 0] = 5.0  # four easy pixels: probability 0.993
    hard = program.loss.ohem(logits, target, threshold=0.9, least=1)
    assert hard.item() == pytest.approx(0.693147, rel=1e-5)  # the three of probability 1/2
    everything = program.loss.ohem(logits, target, threshold=1.0, least=7)
    assert everything.item() == pytest.approx(program.loss.cross_entropy(logits, target).item(), rel=1e-6)
    assert program.loss.ohem(logits, torch.full_like(target, 255)).item() == 0


def test_mean_iou_of_a_known_matrix(program):
    target, predicted = torch.tensor([0, 0, 1, 1, 255]), torch.tensor([0, 1, 1, 1, 0])
    matrix = program.evaluation.confusion(predicted, target, 3)
    mean, each = program.evaluation.mean_iou(matrix)
    assert each[:2] == [1 / 2, 2 / 3] and mean == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_sliding_windows_of_a_pixelwise_model_are_the_whole(program):
    image = torch.randn(1, 3, 90, 150)
    model = nn.Conv2d(3, 4, 1)
    found = program.evaluation.probabilities(model, image, (32, 64), flip=True)
    torch.testing.assert_close(found, model(image).softmax(1).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_plain_and_fast_are_the_same_training(program, layout):
    """In float64, where rounding does not hide it: in float32 both leave the float64 run within a dozen steps."""
    states = []
    for fast in (False, True):
        torch.manual_seed(0)
        model = hf.create_model("hrnet_w18_small_v1", task="segmentation", num_classes=4, fast=fast).double().train()
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=5e-4)
        positions = program.data.Positions(program.data.Shapes(8, (64, 64), 0), (64, 64), 0)
        for step in range(4):
            images, masks, _ = zip(*(positions[2 * step + k] for k in range(2)), strict=True)
            optimizer.zero_grad()
            batch = torch.stack(images).double().contiguous(memory_format=layout)
            F.cross_entropy(model(batch), torch.stack(masks), ignore_index=255).backward()
            optimizer.step()
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-8, atol=1e-10, msg=name)
