"""The ordered table of backends, and the choice among them.

Each backend is a module with two functions: ``why_not(call) -> str | None`` says why it cannot serve a call (None: it
can; ``why_not(None)`` asks about the machine alone), and ``run(call) -> Tensor`` serves it.
"""

import os
from types import ModuleType

from hrnet_fast.backends import cpu, reference
from hrnet_fast.call import ExchangeCall

# First come, first served: "auto" takes the first that has no objection.
TABLE: dict[str, ModuleType] = {"cpu": cpu, "reference": reference}


def choose(call: ExchangeCall, name: str = "auto") -> ModuleType:
    """The backend that serves ``call``.

    Raises:
        ValueError: ``name`` is not in the table.
        RuntimeError: the named backend cannot serve the call.
    """
    argument = "backend"
    if name == "auto":
        name, argument = os.environ.get("HRNET_FAST_BACKEND") or "auto", "HRNET_FAST_BACKEND"
    if name == "auto":
        for module in TABLE.values():
            if module.why_not(call) is None:
                return module
    if name not in TABLE:
        raise ValueError(f"{argument}: expected 'auto' or one of {', '.join(map(repr, TABLE))}, got {name!r}")
    reason = TABLE[name].why_not(call)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot serve this call: {reason}")
    return TABLE[name]
