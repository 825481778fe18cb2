"""Compiles a Triton kernel for a GPU that is not there, from the very arguments of a launch on meta tensors."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NAMES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int32: "*i32",
}
OPTIONS = ("num_warps", "num_stages")


class Resources(NamedTuple):
    """What one thread and one program of a compiled kernel take."""

    registers: int
    stack: int  # bytes, where spilled registers lie
    shared: int  # bytes


def compile_for(kernel, positional, constants, target: GPUTarget):
    """The compiled kernel, with pointers aligned to 16 bytes as torch's allocations are."""
    options = {name: constants[name] for name in OPTIONS if name in constants}
    names = kernel.arg_names
    signature, values, attributes = {}, {}, {}
    for index, (name, value) in enumerate(zip(names, positional)):
        signature[name] = _signature(value, (index,), values, attributes)
    for name in names[len(positional) :]:
        signature[name] = "constexpr"
        values[names.index(name),] = constants[name]
    source = ASTSource(kernel, signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=target, options=options)


def _signature(value, path, values, attributes):
    if isinstance(value, tuple):
        return tuple(_signature(item, (*path, i), values, attributes) for i, item in enumerate(value))
    if value is None:
        values[path] = None
        return "constexpr"
    if isinstance(value, Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return NAMES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def machine_code(compiled, folder: Path) -> str:
    """The instructions, as the tool that comes with Triton prints them."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return subprocess.run([tool, cubin], capture_output=True, text=True, check=True).stdout


def resources(compiled, folder: Path) -> Resources:
    """Read from the machine code by the tool that comes with Triton."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return Resources(found["REG"], found["STACK"] + found["LOCAL"], compiled.metadata.shared)
