"""hrnet_fast makes HRNet fast: one fused operator for its multi-resolution exchange, and what is built on it.

Only the operator is imported here; everything else is loaded on first use, so that importing the package stays cheap.
"""

import importlib
import warnings
from typing import TYPE_CHECKING

with warnings.catch_warnings():  # torch's: in an environment without NumPy every command would begin with it
    warnings.filterwarnings("ignore", "Failed to initialize NumPy: No module named 'numpy'")
    from hrnet_fast.ops.exchange.api import exchange

__version__ = "0.1.0"

# public name -> the module that defines it
_LAZY = {
    "interpolate_argmax": "hrnet_fast.ops.interpolate_argmax",
    "ExchangeUnit": "hrnet_fast.nn",
    "HRFPN": "hrnet_fast.nn",
    "SegmentationHead": "hrnet_fast.nn",
    "refold": "hrnet_fast.nn",
    "patch": "hrnet_fast.patching",
    "unpatch": "hrnet_fast.patching",
    "create_model": "hrnet_fast.models",
    "list_models": "hrnet_fast.models",
    "load_checkpoint": "hrnet_fast.checkpoints.load",
    "list_weights": "hrnet_fast.checkpoints.zoo",
    "download_weights": "hrnet_fast.checkpoints.pretrained",
    "from_pretrained": "hrnet_fast.checkpoints.hub",
    "save_pretrained": "hrnet_fast.checkpoints.hub",
    "push_to_hub": "hrnet_fast.checkpoints.hub",
    "optimize": "hrnet_fast.runtime",
    "Calibration": "hrnet_fast.runtime",
    "calibrate": "hrnet_fast.runtime",
}

__all__ = ["__version__", "exchange", *_LAZY]

if TYPE_CHECKING:  # the same names for type checkers, which read no tables; tests/test_types.py compares the two
    from hrnet_fast.checkpoints.hub import from_pretrained as from_pretrained
    from hrnet_fast.checkpoints.hub import push_to_hub as push_to_hub
    from hrnet_fast.checkpoints.hub import save_pretrained as save_pretrained
    from hrnet_fast.checkpoints.load import load_checkpoint as load_checkpoint
    from hrnet_fast.checkpoints.pretrained import download_weights as download_weights
    from hrnet_fast.checkpoints.zoo import list_weights as list_weights
    from hrnet_fast.models import create_model as create_model
    from hrnet_fast.models import list_models as list_models
    from hrnet_fast.nn import HRFPN as HRFPN
    from hrnet_fast.nn import ExchangeUnit as ExchangeUnit
    from hrnet_fast.nn import SegmentationHead as SegmentationHead
    from hrnet_fast.nn import refold as refold
    from hrnet_fast.ops.interpolate_argmax import interpolate_argmax as interpolate_argmax
    from hrnet_fast.patching import patch as patch
    from hrnet_fast.patching import unpatch as unpatch
    from hrnet_fast.runtime import Calibration as Calibration
    from hrnet_fast.runtime import calibrate as calibrate
    from hrnet_fast.runtime import optimize as optimize
else:  # hidden from type checkers: to them every attribute would exist

    def __getattr__(name: str):
        if name in _LAZY:
            value = getattr(importlib.import_module(_LAZY[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'hrnet_fast' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_LAZY})
