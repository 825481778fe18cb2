"""Builds hrnet_fast and its compiled part.

``hrnet_fast._C`` holds the operators' schemas and the CPU kernels. It uses Python's limited API and LibTorch's stable
ABI: one build serves every Python >= 3.11 and every torch >= 2.11. ``hrnet_fast._C_cuda`` holds the CUDA kernels, in
the same way. It is built where torch is a CUDA build and the toolkit is there, whether a GPU is or not.

Environment:
    HRNET_FAST_NO_EXT=1   install without the compiled part; everything then runs on the reference backend
    HRNET_FAST_NO_CUDA=1  leave out the CUDA kernels
    HRNET_FAST_DEBUG=1    keep symbols and debug information
    HRNET_FAST_SANITIZE   "all": AddressSanitizer and UndefinedBehaviorSanitizer, for `make sanitize`; "quick": what of
                          them compiles in a quarter of the time
    TORCH_CUDA_ARCH_LIST  the GPUs to compile for, such as 9.0; default: all from 7.5 on
    HRNET_FAST_URL        where the repository is, such as https://example.org/hrnet_fast: links of the package's page
"""

import os
import platform
import re
import runpy
import shlex
import shutil
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
TORCH_MIN = (2, 11)
TORCH_TARGET = "0x020b000000000000"  # LibTorch's stable ABI as of TORCH_MIN
TOOLKIT = runpy.run_path(str(ROOT / "csrc" / "cuda" / "toolkit.py"))
SANITIZERS = {
    "": [],
    "all": ["-fsanitize=address,undefined", "-g"],
    # Checks are calls, not code; what C++ leaves undefined ends the process without a word.
    "quick": [
        "-fsanitize=address,signed-integer-overflow,shift,bounds,integer-divide-by-zero,alignment,float-cast-overflow",
        "-fsanitize-undefined-trap-on-error",
        "--param=asan-instrumentation-with-call-threshold=0",
    ],
}[os.environ.get("HRNET_FAST_SANITIZE", "")]
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
    toolkit = TOOLKIT["find"]()
    if toolkit is not None:
        os.environ["CUDA_HOME"] = str(toolkit)  # torch guesses from the place of nvcc, which may be a script elsewhere
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

    common = {
        "depends": relative(*ROOT.glob("csrc/**/*.h")),
        "define_macros": [("TORCH_TARGET_VERSION", TORCH_TARGET), ("TORCH_STABLE_ONLY", None)],
        "extra_link_args": link_flags(),
        "py_limited_api": True,
    }
    sources = relative(*(path for folder in cpu_folders() for path in folder.glob("*.cpp")))
    modules = [CppExtension("hrnet_fast._C", sources, extra_compile_args=compile_flags(), **common)]
    reason = why_not_cuda(torch.version.cuda, toolkit)
    if reason is None:
        modules.append(cuda_extension(toolkit, common))
    else:
        print(f"hrnet_fast: built without CUDA kernels: {reason}")
    return modules, {"build_ext": Build}


def cpu_folders() -> list[Path]:
    """The place of the sources that this processor can run: csrc/cpu/x86_64, csrc/cpu/aarch64, or none of them."""
    machine = platform.machine().lower()
    architecture = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return [ROOT / "csrc", ROOT / "csrc" / "cpu", ROOT / "csrc" / "cpu" / architecture]


def why_not_cuda(torch_cuda: str | None, toolkit: Path | None) -> str | None:
    """Why the CUDA kernels are not built, or None."""
    if os.environ.get("HRNET_FAST_NO_CUDA") == "1":
        return "HRNET_FAST_NO_CUDA=1"
    if torch_cuda is None:
        return "this torch is not a CUDA build"
    if toolkit is None:
        return "there is no CUDA toolkit (a folder with include/cuda_runtime.h and bin/nvcc; CUDA_HOME names it)"
    found = TOOLKIT["version"](toolkit)
    if found[0] != int(torch_cuda.partition(".")[0]):
        return f"the CUDA toolkit is {found[0]}.{found[1]}, and torch was built with {torch_cuda}"
    return None


def cuda_extension(toolkit: Path, common: dict):
    """The CUDA kernels. The CUDA runtime is linked statically: which one torch brings does not matter then."""
    from torch.utils.cpp_extension import CUDAExtension

    targets = [] if os.environ.get("TORCH_CUDA_ARCH_LIST") else TOOLKIT["target_flags"](toolkit)
    extension = CUDAExtension(
        "hrnet_fast._C_cuda",
        relative(*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("csrc/cuda/*.cpp")),
        extra_compile_args={
            "cxx": compile_flags(),
            "nvcc": [*TOOLKIT["NVCC_FLAGS"], "--threads=2", "-Xcompiler=-fvisibility=hidden", *targets],
        },
        **common,
    )
    extension.libraries = [name for name in extension.libraries if name not in ("cudart", "c10_cuda")]
    extension.libraries += ["cudart_static", "dl", "rt", "pthread"]
    return extension


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


def link_flags() -> list[str]:
    """Without symbols, but for those who want to look inside."""
    if SANITIZERS:
        return SANITIZERS[:1]
    return [] if DEBUG or platform.system() != "Linux" else ["-Wl,-s"]


def compile_flags() -> list[str]:
    """Never -march=native: a wheel runs on any CPU, the kernels choose their instruction set at run time."""
    # -fno-wrapv: Python's own flags define what the sanitizer looks for
    sanitized = ["-O1", "-g0", *SANITIZERS, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-fno-wrapv"]
    return [
        *(sanitized if SANITIZERS else ["-O3", "-g" if DEBUG else "-g0"]),
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


def long_description(url: str) -> str:
    """README.md with absolute links into the repository at ``url``; without a url their text alone, and no pictures."""

    def link(match: re.Match) -> str:
        picture, text, target = match.groups()
        if "://" in target:
            return match[0]
        if url:
            return f"{picture}[{text}]({url}/{'raw' if picture else 'blob'}/main/{target})"
        return "" if picture else text

    return re.sub(r"(!?)\[([^]]*)\]\(([^)\s]+)\)", link, (ROOT / "README.md").read_text(encoding="utf-8"))


URL = os.environ.get("HRNET_FAST_URL", "").rstrip("/")
PAGES = {
    "Source": "",
    "Documentation": "/blob/main/docs/index.md",
    "Issues": "/issues",
    "Changelog": "/blob/main/CHANGELOG.md",
}
ext_modules, cmdclass = extensions()
setup(
    long_description=long_description(URL),
    long_description_content_type="text/markdown",
    project_urls={name: URL + path for name, path in PAGES.items()} if URL else {},
    ext_modules=ext_modules,
    cmdclass=cmdclass,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ext_modules else {},
)
