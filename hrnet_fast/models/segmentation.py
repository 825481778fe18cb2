"""HRNetV2 for semantic segmentation, as HRNet-Semantic-Segmentation (``lib/models/seg_hrnet.py``) builds it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast.models.configs import Config
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.nn import PlainSegmentationHead, SegmentationHead
from hrnet_fast.nn.plain_mode import standard_operators_wanted
from hrnet_fast.ops.exchange.api import exchange


class DenseHRNet(HRNet):
    """A backbone whose head is bilinear; what the segmentation networks share.

    Args: those of HRNet, and
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
        full_resolution: bool = True,
    ):
        # align_corners is for the head too, which is bilinear also where the exchange units are not
        super().__init__(config, in_chans, mode, align_corners and mode == "bilinear", momentum, fast)
        self.align_corners, self.full_resolution = align_corners, full_resolution

    def enlarge(self, x: Tensor, like: Tensor) -> Tensor:
        """Bilinear interpolation to the size of another tensor."""
        if torch.jit.is_scripting() or not self.fast:
            return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=self.align_corners)
        else:  # TorchScript compiles what follows a return, but not the other branch of is_scripting()
            return self._exchange(x, like)

    @torch.jit.unused
    def _exchange(self, x: Tensor, like: Tensor) -> Tensor:
        size = (like.shape[2], like.shape[3])
        if standard_operators_wanted(x):
            return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)
        return exchange([x], size=size, align_corners=self.align_corners, activation=None)


class SegmentationHRNet(DenseHRNet):
    """The backbone and the V2 head (``last_layer``), with the official code's state-dict keys.

    Args: those of DenseHRNet, and
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
        full_resolution: bool = True,
    ):
        super().__init__(config, in_chans, mode, align_corners, momentum, fast, full_resolution)
        head = SegmentationHead if fast else PlainSegmentationHead
        self.last_layer = head(config.channels(4), num_classes, align_corners=align_corners, momentum=momentum)

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, in_chans, H, W] to logits [N, num_classes, H, W], or [N, num_classes, ceil(H/4), ceil(W/4)].

        Raises:
            ValueError: wrong rank, channels or size; see HRNet.forward.
        """
        if not torch.jit.is_scripting():
            self.check_image(image)
        logits = self.last_layer(self.streams(image))
        return self.enlarge(logits, image) if self.full_resolution else logits
