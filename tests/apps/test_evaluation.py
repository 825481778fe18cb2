"""mIoU and AP: equal to scikit-learn and pycocotools to all digits, and what a set of labelled images may be."""

import contextlib
import io
import json
import math

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params
from sklearn.metrics import confusion_matrix

from hrnet_fast.apps import networks
from hrnet_fast.apps.boxes import Box
from hrnet_fast.apps.evaluation import coco, contenders, miou, people, sets, tasks
from hrnet_fast.apps.inference import probabilities
from hrnet_fast.apps.pose import KEY_POINTS
from hrnet_fast.apps.segment import Segmenter
from support.model_cases import SMALL

SIZE = (256, 192)


@pytest.fixture(scope="module")
def network():
    return networks.load(SMALL, "segmentation", num_classes=sets.Shapes.CLASSES)


def by_sklearn(labels, predicted, classes):
    """mIoU and the IoU of each class, from scikit-learn's confusion matrix."""
    counted = labels != sets.IGNORE
    matrix = confusion_matrix(labels[counted], predicted[counted], labels=range(classes))
    ious = []
    for k in range(classes):
        either = int(matrix[k].sum() + matrix[:, k].sum() - matrix[k, k])
        ious.append(int(matrix[k, k]) / either if either else math.nan)
    there = [iou for iou in ious if not math.isnan(iou)]
    return matrix.tolist(), torch.tensor(there, dtype=torch.float64).mean().item(), ious


def equal(ious, expected):
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(ious, expected, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_miou_is_scikit_learns_to_all_digits(seed):
    g = torch.Generator().manual_seed(seed)
    classes = int(torch.randint(2, 30, (), generator=g))
    occur = torch.randint(1, classes + 1, (), generator=g)  # the others do not
    labels = torch.randint(0, int(occur), (40, 31), generator=g).to(torch.uint8)
    predicted = torch.where(torch.rand(labels.shape, generator=g) < 0.7, labels, labels.flip(0))
    labels[torch.rand(labels.shape, generator=g) < 0.1] = sets.IGNORE
    matrix, mean, ious = by_sklearn(labels.flatten().numpy(), predicted.flatten().numpy(), classes)
    ours = miou.confusion(predicted, labels, classes)
    assert ours.tolist() == matrix
    assert miou.mean_iou(ours)[0] == mean
    assert equal(miou.mean_iou(ours)[1], ious)


@pytest.mark.parametrize(
    "settings", [{}, {"window": (40, 48), "scales": (0.75, 1.0), "flip": True}, {"size": (48, 64)}]
)
def test_a_measurement_is_scikit_learns_of_its_predictions(settings, network):
    source = sets.Shapes(3, (64, 80), 5)
    task = tasks.Segmentation(source, source, 3, 4, **settings)
    ticks = []
    measured = task.measure(network, lambda: ticks.append(1))
    segment = Segmenter(
        network, *(settings.get(k, d) for k, d in (("window", None), ("scales", (1.0,)), ("flip", False)))
    )
    pairs = [source.load(k) for k in range(3)]
    predicted = torch.stack([segment(task._resized(image), (64, 80)) for image, _ in pairs]).flatten()
    _, mean, ious = by_sklearn(torch.stack([mask for _, mask in pairs]).flatten().numpy(), predicted.numpy(), 4)
    assert measured.metrics == {"mIoU": mean}
    assert equal(measured.each, ious)
    assert measured.agreement == 1 and measured.rate > 0 and len(ticks) == 3
    assert task.measure(network, lambda: None).agreement == 1


def test_the_classes_are_those_of_plain_pytorch(network):
    """Of the model with its own last interpolation, and probabilities over scales and flips."""
    full = contenders._plain(network.model)
    full.full_resolution = True
    source = sets.Shapes(2, (64, 96), 3)
    same = total = 0
    for settings in ({}, {"scales": (0.5, 1.0), "flip": True}):
        segment = Segmenter(network, **settings)
        for k in range(2):
            image, _ = source.load(k)
            with torch.no_grad():
                expected = probabilities(full, network.image(image), **settings).argmax(1)[0]
            found = segment(image, (64, 96))
            same, total = same + int((found == expected).sum()), total + expected.numel()
    assert same / total > 0.999


def test_contenders(network):
    names = [c.name for c in contenders.listed(["float32", "int8"], (True, False))]
    assert names == ["plain PyTorch", "float32", "float32, no Winograd", "int8", "int8, no Winograd"]
    task = tasks.Segmentation(sets.Shapes(2, (64, 64), 1), sets.Shapes(4, (64, 64), 2), 2, 4)
    examples = task.examples(network, 3)
    assert [tuple(image.shape) for image in examples] == [(1, 3, 64, 64)] * 3
    for contender in contenders.listed(["float32", "bfloat16"], (True, False)):
        ready = contenders.prepare(contender, network, examples[0], examples)
        assert task.measure(ready.network, lambda: None).agreement > 0.95, contender


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    return folder, people.generate(folder, 12, seed=3)


def as_found(truth, noise, seed=0):
    """Key points for every box, moved by some share of the box, with scores."""
    g = torch.Generator().manual_seed(seed)
    for picture in truth.pictures:
        entries = truth.labelled(picture.number)
        points = torch.tensor([entry["keypoints"] for entry in entries], dtype=torch.float64).reshape(-1, 17, 3)
        sides = torch.tensor([box[2:4] for box in picture.boxes], dtype=torch.float64).reshape(-1, 1, 2)
        moved = torch.randn(points[..., :2].shape, generator=g, dtype=torch.float64) * noise * sides
        points = torch.cat([points[..., :2] + moved, torch.rand(points[..., 2:].shape, generator=g) * 0.7 + 0.3], 2)
        yield picture, points


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03, 0.2])
def test_ap_is_pycocotools_to_all_digits(noise, generated, tmp_path):
    folder, annotations = generated
    truth = coco.People(folder, annotations)
    results = [row for picture, points in as_found(truth, noise) for row in truth.results(picture, points, SIZE)]
    found = truth.precision(results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(annotations))
        evaluation = COCOeval(theirs, theirs.loadRes(str(tmp_path / "results.json")), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(found.values()) == evaluation.stats.tolist()
    assert noise or found["AP"] > 0.99
    assert noise < 0.2 or found["AP"] < 0.1


def test_ap_of_some_pictures_and_of_no_results(generated):
    folder, annotations = generated
    truth = coco.People(folder, annotations, limit=4)
    assert len(truth.pictures) == 4
    results = [row for picture, points in as_found(truth, 0.0) for row in truth.results(picture, points, SIZE)]
    assert truth.precision(results)["AP"] > 0.99  # the other pictures do not count as missed
    assert truth.precision([]) == dict.fromkeys(coco.STATISTICS, 0.0)


def test_constants_are_pycocotools():
    assert Params("keypoints").kpt_oks_sigmas.tolist() == pytest.approx(coco.SIGMAS, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_doubles_are_those_of_a_brute_force(seed):
    g = torch.Generator().manual_seed(seed)
    base = torch.rand(3, 17, 3, generator=g, dtype=torch.float64) * 100
    points = base[torch.randint(0, 3, (8,), generator=g)]
    points = points + torch.randn(8, 17, 3, generator=g, dtype=torch.float64) * 2
    boxes = [Box(0, 0, 50 + 5 * k, 120) for k in range(8)]
    scores = torch.rand(8, generator=g).tolist()

    def area(box):
        wide = max(box.width, box.height * 192 / 256) * 1.25
        return wide * wide * 256 / 192

    def similarity(a, b):
        total = 0.0
        for k, sigma in enumerate(coco.SIGMAS):
            squared = sum(float(points[a, k, axis] - points[b, k, axis]) ** 2 for axis in (0, 1))
            total += math.exp(-squared / (2 * sigma) ** 2 / ((area(boxes[a]) + area(boxes[b])) / 2) / 2)
        return total / len(coco.SIGMAS)

    expected = []
    for k in sorted(range(8), key=lambda k: -scores[k]):
        if all(similarity(k, other) <= 0.5 for other in expected):
            expected.append(k)
    assert coco.without_doubles(points, scores, boxes, SIZE, 0.5) == expected
    assert 1 <= len(expected) <= 8


def test_boxes_are_cut_and_people_without_key_points_left_out(tmp_path):
    path = people.generate(tmp_path, 1, (100, 120))
    content = json.loads(path.read_text())
    entry = content["annotations"][0]
    boxes = ([-10, 20, 60, 200], [5, 5, 10, 10], [5, 5, 10, 10], [5, 5, 10, 10])
    others = ({}, {"iscrowd": 1}, {"keypoints": [0] * 51}, {"area": 0})
    content["annotations"] = [
        {**entry, **other, "id": k + 1, "bbox": box} for k, (box, other) in enumerate(zip(boxes, others, strict=True))
    ]
    path.write_text(json.dumps(content))
    assert coco.People(tmp_path, path).pictures[0].boxes == [Box(0, 20, 59, 79)]
    detections = tmp_path / "boxes.json"
    detections.write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}]))
    assert coco.People(tmp_path, path, detections).pictures[0].boxes == [Box(1, 2, 30, 40, 0.5)]


