"""nn.Modules built on the exchange operator, with the parameters and state-dict keys of the official code."""

from hrnet_fast.nn.exchange_unit import ExchangeUnit, PlainExchangeUnit
from hrnet_fast.nn.folds import refold
from hrnet_fast.nn.hrfpn import HRFPN, PlainHRFPN
from hrnet_fast.nn.segmentation_head import PlainSegmentationHead, SegmentationHead

__all__ = [
    "HRFPN",
    "ExchangeUnit",
    "PlainExchangeUnit",
    "PlainHRFPN",
    "PlainSegmentationHead",
    "SegmentationHead",
    "refold",
]
