"""The Triton kernels without a GPU: run in Triton's interpreter, and compiled for several GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITES = sorted((Path(__file__).parent / "interpreted").glob("suite_*.py"))


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_in_the_interpreter(suite):
    """Triton decides at its import whether it interprets, therefore in a process of its own."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "HRNET_FAST_NO_SKIP": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-x", str(suite)], capture_output=True, text=True,
                          check=False, env=environment)  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
