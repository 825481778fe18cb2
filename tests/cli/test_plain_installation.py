"""The commands in an environment that has what `pip install .` brings, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISSING = ("numpy", "PIL", "matplotlib", "sklearn", "onnx", "onnxscript", "onnxruntime", "timm", "torchvision")
PROGRAM = """
import sys

class Hidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden)
from hrnet_fast.cli import main

for argv in {commands!r}:
    print(f"# {{argv}}", file=sys.stderr, flush=True)
    print(f"= {{main(argv.split())}}", file=sys.stderr, flush=True)
"""
# each, and what its one line on stderr must name
COMMANDS = {
    "info": None,
    "segment picture.jpg --model hrnet_w18_small_v1": "pip install 'hrnet_fast[pictures]'",
    "pose picture.jpg --model hrnet_w18_small_v1": "pip install 'hrnet_fast[pictures]'",
    "bench --model hrnet_w18_small_v1 --size 64x64": "scikit-learn",
    "bench --image picture.jpg --size 64x64": "pip install 'hrnet_fast[pictures]'",
    "bench --timm hrnet_w18_small --size 64x64": "scikit-learn",
    "patch-report --timm hrnet_w18_small": "scikit-learn",
    "export --model hrnet_w18_small_v1 --size 64x64": "pip install",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each command wrote on stderr, and its exit code as the last line."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "picture.jpg").write_bytes(b"it is never opened")
    program = PROGRAM.format(missing=MISSING, commands=list(COMMANDS))
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    before, *parts = done.stderr.split("# ")
    assert before == "", "warnings at the import"
    return {part.partition("\n")[0]: part.partition("\n")[2].splitlines() for part in parts}


@pytest.mark.parametrize("command", COMMANDS)
def test_says_in_one_line_what_is_missing(said, command):
    expected = COMMANDS[command]
    if expected is None:
        assert said[command] == ["= 0"]
    else:
        line, code = said[command]
        assert line.startswith("hrnet-fast: error: ") and expected in line
        assert code == "= 2"
