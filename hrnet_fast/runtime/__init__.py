"""Ways of running a recorded network, and ``optimize``, which picks one."""

from hrnet_fast.runtime.calibration import Calibration, calibrate
from hrnet_fast.runtime.optimized import Memory, OptimizedModel, Preparation, optimize

__all__ = ["Calibration", "Memory", "OptimizedModel", "Preparation", "calibrate", "optimize"]
