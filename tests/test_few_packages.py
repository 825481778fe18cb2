"""The tests run on a machine that has only torch, triton, pytest, numpy and timm, as one lent for its GPU."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
THERE = ("torch", "triton", "pytest", "numpy")  # and what they need; timm, without what it needs

# As sitecustomize it is imported first by every Python that the test starts.
HIDING = """
import sys

class Hidden:
    names = frozenset({names!r})

    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in Hidden.names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden)
"""


def with_requirements(names):
    """The distributions among those installed that pip would bring along."""
    found, left = set(), list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name not in found:
            try:
                required = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            found.add(name)
            wanted = (Requirement(line) for line in required)
            left += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def hidden():
    """The top-level modules that are installed here and would not be there."""
    there = {*with_requirements(THERE), "timm", "hrnet-fast"}
    return sorted(
        module
        for module, owners in metadata.packages_distributions().items()
        if not there & {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
    )


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_the_gpu_benchmarks_tests_run(tmp_path):
    names = hidden()
    assert not {"torch", "triton", "pytest", "numpy", "timm"} & set(names)
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(names=names))
    hide = {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HRNET_FAST_", "PYTEST_"))} | hide
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", "test", "--device", "cpu", "--results", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    cases = ElementTree.parse(tmp_path / "test.xml").findall(".//testcase")
    collected = {case.get("classname") for case in cases if case.get("classname")}
    of_gpus = {module(path) for path in ROOT.glob("tests/**/test_*.py") if "pytest.mark.gpu" in path.read_text()}
    assert of_gpus - {module(Path(__file__))} <= collected
    skipped = [case.find("skipped") for case in cases if not case.get("classname")]  # whole files
    reasons = "".join(element.text for element in skipped)
    assert re.search("(tritonclient|google|PIL|rich) is not installed", reasons), reasons
