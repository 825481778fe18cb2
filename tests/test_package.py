"""The package as a whole: layers, cost of importing it, life without the extension, what must not be in the tree."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hrnet_fast as hf
from hrnet_fast.ops import library
from hrnet_fast.tolerances import OPERATOR, relative_error
from support.exchange_cases import truth

ROOT = Path(__file__).parent.parent
# Imports only go down this table, whose entries are folders and single modules; within one entry they are free.
LAYERS = """
    tolerances
    files
    ops.transforms
    ops.lazy_registration
    ops.exchange.call
    ops.conv1x1
    ops.backends.reference
    ops.exchange.autograd
    _C
    ops.library
    ops.batch_norm_relu
    kernels
    _C_cuda
    ops.backends.preferences
    ops.backends.cpu
    ops.backends.gpu
    ops.backends.triton
    ops.backends.cuda
    ops.backends
    ops.interpolate_argmax
    ops.exchange
    hrnet_fast
    nn.plain_mode
    nn.module_fingerprint
    nn.folds
    nn.cudnn_epilogue
    nn.prepared_conv
    nn
    checkpoints
    models
    checkpoints.training_settings
    checkpoints.convert
    checkpoints.pretrained
    checkpoints.hub
    patching
    network
    runtime
    export
    apps.pictures
    apps
    bench
    cli
    __main__
    benchmarks
""".split()
LAYERS = [name if name in ("hrnet_fast", "benchmarks") else f"hrnet_fast.{name}" for name in LAYERS]
LOOSE = {"__init__", "__main__", "files", "tolerances"}  # modules at the root; everything else has a folder


def layer(module: str) -> int:
    """The place in LAYERS of the longest entry that the module is, or lies in."""
    name = module
    while name not in LAYERS:
        name = name.rpartition(".")[0]
    if name == "hrnet_fast" != module:
        pytest.fail(f"{module} has no place in LAYERS")
    return LAYERS.index(name)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file() or name in ("hrnet_fast._C", "hrnet_fast._C_cuda")


def imports(path: Path):
    """Every module of ours that a file imports, anywhere in it."""
    tree = ast.parse(path.read_text())
    if path == ROOT / "hrnet_fast" / "__init__.py":  # what is loaded on first use stands there for type checkers too
        tree.body = [node for node in tree.body if "TYPE_CHECKING" not in ast.unparse(getattr(node, "test", node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [_source(node.module, alias.name) for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("hrnet_fast", "benchmarks"))


def _source(package: str, name: str) -> str:
    """The module that `from package import name` gets the name from."""
    if is_module(f"{package}.{name}"):
        return f"{package}.{name}"
    return hf._LAZY.get(name, package) if package == "hrnet_fast" else package


def sources():
    for folder in ("hrnet_fast", "benchmarks", "kernels"):  # a link that is not followed: kernels
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield path, f"hrnet_fast.{module}" if folder == "kernels" else module


def test_imports_only_go_down():
    checked, up = 0, []
    for path, module in sources():
        for name in imports(path):
            checked += 1
            if layer(name) > layer(module):
                up.append(f"{module} imports {name}")
    assert not up
    assert checked > 50


def test_every_module_has_a_folder():
    assert {path.stem for path in (ROOT / "hrnet_fast").glob("*.py")} == LOOSE


def test_every_folder_is_described():
    """In CONTRIBUTING.md, and by a docstring of its own; kernels is a link."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for folder in {path.parent for path, module in sources() if module.startswith("hrnet_fast.")} - {ROOT / "kernels"}:
        name = folder.relative_to(ROOT).as_posix()
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), name
        assert any(f"{part}/" in contributing for part in (name, folder.name)), name


def test_no_folder_takes_the_place_of_a_function():
    """Importing a package hrnet_fast.patch would put it in the place of hrnet_fast.patch, the function."""
    names = {path.stem if path.is_file() else path.name for path in (ROOT / "hrnet_fast").iterdir()}
    assert not names & set(hf.__all__)


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_costs_little():
    """Less than 150 ms of processor time beyond torch; the least of a few, because others use the machine too."""
    program = "import torch, time; t = time.process_time(); import hrnet_fast; print(time.process_time() - t)"
    assert min(float(run(program)) for _ in range(5)) < 0.15