def test_key_points_of_a_network_in_two_forms(generated):
    folder, annotations = generated
    network = networks.load(SMALL, "pose")
    task = tasks.KeyPoints(coco.People(folder, annotations, limit=2), SIZE)
    first = task.measure(network, lambda: None)
    assert first.agreement == 1 and set(first.metrics) == set(coco.STATISTICS)
    assert all(len(row["keypoints"]) == 3 * len(KEY_POINTS) for row in task.results)
    again = task.measure(network._replace(model=contenders._plain(network.model)), lambda: None)
    assert again.agreement > 0.95
    assert len(task.examples(network, 3)) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected COCO's annotations of people with 17 key points"),
        ('{"images": [], "annotations": [], "categories": []}', "expected COCO's annotations"),
        ('{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]}',
         "expected COCO's annotations"),
    ],
)  # fmt: skip
def test_files_that_are_not_cocos(content, said, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        coco.People(tmp_path, tmp_path / "a.json")


def test_pictures_that_are_not_there(generated, tmp_path):
    with pytest.raises(ValueError, match="12 of its 12 pictures are not there, the first: .*000000000001.png"):
        coco.People(tmp_path, generated[1])
    with pytest.raises(ValueError, match="cannot be read"):
        coco.People(tmp_path, tmp_path / "none.json")


def test_masks_are_looked_at_beforehand(tmp_path):
    for folder, size in (("images", (8, 6)), ("masks", (6, 8))):
        (tmp_path / folder / "val").mkdir(parents=True)
        Image.new("L", size).save(tmp_path / folder / "val" / "a.png")
    with pytest.raises(ValueError, match=r"a.png: 8x6 pixels, but its image has 6x8"):
        sets.Folder(tmp_path, "val", 2).check()
    (tmp_path / "masks" / "val" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a.png: cannot be read"):
        sets.Folder(tmp_path, "val", 2).check()
