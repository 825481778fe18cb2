"""nn.Modules built on the exchange operator, with the parameters and state-dict keys of the official code."""

from hrnet_fast.folding import refold
from hrnet_fast.modules.exchange_unit import ExchangeUnit, PlainExchangeUnit
from hrnet_fast.modules.heads import PlainSegmentationHead, SegmentationHead
from hrnet_fast.modules.hrfpn import HRFPN, PlainHRFPN

__all__ = [
    "HRFPN",
    "ExchangeUnit",
    "PlainExchangeUnit",
    "PlainHRFPN",
    "PlainSegmentationHead",
    "SegmentationHead",
    "refold",
]
