"""The Triton kernels without a GPU: run in Triton's interpreter, and compiled for several GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITES = sorted(Path(__file__).parent.glob("suite_*.py"))
# the suites whose tests are exhaustive in part
BESIDES = [suite for suite in SUITES if "support.exhaustive" in suite.read_text()]


@pytest.mark.parametrize(
    ("suite", "which"),
    [
        *((suite, "not exhaustive") for suite in SUITES),
        *(pytest.param(suite, "exhaustive", marks=pytest.mark.exhaustive) for suite in BESIDES),
    ],
    ids=lambda part: getattr(part, "stem", part),
)
def test_in_the_interpreter(suite, which):
    """Triton decides at its import whether it interprets, therefore in a process of its own."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "HRNET_FAST_NO_SKIP": "1"}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "--import-mode=importlib", "-q", "-x"]
    command += ["-m", which, str(suite)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED and "HRNET_FAST_SHARE" in os.environ:
        return  # none of the suite's tests is in this share (tests/conftest.py)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
