"""One small network per family that ``patch`` serves, what of it is patched, and sizes of images that it takes."""

import copy
import functools
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.models import randomize
from support.families import csail, nvidia, ocr_branch, official, openmmlab, simple_hrnet

MULTIPLES = ((64, 96), (224, 160))
ANY = (*MULTIPLES, (333, 517), (427, 640), (65, 33))
BLOCKS = 2 + 2 + 3 + 4  # layer1, and one module in each stage with one block per branch


class Family(NamedTuple):
    build: Callable[[], nn.Module]
    sizes: tuple[tuple[int, int], ...]
    heads: tuple[str, ...] = ()  # kinds of what is patched besides blocks and exchange units

    def kinds(self) -> Counter:
        return Counter({"exchange unit": 3, "residual block": BLOCKS, **dict.fromkeys(self.heads, 1)})

    def make(self) -> nn.Module:
        torch.manual_seed(1)
        return randomize(self.build()).eval()


FAMILIES = {
    "classification": Family(official.Network, MULTIPLES),
    "pose": Family(lambda: official.PoseNetwork("v1"), MULTIPLES),
    "segmentation-master": Family(lambda: official.MasterNetwork("v2"), ANY, ("HRNetV2",)),
    "segmentation-v1.1": Family(lambda: official.SizedNetwork("v2"), ANY, ("HRNetV2",)),
    "segmentation-aligned": Family(lambda: official.AlignedNetwork("v2"), ANY, ("HRNetV2",)),
    "segmentation-ocr": Family(lambda: ocr_branch.Network("v2"), ANY, ("HRNetV2",)),
    "nvidia": Family(nvidia.Network, ANY),
    "csail": Family(csail.Network, ANY),
    "mmdet": Family(lambda: openmmlab.Model(openmmlab.Backbone(), openmmlab.HRFPN()), MULTIPLES, ("HRFPN",)),
    "mmpose-face": Family(openmmlab.FaceBackbone, MULTIPLES),
    "mmseg": Family(lambda: openmmlab.Model(openmmlab.SegBackbone(), openmmlab.FCNHead()), ANY, ("FCN head",)),
    "simple-hrnet": Family(simple_hrnet.Network, MULTIPLES),
}


@functools.cache
def _original_and_patched(name: str) -> tuple[nn.Module, nn.Module]:
    patched = FAMILIES[name].make()
    assert hf.patch(patched).patched
    return FAMILIES[name].make(), patched


def original_and_patched(name: str) -> tuple[nn.Module, nn.Module]:
    """Copies of the two: to patch a network takes longer than most tests of it."""
    return copy.deepcopy(_original_and_patched(name))
