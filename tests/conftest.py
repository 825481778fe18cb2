"""What all tests share: a fixed seed, a clean environment, and the rule about skipped tests.

With HRNET_FAST_NO_SKIP=1, as in CI, a skipped test is a failed one, unless it is marked ``gpu`` and there is no GPU, or
``toolkit`` and there is no CUDA toolkit, or ``planned`` or ``pairs`` and the processor lacks the instructions, or
``arm`` and there is no cross-compiler or emulator for ARM: what was skipped proves nothing.

A machine lent for its GPU may have torch, triton, pytest, numpy and timm alone: a file that imports another package is
skipped there, with that package as the reason, and all others run.
"""

import importlib.util
import os
import re
import runpy
import shutil
import tempfile
import zlib
from pathlib import Path

import pytest

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # they share the cores, and so do the programs that they start
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))
_home = tempfile.TemporaryDirectory(
    prefix="hrnet_fast-"
)  # what tests keep is theirs; processes that they start have it, too
os.environ.setdefault("HRNET_FAST_HOME", _home.name)
import torch  # noqa: E402 - reads the variable at its import

from hrnet_fast.ops import library  # noqa: E402

# what the package, its extras and its tests use besides torch, triton, pytest, numpy and timm: names of modules
OPTIONAL = set(
    "rich safetensors PIL matplotlib sklearn onnx onnxscript onnxruntime tritonclient google pycocotools "
    "huggingface_hub".split()
)
NO_SKIP = os.environ.get("HRNET_FAST_NO_SKIP") == "1"
TOOLKIT = runpy.run_path(str(Path(__file__).parents[1] / "csrc" / "cuda" / "toolkit.py"))
# what this machine cannot be asked to have: marker -> why its tests are skipped here
MISSING = {}
if not torch.cuda.is_available():
    MISSING["gpu"] = "torch finds no NVIDIA GPU"
if TOOLKIT["find"]() is None:
    MISSING["toolkit"] = "there is no CUDA toolkit"
if absent := [name for name in ("aarch64-linux-gnu-g++", "qemu-aarch64") if shutil.which(name) is None]:
    MISSING["arm"] = f"there is no {' and no '.join(absent)} (Debian: g++-aarch64-linux-gnu, qemu-user)"
if library.extension_error is None and torch.ops.hrnet_fast.why_not_program():
    MISSING["planned"] = torch.ops.hrnet_fast.why_not_program()
if library.extension_error is None and not torch.ops.hrnet_fast.has_bfloat16_pairs():
    MISSING["pairs"] = "the processor has no instruction for pairs of bfloat16"


@pytest.fixture(autouse=True)
def _same_everywhere(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.delenv("HRNET_FAST_BACKEND", raising=False)


@pytest.fixture(scope="session")
def timm():
    """The module timm; with it torchvision can be imported, too."""
    for name in ("timm", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    from hrnet_fast.bench.timm_models import load

    return load()


TAKES_LONG = {
    "test_in_the_interpreter",
    "test_a_package_of_aotinductor",
    "test_kernels_for_arm",
    "test_right_or_refused",
    "test_random_programs",
    "test_onnx_of_patched_networks",
    "test_onnx_of_tasks",
}


def pytest_collection_modifyitems(config, items):
    """What takes minutes comes first, so that no process is left alone with it at the end.

    HRNET_FAST_SHARE=k/n leaves only one of n shares, the same tests for the same k everywhere. The tests that are a
    process of their own belong to every share: there their suites are shared out.
    """
    share = os.environ.get("HRNET_FAST_SHARE")
    if share:
        k, n = map(int, share.split("/"))
        own = [
            item
            for item in items
            if "::test_in_the_interpreter[" in item.nodeid or zlib.crc32(item.nodeid.encode()) % n == k
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in own])
        items[:] = own
    items.sort(key=lambda item: getattr(item, "originalname", "") not in TAKES_LONG)


def pytest_runtest_setup(item):
    for name, reason in MISSING.items():
        if item.get_closest_marker(name):
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    excused = hasattr(report, "wasxfail") or any(item.get_closest_marker(name) for name in MISSING)
    return report if excused else _failed_if_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _failed_if_skipped(_skipped_if_missing((yield), collector))


def _skipped_if_missing(report, collector):
    found = (
        re.search(r"ModuleNotFoundError: No module named '([^'.]+)", str(report.longrepr)) if report.failed else None
    )
    if found and found[1] in OPTIONAL:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {found[1]} is not installed")
    return report


def _failed_if_skipped(report):
    if NO_SKIP and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"HRNET_FAST_NO_SKIP=1, and this was skipped: {reason}"
    return report
