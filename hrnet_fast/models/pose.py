"""HRNetV1 for pose estimation, as deep-high-resolution-net.pytorch (``lib/models/pose_hrnet.py``) builds it."""

import torch
from torch import Tensor, nn

from hrnet_fast.models.configs import Config
from hrnet_fast.models.hrnet import HRNet


class PoseHRNet(HRNet):
    """The backbone with the highest resolution only, and a 1x1 convolution; the official code's state-dict keys.

    Args: those of HRNet, and
        num_classes: key points.
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
        super().__init__(config, in_chans, mode, align_corners, momentum, fast, multi_scale_output=False)
        self.final_layer = nn.Conv2d(config.width, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, in_chans, H, W] to heat maps [N, num_classes, ceil(H / 4), ceil(W / 4)].

        Raises:
            ValueError: wrong rank, channels or size; see HRNet.forward.
        """
        if not torch.jit.is_scripting():
            self.check_image(image)
        return self.final_layer(self.streams(image)[0])
