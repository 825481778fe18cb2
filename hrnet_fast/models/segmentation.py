"""HRNetV2 for semantic segmentation, as HRNet-Semantic-Segmentation (``lib/models/seg_hrnet.py``) builds it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast.exchange import exchange
from hrnet_fast.models.configs import Config
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.modules import PlainSegmentationHead, SegmentationHead


class SegmentationHRNet(HRNet):
    """The backbone and the V2 head (``last_layer``), with the official code's state-dict keys.

    Args: those of HRNet, and
        num_classes: channels of the logits.
        full_resolution: bring the logits to the size of the image (bilinear), as the official code does outside of the
            model; False: leave them at a quarter of it.
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
        full_resolution: bool,
    ):
        # align_corners is for the head too, which is bilinear also where the exchange units are not
        super().__init__(config, in_chans, mode, align_corners and mode == "bilinear", momentum, fast)
        head = SegmentationHead if fast else PlainSegmentationHead
        self.last_layer = head(config.channels(4), num_classes, align_corners=align_corners, momentum=momentum)
        self.align_corners, self.full_resolution = align_corners, full_resolution

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, in_chans, H, W] to logits [N, num_classes, H, W], or [N, num_classes, ceil(H/4), ceil(W/4)].

        Raises:
            ValueError: wrong rank, channels or size; see HRNet.forward.
        """
        if not torch.jit.is_scripting():
            self.check_image(image)
        logits = self.last_layer(self.streams(image))
        if not self.full_resolution:
            return logits
        if torch.jit.is_scripting() or torch.jit.is_tracing() or not self.fast:
            return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=self.align_corners)
        else:
            return self._enlarge(logits, image)

    @torch.jit.unused
    def _enlarge(self, logits: Tensor, image: Tensor) -> Tensor:
        size = (image.shape[2], image.shape[3])
        return exchange([logits], size=size, align_corners=self.align_corners, activation=None)
