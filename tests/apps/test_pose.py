"""``hrnet-fast pose``: crops, key points and mirror images against the official steps, boxes of every kind, results."""

import json
import math

import pytest
import torch
from PIL import Image

import hrnet_fast as hf
from hrnet_fast.apps import boxes, networks, pose
from hrnet_fast.apps.boxes import Box, BoxFile
from hrnet_fast.apps.skeleton import LIMBS, draw
from hrnet_fast.cli import main

SMALL = "hrnet_w18_small_v1"


def official_affine(box, size):
    """The official affine matrix [2, 3] from a picture to a crop (height, width): three points that must meet."""
    w, h = box[2:]
    aspect = size[1] / size[0]
    if w > aspect * h:
        h = w / aspect
    elif w < aspect * h:
        w = h * aspect
    centre = torch.tensor([box[0] + box[2] / 2, box[1] + box[3] / 2], dtype=torch.float64)
    source_width = w / 200 * 1.25 * 200

    def points(middle, step):
        second = middle + torch.tensor([0.0, step], dtype=torch.float64)
        direction = middle - second
        return torch.stack([middle, second, second + torch.stack([-direction[1], direction[0]])])

    source = points(centre, -0.5 * source_width)
    target = points(torch.tensor([size[1] / 2, size[0] / 2], dtype=torch.float64), -0.5 * size[1])
    return torch.linalg.solve(torch.cat([source, torch.ones(3, 1, dtype=torch.float64)], 1), target).T


BOXES = [(30.0, 20.0, 40.0, 90.0), (-15.0, 10.0, 100.0, 30.0), (50.5, 40.25, 20.0, 26.5), (100.0, 60.0, 80.0, 90.0)]


