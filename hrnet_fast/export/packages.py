"""The packages that only exporting needs, and what is said where one is missing."""

import importlib
from types import ModuleType

EXTRA = "pip install 'hrnet_fast[export]'"


def needed(name: str) -> ModuleType:
    """The module of that name.

    Raises:
        ImportError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever an incomplete installation raises
        raise ImportError(f"exporting needs the package {name}, which cannot be imported ({error}): {EXTRA}") from error
