"""The classes of a picture's pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.apps.inference import one_window, probabilities
from hrnet_fast.apps.networks import Network
from hrnet_fast.apps.pictures import BadPicture
from hrnet_fast.ops.exchange.api import exchange
from hrnet_fast.ops.interpolate_argmax import interpolate_argmax


@dataclass(frozen=True)
class Segmenter:
    """How pictures become class maps.

    Seen once and whole, a picture's scores at a quarter of the network's input go through ``interpolate_argmax``
    straight to the picture's size. Windows, scales and flips need probabilities at the network's input size.
    """

    network: Network
    window: tuple[int, int] | None = None  # (height, width) in pixels; None: whole
    scales: Sequence[float] = (1.0,)
    flip: bool = False

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Classes [H, W] on the CPU, uint8 or, of more than 256, int32.

        Args:
            pixels: [3, h, w] in uint8.
            size: (H, W) of the result.

        Raises:
            BadPicture: the network's scores are not finite.
        """
        network, image = self.network, self.network.image(pixels)
        dtype = torch.uint8 if network.num_classes <= 256 else torch.int32
        if tuple(self.scales) == (1.0,) and not self.flip and one_window(image.shape[2:], self.window):
            scores, corners = network(image), network.align_corners
        else:
            scores, corners = probabilities(self._full, image, self.window, self.scales, self.flip), False
        if not scores.sum(dtype=torch.float32).isfinite():  # NaN and Inf do not cancel
            raise BadPicture("the network's scores are not finite; --dtype float32 may help")
        return interpolate_argmax(scores, size, align_corners=corners, dtype=dtype)[0].cpu()

    def _full(self, image: Tensor) -> Tensor:
        """Scores at the image's size, as the model itself makes them with full_resolution=True."""
        size = (image.shape[2], image.shape[3])
        return exchange([self.network(image)], size=size, align_corners=self.network.align_corners, activation=None)
