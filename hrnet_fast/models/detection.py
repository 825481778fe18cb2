"""HRNetV2p for detection, as HRNet-Object-Detection (``mmdet/models/necks/hrfpn.py``) and mmdet build it."""

import torch
from torch import Tensor

from hrnet_fast.models.configs import Config
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.nn import HRFPN, PlainHRFPN
from hrnet_fast.ops.transforms import traced

LEVELS = 5


class DetectionHRNet(HRNet):
    """The backbone and its feature pyramid (``neck``): what detectors of torchvision or OpenMMLab are built on.

    ``out_channels`` are the channels of every level, where torchvision's detectors look for them.
    """

    def __init__(self, config: Config, in_chans: int, mode: str, align_corners: bool, momentum: float, fast: bool):
        super().__init__(config, in_chans, mode, align_corners, momentum, fast)
        self.out_channels = 256
        self.neck = (HRFPN if fast else PlainHRFPN)(config.channels(4), self.out_channels, LEVELS)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image [N, in_chans, H, W] to five levels [N, 256, H / (4 << i), W / (4 << i)].

        A quarter of each side, rounded up, must be a multiple of 8 and at least 16, whatever the upsampling of the
        exchange units: the official pyramid, too, enlarges by powers of two.

        Raises:
            ValueError: wrong rank, channels or size.
        """
        if not torch.jit.is_scripting():
            self.check_image(image)
        return self.neck(self.streams(image))

    def check_image(self, image: Tensor) -> None:
        """Raise the ValueErrors of ``forward``."""
        super().check_image(image)
        if traced():  # sizes are tensors there
            return
        for side, name in ((image.shape[2], "height"), (image.shape[3], "width")):
            quarter = (side + 3) // 4
            if quarter % 8 or quarter < 2 ** (LEVELS - 1):
                raise ValueError(f"image: {name} {side} does not suit the feature pyramid; use a multiple of 32, at "
                                 "least 64")  # fmt: skip
