"""``hrnet-fast segment``: which pictures it takes, what it writes, awkward pictures, files in the way, checkpoints."""

import errno
import io
import os
import pickle
import sys

import pytest
import torch
from PIL import Image

import hrnet_fast as hf
from checkpoints.test_checkpoint import Dangerous
from hrnet_fast import files as writing
from hrnet_fast.apps import by_shape, networks, pipeline
from hrnet_fast.apps.inference import probabilities
from hrnet_fast.apps.pictures import BadPicture, files, reading
from hrnet_fast.apps.pictures.overlay import class_image, overlay
from hrnet_fast.apps.pictures.palette import CITYSCAPES, palette
from hrnet_fast.apps.segment import Segmenter
from hrnet_fast.checkpoints.convert import convert_checkpoint
from hrnet_fast.cli import main
from hrnet_fast.models import randomize
from hrnet_fast.runtime.cpu.planned import why_not
from hrnet_fast.tolerances import MODEL, relative_error

SMALL = "hrnet_w18_small_v1"


@pytest.fixture(scope="module")
def small_network():
    return networks.build(SMALL, "segmentation")


@pytest.fixture
def fake_network(monkeypatch):
    """Instead of a network, for tests of everything around it: the class is the brightness in steps of 16."""

    class Brightness(networks.Network):
        def __call__(self, image):
            grey = image.mean(1, keepdim=True)
            levels = torch.linspace(-2, 2.4, self.num_classes).view(1, -1, 1, 1)
            return -(grey - levels).abs()

    def build(name, task, *, checkpoint=None, num_classes=None, align_corners=None, dtype=None, device=None):
        return Brightness(
            torch.nn.Identity(), num_classes or 19, bool(align_corners), torch.float32, device, checkpoint is None
        )

    monkeypatch.setattr(networks, "build", build)


def noise(path, size=(40, 30), mode="RGB", **keywords):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 90).convert(mode).save(path, **keywords)
    return path


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def segment(*arguments) -> int:
    return main(["segment", *map(str, arguments)])


