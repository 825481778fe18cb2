"""Builds hrnet_fast and its compiled part.

``hrnet_fast._C`` holds the operators' schemas and the CPU kernels. It uses Python's limited API and LibTorch's stable
ABI: one build serves every Python >= 3.11 and every torch >= 2.11.

Environment:
    HRNET_FAST_NO_EXT=1  install without the compiled part; everything then runs on the reference backend
    HRNET_FAST_DEBUG=1   keep symbols and debug information
"""

import os
import platform
import re
import shlex
import shutil
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
TORCH_MIN = (2, 11)
TORCH_TARGET = "0x020b000000000000"  # LibTorch's stable ABI as of TORCH_MIN
DEBUG = os.environ.get("HRNET_FAST_DEBUG") == "1"

HOW_TO_GO_ON = """
hrnet_fast: the compiled part cannot be built: {reason}
  It needs a C++17 compiler (g++ >= 11 or clang >= 14), Python's headers and torch >= 2.11.
  On Debian and Ubuntu: apt-get install g++ python3-dev
  To install without it, on the slower reference backend: HRNET_FAST_NO_EXT=1 pip install ...
"""


def extensions():
    """The extension modules and the command that builds them; none with HRNET_FAST_NO_EXT=1."""
    if os.environ.get("HRNET_FAST_NO_EXT") == "1":
        return [], {}
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler
    except ImportError as error:
        raise SystemExit(HOW_TO_GO_ON.format(reason=f"torch cannot be imported ({error})")) from None
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < TORCH_MIN:
        raise SystemExit(HOW_TO_GO_ON.format(reason=f"torch {torch.__version__} is too old"))

    class Build(BuildExtension):
        """Says what is missing where the compiler fails."""

        def build_extensions(self):
            reason = missing(get_cxx_compiler())
            if reason is not None:
                raise SystemExit(HOW_TO_GO_ON.format(reason=reason))
            try:
                super().build_extensions()
            except Exception as error:
                raise SystemExit(HOW_TO_GO_ON.format(reason=f"{error} (see above)")) from error

    cpu = CppExtension(
        "hrnet_fast._C",
        relative(*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")),
        depends=relative(*ROOT.glob("csrc/**/*.h")),
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), ("TORCH_STABLE_ONLY", None)],
        extra_compile_args=compile_flags(),
        extra_link_args=[] if DEBUG or platform.system() != "Linux" else ["-Wl,-s"],
        py_limited_api=True,
    )
    return [cpu], {"build_ext": Build}


def missing(compiler: str) -> str | None:
    """What the build cannot do without and this machine does not have, or None."""
    program = shlex.split(compiler)[0]
    if shutil.which(program) is None:
        return f"the C++ compiler {program} is not there"
    headers = Path(sysconfig.get_path("include"))
    return None if (headers / "Python.h").is_file() else f"Python's headers are not there (no Python.h in {headers})"


def relative(*paths: Path) -> list[str]:
    """Paths as setuptools wants them, in an order that is always the same."""
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def compile_flags() -> list[str]:
    """Never -march=native: a wheel runs on any CPU, the kernels choose their instruction set at run time."""
    return [
        "-O3",
        "-g" if DEBUG else "-g0",
        "-std=c++17",
        "-fvisibility=hidden",
        "-ffp-contract=fast",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",
        "-Wno-unused-parameter",
        "-Wno-uninitialized",  # GCC's own AVX-512 header sets both off (GCC bug 105593)
        "-Wno-maybe-uninitialized",
    ]


ext_modules, cmdclass = extensions()
setup(
    ext_modules=ext_modules,
    cmdclass=cmdclass,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ext_modules else {},
)
