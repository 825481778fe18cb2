"""The networks of ``benchmarks.rivals``: HRNet, and those that it was published against, with what was published.

Published figures: Table 3 (Cityscapes val, GFLOPs at 1024x2048) of Wang et al., "Deep High-Resolution Representation
Learning for Visual Recognition", arXiv:1908.07919. It counts multiply-adds / 10^9: HRNetV2-W48 stands in it with 747.3,
and in the README of HRNet-Semantic-Segmentation, which divides by 2^30, with 696.2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hrnet_fast as hf
from hrnet_fast.bench import BadInput, timm_models

SOURCE = "arXiv:1908.07919, Table 3, Cityscapes val"
COUNTED_SIZE = (1024, 2048)  # of the published GFLOPs
ALIKE = 0.02  # relative difference up to which parameters and GFLOPs are the published ones
CLASSES = 19
ENCODER = "resnet101"
STRIDE = 8  # of PSPNet's dilated encoder


@dataclass(frozen=True)
class Published:
    """A row of the table."""

    backbone: str
    params: float
    gflops: float  # multiply-adds / 10^9
    miou: float  # percent


@dataclass(frozen=True)
class Network:
    """A network to measure; ``differs`` says what separates it from the published one of its name."""

    name: str
    title: str
    make: Callable[[], nn.Module]  # in plain PyTorch, randomly initialized, in evaluation
    published: Published | None
    differs: str = ""

    @property
    def is_hrnet(self) -> bool:
        """Whether it has a fast form."""
        return self.name.startswith("hrnet")


@dataclass(frozen=True)
class Count:
    """Parameters and multiply-adds of a network."""

    params: int
    multiply_adds: int

    @property
    def gflops(self) -> float:
        """As the published table counts: multiply-adds / 10^9."""
        return self.multiply_adds / 1e9


def count(network: Network, size: tuple[int, int]) -> Count:
    """What torch's FLOP counter finds for one image; on the meta device, where nothing is computed."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = network.make()
        model(torch.empty(1, 3, *size))
    return Count(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def is_published(network: Network, counted: Count) -> bool:
    """Whether parameters and GFLOPs at COUNTED_SIZE are those of the published network: only then its mIoU is shown."""
    published = network.published
    if published is None or network.differs:
        return False
    pairs = ((counted.params, published.params), (counted.gflops, published.gflops))
    return all(abs(ours / theirs - 1) <= ALIKE for ours, theirs in pairs)


def why_not_published(network: Network, counted: Count) -> str:
    """Why no mIoU stands beside a network; empty where one does."""
    published = network.published
    if is_published(network, counted):
        return ""
    if published is None:
        return network.differs
    figures = (
        f"published with {published.params / 1e6:.1f}M parameters and {published.gflops:.1f} GFLOPs "
        f"on {published.backbone}"
    )
    return f"{figures}; {network.differs}" if network.differs else figures


def _library():
    """segmentation_models_pytorch; BadInput where it cannot be imported."""
    timm_models.load()  # with what an installed torchvision that does not fit torch needs
    try:
        import segmentation_models_pytorch
    except Exception as error:  # whatever an incomplete installation raises
        lines = str(error).splitlines()
        raise BadInput(
            f"segmentation-models-pytorch cannot be imported ({lines[0] if lines else type(error).__name__}): "
            "pip install segmentation-models-pytorch"
        ) from None
    return segmentation_models_pytorch


def why_not(network: Network) -> str | None:
    """Why a network cannot be made here; None: it can."""
    if network.is_hrnet:
        return None
    try:
        _library()
    except BadInput as error:
        return str(error)
    return None


def _hrnet(name: str) -> nn.Module:
    return hf.create_model(name, task="segmentation", num_classes=CLASSES, fast=False).eval()


def _rival(architecture: str, **options) -> nn.Module:
    make = getattr(_library(), architecture)
    return make(ENCODER, encoder_weights=None, classes=CLASSES, **options).eval()


def _pspnet() -> nn.Module:
    """With the published encoder and bottleneck, where the library has an encoder of depth 3 and a 1x1 convolution."""
    model = _rival("PSPNet", encoder_depth=5)
    model.encoder.make_dilated(STRIDE)
    old = model.decoder.conv[0]
    model.decoder.conv[0] = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
    return model.eval()


NETWORKS = (
    Network("hrnet_w18", "HRNet-W18", lambda: _hrnet("hrnet_w18"), None, "the paper has no Cityscapes figure for W18"),
    Network("hrnet_w48", "HRNet-W48", lambda: _hrnet("hrnet_w48"), Published("HRNetV2-W48", 65.9e6, 747.3, 81.1)),
    Network(
        "unetplusplus",
        "UNet++",
        lambda: _rival("UnetPlusPlus"),
        Published("ResNet-101", 59.5e6, 748.5, 75.5),
        "its nested decoder is wider",
    ),
    Network(
        "deeplabv3", "DeepLabV3", lambda: _rival("DeepLabV3"), Published("dilated ResNet-101", 58.0e6, 1778.7, 78.5)
    ),
    Network(
        "deeplabv3plus",
        "DeepLabV3+",
        lambda: _rival("DeepLabV3Plus"),
        Published("dilated Xception-71", 43.5e6, 1444.6, 79.6),
        "here ResNet-101 with an output stride of 16",
    ),
    Network("pspnet", "PSPNet", _pspnet, Published("dilated ResNet-101", 65.9e6, 2017.6, 79.7)),
)
