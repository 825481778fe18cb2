"""HRNetV2p in torchvision's Faster R-CNN: ``python examples/detection_torchvision.py``.

Needs torchvision beside the torch that is installed (``pip install torchvision``; torch 2.13 goes with 0.28). The
weights are random: for those of a detector of HRNet-Object-Detection or mmdet hand its file to ``faster_rcnn`` as
``checkpoint``, from which backbone and pyramid are loaded.
"""

import argparse
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import hrnet_fast as hf

LEVELS = ("0", "1", "2", "3", "4")


class Backbone(nn.Module):
    """The five levels under names, as torchvision's detectors take them."""

    def __init__(self, name: str, **kwargs):
        super().__init__()
        self.body = hf.create_model(name, task="detection", **kwargs)
        self.out_channels = self.body.out_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(zip(LEVELS, self.body(images), strict=True))


def faster_rcnn(name: str = "hrnet_w18", num_classes: int = 81, checkpoint: str | None = None, **kwargs) -> FasterRCNN:
    """Faster R-CNN with anchors and pooling of HRNet-Object-Detection's ``faster_rcnn_hrnetv2p_*`` configurations.

    Args:
        name: one of ``hrnet_fast.list_models()``.
        num_classes: with the background, which is class 0; 81: COCO's.
        checkpoint: a detector's file, for backbone and pyramid.
        kwargs: for FasterRCNN.
    """
    anchors = AnchorGenerator(sizes=((32,), (64,), (128,), (256,), (512,)), aspect_ratios=((0.5, 1.0, 2.0),) * 5)
    regions = MultiScaleRoIAlign(featmap_names=LEVELS[:4], output_size=7, sampling_ratio=2)
    # FasterRCNN pads images to multiples of 32, which is what the nearest exchange units ask for
    return FasterRCNN(
        Backbone(name, checkpoint=checkpoint), num_classes, rpn_anchor_generator=anchors, box_roi_pool=regions, **kwargs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Faster R-CNN with HRNetV2p and random weights, on a random image.")
    parser.add_argument("--model", default="hrnet_w18", help="one of hrnet_fast.list_models()")
    parser.add_argument("--size", type=int, default=256, help="shorter side of the image in pixels, at least 64")
    arguments = parser.parse_args()
    model = faster_rcnn(arguments.model, min_size=arguments.size, max_size=4 * arguments.size).eval()
    image = torch.rand(3, arguments.size, arguments.size * 3 // 2)
    with torch.inference_mode():
        (found,) = model([image])
    print(f"{arguments.model}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(found['boxes'])} boxes")


if __name__ == "__main__":
    main()