@pytest.mark.parametrize("size", pose.SIZES, ids=str)
@pytest.mark.parametrize("box", BOXES, ids=str)
def test_crops_are_the_official_affine_transform(box, size):
    pixels = (torch.rand(3, 100, 130, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    (region,) = pose.regions(torch.tensor([box], dtype=torch.float64), size).tolist()
    found = pose.crop(pixels, region, size)
    matrix = official_affine(box, size)
    inverse = torch.linalg.inv(matrix[:, :2])
    padded = torch.zeros(3, 104, 134, dtype=torch.float64)  # black around, wide enough for both taps
    padded[:, 2:102, 2:132] = pixels.double()
    for v, u in ((0, 0), (7, 3), (size[0] // 2, size[1] // 2), (size[0] - 1, size[1] - 1), (100, 60), (33, 150)):
        x, y = (inverse @ (torch.tensor([u, v], dtype=torch.float64) - matrix[:, 2])).tolist()
        expected = torch.zeros(3, dtype=torch.float64)
        if -1 < x < 130 and -1 < y < 100:
            i, j = math.floor(x), math.floor(y)
            for dj, di in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(x - i - di)) * (1 - abs(y - j - dj))
                expected += weight * padded[:, j + dj + 2, i + di + 2]
        torch.testing.assert_close(found[:, v, u].double(), expected, rtol=0, atol=0.05)


def test_a_crop_outside_of_the_picture_is_black():
    pixels = torch.full((3, 10, 10), 200, dtype=torch.uint8)
    assert pose.crop(pixels, [500.0, 500.0, 20.0], (256, 192)).eq(0).all()
    assert pose.crop(torch.full((3, 1, 1), 200, dtype=torch.uint8), [0.0, 0.0, 192.0], (256, 192)).max() == 200


def official_locate(maps):
    """get_final_preds up to the coordinates, for one person, as loops."""
    points, values = [], []
    for m in maps:
        height, width = m.shape
        at = int(m.flatten().argmax())
        x, y, value = at % width, at // width, float(m.flatten()[at])
        if value <= 0:
            x = y = 0
        found = [float(x), float(y)]
        if 1 < x < width - 1 and 1 < y < height - 1:
            steps = (float(m[y, x + 1] - m[y, x - 1]), float(m[y + 1, x] - m[y - 1, x]))
            found = [p + 0.25 * ((step > 0) - (step < 0)) for p, step in zip(found, steps, strict=True)]
        points.append(found)
        values.append(value)
    return torch.tensor(points), torch.tensor(values)


def test_maxima_move_a_quarter_of_a_pixel_as_in_the_official_code():
    maps = torch.randn(6, 17, 16, 12, generator=torch.Generator().manual_seed(3))
    maps[1, 2] = -1.0  # nothing above 0
    for k, (y, x) in enumerate(((0, 0), (1, 1), (1, 5), (2, 2), (14, 10), (15, 11), (13, 9), (5, 1), (5, 11))):
        maps[2, k, y, x] = 9.0
    maps[3] = 0.5  # flat: the first pixel
    for person in maps:
        points, values = pose.locate(person[None])
        expected = official_locate(person)
        assert torch.equal(points[0], expected[0]) and torch.equal(values[0], expected[1])


class Painter(networks.Network):
    """In place of a network: the heat map of key point k has its peak where a strip of rows is brightest."""

    def __call__(self, images):
        grey = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)
        maps = grey.repeat(1, self.num_classes, 1, 1) - grey.amin((2, 3), keepdim=True)
        rows = torch.arange(maps.shape[2]).view(-1, 1)
        for k in range(self.num_classes):
            maps[:, k] *= (rows * self.num_classes // maps.shape[2] == k).float()
        return maps


def painter():
    return Painter(torch.nn.Identity(), 17, False, torch.float32, torch.device("cpu"), False)


@pytest.mark.parametrize("size", pose.SIZES, ids=str)
def test_a_bright_spot_is_found_where_it_is(size):
    pixels = torch.zeros(3, 400, 300, dtype=torch.uint8)
    box, spot = (60.0, 50.0, 150.0, 250.0), (141, 203)
    pixels[:, spot[1] - 4 : spot[1] + 5, spot[0] - 4 : spot[0] + 5] = 255
    found = pose.PoseEstimator(painter(), size, flip=False)(pixels, [box, (0.0, 0.0, 300.0, 400.0)])
    assert found.shape == (2, 17, 3)
    for person in found:
        x, y, _ = person[person[:, 2].argmax()].tolist()
        assert abs(x - spot[0]) < 8 and abs(y - spot[1]) < 8  # a heat map's pixel is 4 of the crop's


def test_the_mirror_image_swaps_sides_and_is_shifted():
    """Against the official steps written out: flip_back with pairs, SHIFT_HEATMAP, mean."""
    network = networks.build(SMALL, "pose")
    pixels = (torch.rand(3, 120, 90, generator=torch.Generator().manual_seed(4)) * 255).to(torch.uint8)
    box = (10.0, 5.0, 70.0, 100.0)
    found = pose.PoseEstimator(network)(pixels, [box])[0]
    where = pose.regions(torch.tensor([box], dtype=torch.float64), (256, 192))[0].tolist()
    image = network.image(pose.crop(pixels, where, (256, 192)))
    with torch.inference_mode():
        maps, other = network(image)[0], network(image.flip(3))[0].flip(2)
    other = other.clone()
    for left, right in ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)):
        other[[left, right]] = other[[right, left]]
    other[:, :, 1:] = other[:, :, :-1].clone()
    points, values = official_locate((maps + other) / 2)
    matrix = official_affine(box, (64, 48))
    expected = (points.double() - matrix[:, 2]) @ torch.linalg.inv(matrix[:, :2]).T
    torch.testing.assert_close(found[:, :2], expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(found[:, 2], values.double(), rtol=1e-5, atol=1e-5)


def test_batches_make_no_difference():
    pixels = (torch.rand(3, 120, 90, generator=torch.Generator().manual_seed(4)) * 255).to(torch.uint8)
    one, many = (
        pose.PoseEstimator(painter(), batch=n)(pixels, [(10 * k, 5, 40, 80) for k in range(5)]) for n in (1, 3)
    )
    assert torch.equal(one, many) and pose.PoseEstimator(painter())(pixels, []).shape == (0, 17, 3)


def test_tables_of_key_points():
    for k, name in enumerate(pose.KEY_POINTS):
        sides = {"left": "right", "right": "left"}
        side, _, rest = name.partition("_")
        assert pose.KEY_POINTS[pose.MIRRORED[k]] == (f"{sides[side]}_{rest}" if side in sides else name)
    assert len(LIMBS) == 19 and {k for limb in LIMBS for k in limb} == set(range(17))


def test_scores_of_people():
    assert pose.person_score([0.1, 0.5, 0.9], 0.5) == pytest.approx(0.35)
    assert pose.person_score([0.1, 0.2]) == 0.0


def test_drawing():
    photograph = Image.new("RGB", (60, 80), (10, 20, 30))
    points = [[30.0, 40.0, 1.0]] + [[5.0, 5.0, 0.1]] * 16
    drawn = draw(photograph, [points], [Box(2, 2, 50, 70)], 0.2)
    assert drawn.size == photograph.size
    assert drawn.getpixel((30, 40)) != (10, 20, 30) and drawn.getpixel((5, 5)) == (10, 20, 30)
    assert drawn.getpixel((2, 30)) == (255, 255, 255)
    assert draw(photograph, [], [], 0.2).tobytes() == photograph.tobytes()


def test_boxes_as_text():
    assert boxes.parse("1,2.5,30,40") == Box(1, 2.5, 30, 40)
    for text in ("1,2,3", "a,b,c,d", "1,2,0,4", "1,2,3,-4", "nan,2,3,4", "1,2,inf,4", ""):
        with pytest.raises(ValueError, match="box "):
            boxes.parse(text)


FILES = {
    "annotations": {
        "images": [{"id": 7, "file_name": "train/a.png"}, {"id": 8, "file_name": "b.png"}],
        "annotations": [
            {"image_id": 7, "bbox": [1, 2, 3, 4], "category_id": 1, "iscrowd": 0},
            {"image_id": 8, "bbox": [9, 9, 9, 9]},
            {"image_id": 7, "bbox": [5, 5, 5, 5], "category_id": 2},
            {"image_id": 7, "bbox": [6, 6, 6, 6], "iscrowd": 1},
        ],
    },
    "detections": [
        {"image_id": "a.png", "bbox": [1, 2, 3, 4], "score": 1.0, "category_id": 1},
        {"image_id": 12, "bbox": [9, 9, 9, 9], "score": 0.5},
    ],
    "file_name": [{"file_name": "a.png", "bbox": [1, 2, 3, 4]}],
    "by name": {"a.png": [[1, 2, 3, 4]], "b.png": [[9, 9, 9, 9]]},
    "all pictures": [[1, 2, 3, 4]],
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_box_files(tmp_path, content):
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    assert BoxFile(tmp_path / "boxes.json").of(tmp_path / "a.png") == [Box(1, 2, 3, 4)]


def test_coco_pictures_are_found_by_their_number(tmp_path):
    (tmp_path / "boxes.json").write_text(json.dumps([{"image_id": 42, "bbox": [1, 2, 3, 4], "score": 0.25}]))
    found = BoxFile(tmp_path / "boxes.json")
    for name in ("000000000042.jpg", "COCO_val2014_000000000042.jpg"):
        assert found.of(tmp_path / name) == [Box(1, 2, 3, 4, 0.25)]
    assert found.of(tmp_path / "000000000043.jpg") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("3", "expected boxes in COCO's layout, found int"),
        ('{"a.png": 3}', "'a.png': expected a list of boxes"),
        ('{"a.png": [[1, 2, 3]]}', r"'a.png'\[0\]: expected a box of 4 numbers"),
        ('[{"image_id": 1}]', r"\[0\]: expected a box of 4 numbers"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, "4"]}]', "expected a box of 4 numbers"),
        (
            '{"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}',
            r"annotations\[0\]: expected an object with the image_id",
        ),
        (None, "cannot be read"),
    ],
)
def test_wrong_box_files(tmp_path, text, message):
    if text is not None:
        (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        BoxFile(tmp_path / "boxes.json")


@pytest.fixture
def picture(tmp_path):
    Image.effect_noise((90, 120), 90).convert("RGB").save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def fake_network(monkeypatch):
    monkeypatch.setattr(networks, "build", lambda *a, **k: painter())


def run(*arguments) -> int:
    return main(["pose", *map(str, arguments)])


def test_a_picture_becomes_a_drawing_and_json(tmp_path, picture, capsys):
    out = tmp_path / "out"
    assert run(picture, "--boxes", "10,10,50,90", "30,5,20,40", "--model", SMALL, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "random" in printed and "1 of 1 pictures" in printed
    found = json.loads((out / "a_pose.json").read_text())
    assert (found["file_name"], found["width"], found["height"]) == ("a.png", 90, 120)
    assert "random" in found["weights"] and found["keypoint_names"][0] == "nose"
    assert [person["bbox"] for person in found["people"]] == [[10, 10, 50, 90], [30, 5, 20, 40]]
    assert all(len(person["keypoints"]) == 51 for person in found["people"])
    with Image.open(out / "a_pose.png") as drawn:
        assert drawn.size == (90, 120)
    assert run(picture, "--boxes", "10,10,50,90", "--model", SMALL, "--out", out) == 1
    assert "exists already" in capsys.readouterr().err


def test_without_boxes_the_whole_picture_is_one(tmp_path, picture, fake_network):
    assert run(picture, "--out", tmp_path / "out") == 0
    (person,) = json.loads((tmp_path / "out" / "a_pose.json").read_text())["people"]
    assert person["bbox"] == [0, 0, 90, 120]


def test_boxes_that_cannot_be_used_are_named(tmp_path, picture, fake_network, capsys):
    Image.new("RGB", (30, 30)).save(tmp_path / "b.png")
    (tmp_path / "boxes.json").write_text(json.dumps({"a.png": [[10, 10, 50, 90], [1, 1, 0, 5]]}))
    assert run(picture, tmp_path / "b.png", "--boxes", tmp_path / "boxes.json", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "b.png: " in error and "has no box of it" in error
    assert "left out " in error and "'a.png'[1]: width and height must be above 0" in error
    assert run(picture, "--boxes", "500,500,10,10", "--out", tmp_path / "out2") == 1
    assert "the box 500,500,10,10 does not touch its 90x120 pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--boxes", "1,2,3"], "expected X,Y,WIDTH,HEIGHT"),
        (["--boxes", "none.json"], "none.json: cannot be read"),
        (["--boxes", "1,2,3,4", "none.json"], "expected boxes, or one file"),
        (["--size", "64x64"], "invalid choice: '64x64'"),
        (["--batch", "0"], "batch 0: must be at least 1"),
        (["--threshold", "nan"], "threshold nan"),
        (["b.png", "--boxes", "1,2,3,4"], "given for one picture, and there are 2"),
    ],
)
def test_wrong_arguments(tmp_path, picture, fake_network, capsys, arguments, message):
    assert run(picture, *arguments, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_checkpoint_of_another_task_is_refused(tmp_path, picture, capsys):
    torch.save(hf.create_model(SMALL).state_dict(), tmp_path / "w.pth")
    assert run(picture, "--model", SMALL, "--checkpoint", tmp_path / "w.pth") == 2
    assert "it holds an HRNet of width 16 for segmentation with 19 classes" in capsys.readouterr().err
