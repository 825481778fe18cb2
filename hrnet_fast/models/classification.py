"""HRNet for classification, as HRNet-Image-Classification (``lib/models/cls_hrnet.py``) and timm build it."""

import itertools

import torch
from torch import Tensor, nn

from hrnet_fast.models.configs import Config
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.nn.residual_blocks import EXPANSION

BOTTLENECKS = (32, 64, 128, 256)  # of the head, before their expansion by 4
FEATURES = 2048


class ClassificationHRNet(HRNet):
    """The backbone and the classification head, with the official code's (and timm's) state-dict keys.

    Each stream goes through a bottleneck (``incre_modules``) to 128, 256, 512 or 1024 channels; from the highest
    resolution on, strided convolutions (``downsamp_modules``) lead down and are added; ``final_layer`` leads to 2048
    channels, whose means are classified.

    Args: those of HRNet, and
        num_classes: channels of the logits.
    """

    def __init__(
        self,
        config: Config,
        in_chans: int,
        mode: str,
        align_corners: bool,
        momentum: float,
        fast: bool,
        num_classes: int,
    ):
        super().__init__(config, in_chans, mode, align_corners, momentum, fast)

        convolution, bottleneck = self.parts.convolution, self.parts.bottleneck
        wide = [c * EXPANSION for c in BOTTLENECKS]
        self.incre_modules = nn.ModuleList(
            nn.Sequential(bottleneck(c_in, c, momentum)) for c_in, c in zip(config.channels(4), BOTTLENECKS)
        )
        self.downsamp_modules = nn.ModuleList(
            convolution(c_in, c_out, momentum, kernel_size=3, stride=2, padding=1)
            for c_in, c_out in itertools.pairwise(wide)
        )
        self.final_layer = convolution(wide[-1], FEATURES, momentum, kernel_size=1)
        self.classifier = nn.Linear(FEATURES, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, in_chans, H, W] to logits [N, num_classes].

        Raises:
            ValueError: wrong rank, channels or size; see HRNet.forward.
        """
        if not torch.jit.is_scripting():
            self.check_image(image)
        streams = self.streams(image)
        for k, widen in enumerate(self.incre_modules):
            streams[k] = widen(streams[k])
        y = streams[0]
        for k, lead_down in enumerate(self.downsamp_modules):
            y = streams[k + 1] + lead_down(y)
        return self.classifier(self.final_layer(y).mean((2, 3)))