def test_importing_leaves_the_rest_alone():
    """Nothing heavy is imported but by torch itself; torch's FLOP counter would bring triton on CUDA builds."""
    heavy = [
        "triton",
        "torch._inductor",
        "torch._dynamo",
        "torch.utils.flop_counter",
        "rich",
        "PIL",
        "matplotlib",
        "sklearn",
        "safetensors",
        "hrnet_fast.models",
        "hrnet_fast.nn",
        "hrnet_fast.bench",
        "hrnet_fast.cli",
    ]
    program = f"print([m for m in {heavy} if m in sys.modules])"
    assert run(f"import sys, hrnet_fast; {program}") == run(f"import sys, torch; {program}")


def test_flops_are_counted_whichever_is_imported_first():
    count = (
        "\nwith FlopCounterMode(display=False) as counter:\n"
        "    hf.exchange([torch.ones(1, 4, 8, 8), torch.ones(1, 6, 4, 4)], [None, torch.ones(4, 6)])\n"
        "print(counter.get_total_flops())"
    )
    ours, counter = "import torch, hrnet_fast as hf", "from torch.utils.flop_counter import FlopCounterMode"
    for program in (f"{ours}\n{counter}", f"{counter}\n{ours}"):
        assert int(run(program + count)) == 2 * 4 * 6 * 16


WITHOUT_EXTENSION = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "hrnet_fast._C":
            raise ImportError("blocked by a test")

sys.meta_path.insert(0, Missing())
"""


def test_works_without_the_extension():
    program = WITHOUT_EXTENSION + (
        "import torch, hrnet_fast as hf\n"
        "from hrnet_fast.ops import backends, library\n"
        "assert 'blocked by a test' in library.extension_error\n"
        "inputs = [torch.ones(1, 2, 4, 4, requires_grad=True), torch.ones(1, 3, 2, 2)]\n"
        "weights = [None, torch.ones(2, 3)]\n"
        "out = hf.exchange(inputs, weights)\n"
        "assert out.eq(4).all()\n"
        "out.sum().backward()\n"
        "assert inputs[0].grad.eq(1).all()\n"
        "from hrnet_fast.ops.exchange.call import ExchangeCall\n"
        "with torch.no_grad():\n"
        "    call = ExchangeCall(inputs, weights, None, None, None, 4, 4, 'bilinear', False, True, False)\n"
        "    assert torch.ops.hrnet_fast.exchange(*call.arguments()).equal(out)\n"
        "    assert torch.ops.hrnet_fast.exchange_fwd(*call.arguments()).equal(out)\n"
        "assert backends.choose(call) is backends.reference\n"
        "classes = hf.interpolate_argmax(torch.eye(3).reshape(1, 3, 3, 1), (3, 2))\n"
        "assert classes.tolist() == [[[0, 0], [1, 1], [2, 2]]]\n"
        "from hrnet_fast.cli import main\n"
        "assert main(['info']) == 0\n"
    )
    out = " ".join(run(program, COLUMNS="200").split())
    assert "blocked by a test" in out
    assert "cannot run" in out


def test_kernels_do_not_shadow_another_package():
    """From the root, `kernels` is at most a namespace, which loses to a real package of that name."""
    program = "import importlib.util as u; spec = u.find_spec('kernels'); print(spec is None or spec.origin is None)"
    assert run(program) == "True"
    assert not (ROOT / "kernels" / "__init__.py").exists()


def tracked() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return [path for path, _ in sources()]  # an unpacked sdist
    return [ROOT / name for name in listed.split("\0") if name]


def test_no_paths_of_a_machine():
    words = ["/" + "home/", "/" + "root/", "/" + "Users/", "/" + "work/", "/" + "tmp/", "site-" + "packages/"]
    found = []
    for path in tracked():
        if path.is_file() and path.suffix not in (".png", ".jpg"):
            text = path.read_text()
            found += [f"{path.relative_to(ROOT)}: {word}" for word in words if word in text]
    assert not found


@pytest.mark.skipif(library.extension_error is not None, reason=str(library.extension_error))
def test_takes_turns_with_onednn():
    """Both use the tile registers of CPUs with AMX; each must find them in order after the other."""
    a, b = torch.randn(64, 96).bfloat16(), torch.randn(96, 80).bfloat16()
    inputs = [
        torch.randn(1, c, 24 >> k, 40 >> k).bfloat16().contiguous(memory_format=torch.channels_last)
        for k, c in enumerate((48, 96, 192))
    ]
    weights = [None, torch.randn(48, 96).bfloat16() / 10, torch.randn(48, 192).bfloat16() / 14]
    product, expected = a.double() @ b.double(), truth(inputs, weights)
    for _ in range(4):
        assert relative_error(a @ b, product) < OPERATOR[torch.bfloat16]
        assert relative_error(hf.exchange(inputs, weights, backend="cpu"), expected) < OPERATOR[torch.bfloat16]
