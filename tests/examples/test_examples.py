"""The programs under examples/ run, and are what they say."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example(timm):
    spec = importlib.util.spec_from_file_location("detection_torchvision", EXAMPLES / "detection_torchvision.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def greedy_nms(boxes, scores, threshold):
    """What torchvision.ops.nms computes, for machines where its compiled form cannot be loaded."""
    from torchvision.ops import box_iou

    kept = []
    for i in scores.argsort(descending=True).tolist():
        if not kept or box_iou(boxes[i : i + 1], boxes[kept]).max() <= threshold:
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long)


@pytest.fixture
def operators(monkeypatch):
    from torchvision import extension
    from torchvision.ops import boxes

    if not extension._has_ops():
        monkeypatch.setattr(boxes, "nms", greedy_nms)
        # RoIAlign has a form in Python, which torchvision would first compile
        roi_align = sys.modules["torchvision.ops.roi_align"]
        monkeypatch.setattr(roi_align, "_roi_align", roi_align._roi_align.__wrapped__)


@pytest.mark.parametrize(("name", "millions"), [("w18", 26.2), ("w32", 45.0), ("w40", 60.5), ("w48", 79.4)])
def test_faster_rcnn_has_the_published_parameters(example, name, millions):
    """HRNet-Object-Detection's table, whose millions are 2**20 (how it rounds them is not said)."""
    with torch.device("meta"):
        model = example.faster_rcnn(f"hrnet_{name}")
    assert sum(p.numel() for p in model.parameters()) / 2**20 == pytest.approx(millions, rel=3e-3)


def test_faster_rcnn_detects_and_trains(example, operators):
    model = example.faster_rcnn("hrnet_w18_small_v1", num_classes=3, min_size=64, max_size=128,
                                rpn_pre_nms_top_n_test=20, rpn_pre_nms_top_n_train=20)  # fmt: skip
    images = [torch.rand(3, 64, 90), torch.rand(3, 100, 64)]
    with torch.no_grad():
        found = model.eval()(images)
    for image, result in zip(images, found, strict=True):
        height, width = image.shape[1:]
        assert result["boxes"].shape[1:] == (4,) and len(result["boxes"]) == len(result["scores"])
        assert (result["boxes"] <= torch.tensor([width, height, width, height])).all()
    targets = [{"boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]), "labels": torch.tensor([1])} for _ in images]
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert all(p.grad is not None for p in model.backbone.body.neck.reduction_conv.parameters())


def test_the_example_runs_as_a_program(example, operators, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["detection_torchvision.py", "--model", "hrnet_w18_small_v1", "--size", "64"])
    example.main()
    assert "hrnet_w18_small_v1: 19," in capsys.readouterr().out
