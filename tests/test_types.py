"""What a user's type checker sees of the package: mypy on a small program, with the few declarations of torch it needs.

torch itself takes mypy a minute. The stand-in has what matters here, above all that nn.Module has every attribute.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hrnet_fast as hf

ROOT = Path(__file__).parent.parent
TORCH = {
    "torch/__init__.pyi": """
        from typing import Any
        from torch import nn as nn
        class Tensor: ...
        class dtype: ...
        float32: dtype
        def randn(*size: int) -> Tensor: ...
        def __getattr__(name: str) -> Any: ...
    """,
    "torch/nn/__init__.pyi": """
        from typing import Any
        from torch import Tensor
        class Module:
            def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
            def __getattr__(self, name: str) -> Tensor | Module: ...
            def train(self, mode: bool = True) -> Module: ...
        def __getattr__(name: str) -> Any: ...
    """,
}
PROGRAM = """
import torch
import hrnet_fast as hf

model = hf.create_model("hrnet_w18")
fast = hf.optimize(model, torch.randn(1, 3, 64, 64))
reveal_type(fast)
reveal_type(fast.engine)
reveal_type(fast.reason)
reveal_type(hf.exchange([torch.randn(1, 3, 64, 64)]))
fast.refersh()
hf.optimise(model, torch.randn(1, 3, 64, 64))
hf.optimize(model)
hf.create_model(18)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy says about PROGRAM and about each public name, by line."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    folder = tmp_path_factory.mktemp("types")
    for name, text in TORCH.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(line.removeprefix(" " * 8) for line in text.splitlines()))
    lines = [*PROGRAM.splitlines(), *(f"reveal_type(hf.{name})" for name in hf.__all__)]
    (folder / "program.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--no-site-packages", "--no-error-summary", "--cache-dir=cache",
               "--no-color-output", "program.py"]  # fmt: skip
    done = subprocess.run(command, cwd=folder, env={"MYPYPATH": f"{folder}:{ROOT}"}, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = {int(line): text for line, text in re.findall(r"^program\.py:(\d+): (.*)$", done.stdout, re.MULTILINE)}
    return {line: found.get(number, "") for number, line in enumerate(lines, 1) if line}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("reveal_type(fast)", 'OptimizedModel"'),
        ("reveal_type(fast.engine)", 'note: Revealed type is "str"'),
        ("reveal_type(fast.reason)", 'note: Revealed type is "str | None"'),
        ("reveal_type(hf.exchange([torch.randn(1, 3, 64, 64)]))", 'Tensor"'),
        ("fast.refersh()", 'error: "OptimizedModel" has no attribute "refersh"'),
        ("hf.optimise(model, torch.randn(1, 3, 64, 64))", 'error: Module has no attribute "optimise"'),
        ("hf.optimize(model)", 'error: Missing positional argument "example"'),
        ("hf.create_model(18)", "error: Argument 1"),
        ("model = hf.create_model(\"hrnet_w18\")", ""),
    ],
)  # fmt: skip
def test_a_program_is_checked(said, line, expected):
    assert expected in said[line] if expected else said[line] == ""


def test_every_public_name_has_a_type(said):
    for name in hf.__all__:
        text = said[f"reveal_type(hf.{name})"]
        assert "Revealed type is" in text and '"Any"' not in text, f"{name}: {text}"


def test_installed_packages_say_that_they_have_types():
    assert (Path(hf.__file__).parent / "py.typed").is_file()
