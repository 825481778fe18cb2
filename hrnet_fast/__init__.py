"""hrnet_fast makes HRNet fast: one fused operator for its multi-resolution exchange, and what is built on it.

Only the operator is imported here; everything else is loaded on first use, so that importing the package stays cheap.
"""

import importlib

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
    "optimize": "hrnet_fast.runtime",
    "Calibration": "hrnet_fast.runtime",
    "calibrate": "hrnet_fast.runtime",
}

__all__ = ["__version__", "exchange", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'hrnet_fast' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_LAZY})
