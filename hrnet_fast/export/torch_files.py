"""PyTorch's own formats: programs of torch.export, and packages that AOTInductor has compiled."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from hrnet_fast.export.metadata import AOTI_KEY, PROGRAM_FILE
from hrnet_fast.export.record import Recorded


def write_program(recorded: Recorded, path: Path, metadata: Mapping[str, str]) -> None:
    """A program for ``torch.export.load``: PyTorch's own operators, which any torch of that version or newer runs."""
    torch.export.save(recorded.program, path, extra_files={PROGRAM_FILE: json.dumps(dict(metadata))})


def write_package(recorded: Recorded, path: Path, metadata: Mapping[str, str]) -> None:
    """A package for ``torch._inductor.aoti_load_package``, and for LibTorch without Python.

    Compiled for the device that the network is on; on CPUs for the instructions of this machine.

    Raises:
        ValueError: Inductor cannot compile it, for want of a C++ compiler for instance.
    """
    from torch._inductor import aoti_compile_and_package

    settings = {"aot_inductor.metadata": {AOTI_KEY: json.dumps(dict(metadata))}}
    try:
        with torch.no_grad():
            aoti_compile_and_package(recorded.program, package_path=str(path), inductor_configs=settings)
    except Exception as error:  # whatever Inductor and the compiler that it calls make of it
        lines = (str(error) or type(error).__name__).strip().splitlines()
        raise ValueError(f"model: AOTInductor cannot compile it ({lines[0]})") from error