def test_a_folder_becomes_overlays_and_class_maps(tmp_path, capsys):
    noise(tmp_path / "in" / "a.png")
    noise(tmp_path / "in" / "deeper" / "b.jpg", (33, 47))
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    assert segment(tmp_path / "in", "--model", SMALL, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "random" in printed and "mean nothing" in printed
    assert "2 of 2 pictures" in printed
    assert names(tmp_path / "out") == ["a_classes.png", "a_overlay.png", "deeper/b_classes.png", "deeper/b_overlay.png"]
    with Image.open(tmp_path / "out" / "deeper" / "b_classes.png") as classes:
        assert (classes.mode, classes.size) == ("L", (33, 47)) and classes.getextrema()[1] < 19
    with Image.open(tmp_path / "out" / "deeper" / "b_overlay.png") as drawn:
        assert (drawn.mode, drawn.size) == ("RGB", (33, 47))


def test_classes_are_those_of_the_model(small_network):
    """As create_model's logits at full size give them; where rounding decides between two classes, either is right."""
    model = randomize(hf.create_model(SMALL).eval())
    pixels = (torch.rand(3, 61, 83, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8)
    found = Segmenter(small_network)(pixels, (61, 83))
    with torch.inference_mode():
        logits = model(reading.normalize(pixels)[None])[0]
    assert found.dtype == torch.uint8 and found.shape == (61, 83)
    chosen = logits.gather(0, found.long()[None])[0]
    assert (logits.amax(0) - chosen).max() < 1e-4 * logits.abs().max()


@pytest.mark.parametrize("settings", [{"window": (32, 48)}, {"scales": (0.5, 1.0)}, {"flip": True}], ids=str)
def test_windows_scales_and_flips(small_network, settings):
    pixels = (torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(2)) * 255).to(torch.uint8)
    model = randomize(hf.create_model(SMALL).eval())
    with torch.inference_mode():
        expected = probabilities(model, reading.normalize(pixels)[None], **settings)[0]
    found = Segmenter(small_network, **settings)(pixels, (64, 96))
    assert (expected.amax(0) - expected.gather(0, found.long()[None])[0]).max() < 1e-4
    assert Segmenter(small_network, **settings)(pixels, (50, 70)).shape == (50, 70)


def test_results_have_the_pictures_own_size(tmp_path, fake_network):
    noise(tmp_path / "a.png", (90, 70))
    assert segment(tmp_path / "a.png", "--size", "32x64", "--flip", "--window", "32x32", "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "a_classes.png") as classes:
        assert classes.size == (90, 70)


def test_awkward_pictures(tmp_path, fake_network, capsys):
    """Grey, transparent, 16-bit, turned, tiny, palette and CMYK pictures are handled; damaged ones are named."""
    folder = tmp_path / "in"
    grey = Image.linear_gradient("L").resize((40, 30))
    noise(folder / "one.png", (1, 1))
    grey.save(folder / "grey.png")
    Image.merge("RGBA", (grey, grey, grey, grey)).save(folder / "rgba.png")
    grey.convert("I").point(lambda v: v * 257).convert("I;16").save(folder / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    grey.convert("RGB").save(folder / "turned.png", exif=exif)
    grey.convert("P").save(folder / "palette.gif")
    noise(folder / "cmyk.jpg", mode="CMYK")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (folder / "empty.jpg").write_bytes(b"")
    whole = noise(folder / "half.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.new("F", (8, 8)).save(folder / "floating.tif")
    assert segment(folder, "--out", tmp_path / "out") == 1
    captured = capsys.readouterr()
    skipped = sorted(line.split(":")[0].rpartition("/")[2] for line in captured.err.splitlines())
    assert skipped == ["broken.png", "empty.jpg", "floating.tif", "half.png"]
    assert "7 of 11 pictures, 4 skipped" in captured.out
    maps = {p.name.removesuffix("_classes.png"): Image.open(p) for p in (tmp_path / "out").glob("*_classes.png")}
    assert maps["grey"].tobytes() == maps["rgba"].tobytes() == maps["sixteen"].tobytes()
    assert len(maps["grey"].getcolors()) > 5
    assert maps["turned"].size == (30, 40)
    assert maps["turned"].tobytes() == maps["grey"].transpose(Image.Transpose.ROTATE_270).tobytes()
    assert maps["one"].size == (1, 1)


def test_existing_results_are_kept(tmp_path, fake_network, capsys):
    noise(tmp_path / "a.png"), noise(tmp_path / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_classes.png").write_text("mine")
    assert segment(tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out") == 1
    assert "a.png: " in (error := capsys.readouterr().err) and "exists already; --force overwrites it" in error
    assert (tmp_path / "out" / "a_classes.png").read_text() == "mine"
    assert names(tmp_path / "out") == ["a_classes.png", "b_classes.png", "b_overlay.png"]
    assert segment(tmp_path / "a.png", "--out", tmp_path / "out", "--force") == 0
    assert Image.open(tmp_path / "out" / "a_classes.png").size == (40, 30)


def test_results_are_not_taken_for_pictures(tmp_path, fake_network, capsys):
    noise(tmp_path / "a.png")
    for _ in range(2):
        assert segment(tmp_path, "--out", tmp_path / "segmented", "--force") == 0
        assert "1 of 1 pictures" in capsys.readouterr().out


def test_a_full_disk_leaves_no_half_file(tmp_path, fake_network, capsys, monkeypatch):
    for k in range(12):
        noise(tmp_path / "in" / f"{k:02d}.png")

    class Full(io.FileIO):
        """A file on a disk that has room for four results."""

        def write(self, content):
            if len(list((tmp_path / "out").glob("*.png"))) < 4:
                return super().write(content)
            super().write(content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "open", lambda path, mode: Full(path, mode), raising=False)
    assert segment(tmp_path / "in", "--out", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert os.strerror(errno.ENOSPC) in captured.err and "more pictures have no result" in captured.err
    written = names(tmp_path / "out")
    assert len(written) >= 4 and all(name.endswith(".png") for name in written)
    for name in written:
        with Image.open(tmp_path / "out" / name) as image:
            image.load()


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    """Nothing is left of a file that could not be written, and a file that appeared meanwhile is not overwritten."""
    with pytest.raises(TypeError):
        writing.save({tmp_path / "a": b"first", tmp_path / "b": object()}, overwrite=False)
    assert names(tmp_path) == []
    link = os.link

    def late(source, target):
        target.write_text("somebody else's")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(FileExistsError):
        writing.save({tmp_path / "a": b"ours"}, overwrite=False)
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "somebody else's"
    monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(PermissionError()))  # no hard links here
    writing.save({tmp_path / "c": b"ours"}, overwrite=False)
    assert names(tmp_path) == ["a", "c"] and (tmp_path / "c").stat().st_mode & 0o400


def test_names_of_results(tmp_path):
    noise(tmp_path / "x" / "a.jpg"), noise(tmp_path / "x" / "a.png"), noise(tmp_path / "x" / "y" / "a.png")
    found = files.find([str(tmp_path / "x"), str(tmp_path / "x" / "a.png")])
    assert [item.name for item in found] == ["a_jpg", "a_png", "y/a"]
    found = files.find([str(tmp_path / "**" / "a.png")])
    assert sorted(item.name for item in found) == ["x/a", "x/y/a"]
    with pytest.raises(ValueError, match="would have one name"):
        files.find([str(tmp_path / "x" / "a.png"), str(tmp_path / "x" / "y" / "a.png")])


def test_the_pipeline_keeps_the_order_and_few_results():
    alive, most = 0, 0

    def load(k):
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        if k % 7 == 3:
            raise BadPicture("three")
        return k

    outcomes = []
    for outcome in pipeline.run(range(40), load, lambda k, x: x * 2, lambda k, x: None):
        alive -= 1
        outcomes.append(outcome)
    assert [o.item for o in outcomes] == list(range(40))
    assert [o.item for o in outcomes if o.problem == "three"] == [k for k in range(40) if k % 7 == 3]
    assert most <= 3 * pipeline.AHEAD


def test_reading_and_writing_overlap_with_computing():
    """Nothing waits for a picture's neighbours: reading 3 needs that 1 is being computed, and the other way round."""
    import threading

    begun = {(what, k): threading.Event() for what in ("load", "compute", "save") for k in range(6)}

    def step(what, k, other):
        begun[what, k].set()
        assert other not in begun or begun[other].wait(20), f"{what} {k} did not overlap with {other}"
        return k

    outcomes = list(
        pipeline.run(
            range(6),
            lambda k: step("load", k, None),
            lambda k, x: step("compute", k, ("load", k + 2)),
            lambda k, x: step("save", k, ("compute", k + 1)),
        )
    )
    assert [o.problem for o in outcomes] == [None] * 6


def test_other_errors_end_the_run():
    with pytest.raises(ZeroDivisionError):
        list(pipeline.run(range(5), lambda k: k, lambda k, x: 1 // (3 - x), lambda k, x: None))
    (outcome,) = pipeline.run(
        [0], lambda k: k, lambda k, x: (_ for _ in ()).throw(MemoryError()).send(None), lambda k, x: None
    )
    assert "not enough memory" in outcome.problem


def test_scores_that_are_not_finite_are_named(tmp_path, fake_network, capsys, monkeypatch):
    build = networks.build

    def broken(*arguments, **keywords):
        network = build(*arguments, **keywords)
        return type("Broken", (type(network),), {"__call__": lambda self, image: image * float("nan")})(*network)

    monkeypatch.setattr(networks, "build", broken)
    noise(tmp_path / "a.png")
    assert segment(tmp_path / "a.png", "--out", tmp_path / "out") == 1
    assert "not finite" in capsys.readouterr().err and names(tmp_path / "out") == []


def test_colours():
    assert palette(19) == CITYSCAPES and len(CITYSCAPES) == 19
    for classes in (2, 21, 150):
        assert len(set(palette(classes))) == classes
    classes = torch.arange(19, dtype=torch.uint8).view(1, 19)
    black = Image.new("RGB", (19, 1))
    assert overlay(black, classes, CITYSCAPES, 1.0).tobytes() == bytes(c for colour in CITYSCAPES for c in colour)
    assert overlay(black, classes, CITYSCAPES, 0.0).tobytes() == black.tobytes()
    many = torch.tensor([[0, 300, 65]], dtype=torch.int32)
    assert [class_image(many).getpixel((x, 0)) for x in range(3)] == [0, 300, 65]
    colours = palette(301)
    drawn = overlay(Image.new("RGB", (3, 1)), many, colours, 1.0)
    assert [drawn.getpixel((x, 0)) for x in range(3)] == [colours[k] for k in (0, 300, 65)]


def fails(capsys, *arguments) -> str:
    """The one line on stderr of a command that must end with 2."""
    assert segment(*arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert captured.out == ""
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: IMAGE"),
        (["nothing/*.jpg"], "no picture matches this pattern"),
        (["{folder}"], "no picture in this folder"),
        (["{picture}", "--model", "hrnet_w19"], "unknown model 'hrnet_w19'"),
        (["{picture}", "--classes", "0"], "classes 0: must be at least 1"),
        (["{picture}", "--classes", "40000"], "at most 32768"),
        (["{picture}", "--window", "64"], "expected HEIGHTxWIDTH"),
        (["{picture}", "--size", "8x8"], "too small"),
        (["{picture}", "--scales", "0"], "scales 0: must be numbers above 0"),
        (["{picture}", "--opacity", "1.5"], "opacity 1.5: must be from 0 to 1"),
        (["{picture}", "--device", "tpu"], "device 'tpu'"),
        (["{picture}", "--threads", "0"], "threads 0"),
        (["{picture}", "--checkpoint", "none.pth"], "checkpoint none.pth: there is no such file"),
        (["{picture}", "--out", "{picture}"], "is there already, and no folder"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, arguments, message):
    places = {"picture": noise(tmp_path / "a.png"), "folder": tmp_path / "empty"}
    places["folder"].mkdir()
    assert message in fails(capsys, *(a.format(**places) for a in arguments))


def test_a_missing_picture_is_skipped(tmp_path, fake_network, capsys):
    noise(tmp_path / "a.png")
    assert segment(tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out") == 1
    assert "b.png: there is no such file" in capsys.readouterr().err


def test_checkpoints_of_something_else_are_refused_with_what_they_hold(tmp_path, capsys):
    picture = noise(tmp_path / "a.png")

    def refused(*arguments):
        return fails(
            capsys, picture, "--model", SMALL, "--checkpoint", tmp_path / "w.pth", "--out", tmp_path / "out", *arguments
        )

    torch.save(hf.create_model(SMALL, num_classes=7).state_dict(), tmp_path / "w.pth")
    assert "it holds an HRNet of width 16 for segmentation with 7 classes, the model is" in (line := refused())
    assert "with 19 classes" in line
    torch.save(hf.create_model(SMALL, "pose").state_dict(), tmp_path / "w.pth")
    assert "it holds an HRNet of width 16 for pose with 17 key points" in refused()
    torch.save({"weight": torch.ones(3)}, tmp_path / "w.pth")
    assert "does not fit the model" in refused()
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Dangerous()))
    assert "run code" in refused()
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_fits(tmp_path, capsys):
    torch.save(hf.create_model(SMALL, num_classes=7).state_dict(), tmp_path / "w.pth")
    arguments = [noise(tmp_path / "a.png"), "--model", SMALL, "--checkpoint", tmp_path / "w.pth", "--classes", "7"]
    assert segment(*arguments, "--align-corners", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "7 classes, align_corners=True" in printed and "random" not in printed


def test_a_converted_checkpoint_says_how_it_was_trained(tmp_path, capsys):
    """Classes, interpolation, mean and deviation are the file's; others are refused; NaN is named first."""
    model = randomize(hf.create_model(SMALL, num_classes=5).eval())
    torch.save(model.state_dict(), tmp_path / "w.pth")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    convert_checkpoint(tmp_path / "w.pth", tmp_path / "w.safetensors", align_corners=True, mean=mean, std=std)
    given = [noise(tmp_path / "a.png"), "--model", SMALL, "--checkpoint", tmp_path / "w.safetensors"]
    assert segment(*given, "--out", tmp_path / "out") == 0
    assert "5 classes, align_corners=True" in capsys.readouterr().out
    assert "holds hrnet_w18_small_v1 for segmentation with 5 classes, got 7" in fails(capsys, *given, "--classes", "7")
    assert "was trained with align_corners=True" in fails(capsys, *given, "--no-align-corners")

    network = networks.build(SMALL, "segmentation", checkpoint=tmp_path / "w.safetensors")
    pixels = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(3)) * 255).to(torch.uint8)
    same = hf.create_model(SMALL, checkpoint=tmp_path / "w.safetensors", full_resolution=False).eval()
    image = ((pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)).unsqueeze(0)
    with torch.inference_mode():
        torch.testing.assert_close(network(network.image(pixels)), same(image), rtol=1e-4, atol=1e-4)

    state = model.state_dict()
    state["conv1.weight"][0] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    assert "conv1.weight holds NaN" in fails(capsys, *given[:3], "--checkpoint", tmp_path / "w.pth", "--classes", "5")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shapes_that_come_often_are_prepared(dtype):
    """The same results before and after; a shape that comes once is not worth it."""
    model = randomize(hf.create_model(SMALL, full_resolution=False).eval()).requires_grad_(False)
    if why_not(dtype, torch.device("cpu")) is not None:
        pytest.skip(why_not(dtype, torch.device("cpu")))
    network = by_shape.ByShape(model, dtype)
    often, once = torch.randn(1, 3, 64, 96), torch.randn(1, 3, 96, 64)
    reference = model(often)
    with torch.inference_mode():
        for k in range(by_shape.OFTEN + 2):
            assert relative_error(network(often), reference) < MODEL[dtype], k
            assert (network._optimized is None) == (k < by_shape.OFTEN)
        network(once)
    assert [p.shape for p in network._optimized.preparations] == [tuple(often.shape)]


def test_what_a_killed_run_left_is_no_picture(tmp_path):
    noise(tmp_path / "a.png"), noise(tmp_path / ".b.png.x1.part" / "b.png")
    assert [item.name for item in files.find([str(tmp_path)])] == ["a"]


def test_pillow_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install 'hrnet_fast[pictures]'" in fails(capsys, tmp_path)


def test_sixteen_bits_of_32():
    assert reading._rgb(Image.new("I", (2, 2), 0x8000)).getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(BadPicture, match="neither 8 nor 16 bits"):
        reading._rgb(Image.new("I", (2, 2), 1 << 20))
