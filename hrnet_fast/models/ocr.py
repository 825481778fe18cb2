"""HRNet with object-contextual representations (Yuan et al. 2020), as HRNet-Semantic-Segmentation's HRNet-OCR branch
(``lib/models/seg_hrnet_ocr.py``) builds it.
"""

import torch
from torch import Tensor, nn

from hrnet_fast.models.configs import Config
from hrnet_fast.models.segmentation import DenseHRNet
from hrnet_fast.nn import PlainSegmentationHead, SegmentationHead

# MODEL.OCR of the official configurations
PIXEL_CHANNELS = 512  # MID_CHANNELS
KEY_CHANNELS = 256
DROPOUT = 0.05


def _norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def _projection(in_channels: int, *channels: int) -> nn.Sequential:
    """1x1 convolutions with BatchNorm and ReLU; keys ``K`` (convolution) and ``K + 1 . 0`` (BatchNorm)."""
    layers = []
    for c_in, c_out in zip((in_channels, *channels), channels, strict=False):
        layers += [nn.Conv2d(c_in, c_out, 1, bias=False), _norm_relu(c_out)]
    return nn.Sequential(*layers)


class ObjectRegions(nn.Module):
    """Describes each class by the mean of the pixels' features, weighted by how much they look like it (section 3.2)."""

    def forward(self, pixels: Tensor, logits: Tensor) -> Tensor:
        """Pixels [N, C, H, W] and class logits [N, K, H, W] to objects [N, C, K, 1]."""
        weights = logits.flatten(2).softmax(dim=2)
        return torch.matmul(pixels.flatten(2), weights.transpose(1, 2)).unsqueeze(3)


class ObjectAttention(nn.Module):
    """Describes each pixel by the objects that it relates to (``object_context_block``)."""

    def __init__(self, channels: int, key_channels: int):
        super().__init__()
        self.scale = key_channels**-0.5
        self.f_pixel = _projection(channels, key_channels, key_channels)
        self.f_object = _projection(channels, key_channels, key_channels)
        self.f_down = _projection(channels, key_channels)
        self.f_up = _projection(key_channels, channels)

    def forward(self, pixels: Tensor, objects: Tensor) -> Tensor:
        """Pixels [N, C, H, W] and objects [N, C, K, 1] to contexts [N, C, H, W]."""
        query = self.f_pixel(pixels)
        key, value = self.f_object(objects).flatten(2), self.f_down(objects).flatten(2)  # [N, key_channels, K]
        relation = torch.matmul(key.transpose(1, 2), query.flatten(2)) * self.scale  # [N, K, H * W]
        context = torch.matmul(value, relation.softmax(dim=1))  # [N, key_channels, H * W]
        return self.f_up(context.reshape(query.shape))


class ObjectContext(nn.Module):
    """Pixels together with their object contexts (``ocr_distri_head``)."""

    def __init__(self, channels: int, key_channels: int, dropout: float):
        super().__init__()
        self.object_context_block = ObjectAttention(channels, key_channels)
        self.conv_bn_dropout = _projection(2 * channels, channels).append(nn.Dropout2d(dropout))

    def forward(self, pixels: Tensor, objects: Tensor) -> Tensor:
        """Pixels [N, C, H, W] and objects [N, C, K, 1] to [N, C, H, W]."""
        return self.conv_bn_dropout(torch.cat([self.object_context_block(pixels, objects), pixels], 1))


class OCRHRNet(DenseHRNet):
    """The backbone, the V2 head as auxiliary classifier, and the OCR head, with the official code's state-dict keys.

    The auxiliary head is one exchange in the fast form. The 3x3 convolution beside it needs the concatenated streams.

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
        channels = config.channels(4)
        conv = nn.Conv2d(sum(channels), PIXEL_CHANNELS, 3, padding=1)
        self.conv3x3_ocr = nn.Sequential(conv, nn.BatchNorm2d(PIXEL_CHANNELS), nn.ReLU())
        self.ocr_gather_head = ObjectRegions()
        self.ocr_distri_head = ObjectContext(PIXEL_CHANNELS, KEY_CHANNELS, DROPOUT)
        self.cls_head = nn.Conv2d(PIXEL_CHANNELS, num_classes, 1)
        head = SegmentationHead if fast else PlainSegmentationHead
        self.aux_head = head(channels, num_classes, align_corners=align_corners, momentum=momentum)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image [N, in_chans, H, W] to [auxiliary logits, logits], each [N, num_classes, H, W], or a quarter of it.

        The official losses weigh the two 0.4 to 1; only the second is the network's answer.

        Raises:
            ValueError: wrong rank, channels or size; see HRNet.forward.
        """
        if not torch.jit.is_scripting():
            self.check_image(image)
        streams = self.streams(image)
        enlarged = [self.enlarge(x, streams[0]) for x in streams[1:]]
        pixels = torch.cat([streams[0]] + enlarged, 1)
        if self.fast:
            auxiliary = self.aux_head(streams)
        else:  # as the official code: on the very tensor that the 3x3 convolution takes
            auxiliary = pixels
            for layer in self.aux_head:
                auxiliary = layer(auxiliary)
        pixels = self.conv3x3_ocr(pixels)
        logits = self.cls_head(self.ocr_distri_head(pixels, self.ocr_gather_head(pixels, auxiliary)))
        if self.full_resolution:
            return [self.enlarge(auxiliary, image), self.enlarge(logits, image)]
        return [auxiliary, logits]
