"""Two files make an instruction set: its isa_<name>.cpp and the table, which must name it, best first."""

import re
from pathlib import Path

import pytest
import torch

from hrnet_fast.ops import library

CPU = Path(__file__).parents[2] / "csrc" / "cpu"
TABLE = (CPU / "instruction_sets.cpp").read_text()
FILES = {path.stem.removeprefix("isa_"): path for path in CPU.rglob("isa_*.cpp")}
ROWS = re.findall(r'^ +\{"(\w+)", \w+, \{(.*)\}\},$', TABLE, re.MULTILINE)
TABLES = re.findall(r"(\w+)::kernels", " ".join(tables for _, tables in ROWS))


@pytest.mark.parametrize("name", FILES)
def test_every_file_fills_a_table_that_a_row_uses(name):
    assert f"namespace {name} {{ extern const Kernels kernels; }}" in TABLE
    assert name in TABLES
    text = FILES[name].read_text()
    assert re.search(rf"(namespace|define HRNET_FAST_\w+) {name}\b", text), f"{FILES[name].name}: no namespace {name}"


@pytest.mark.parametrize(("name", "tables"), ROWS, ids=[name for name, _ in ROWS])
def test_every_row_begins_with_its_own_table(name, tables):
    assert tables.startswith(f"&{name}::kernels") and name in FILES
    assert all(other in FILES for other in re.findall(r"&(\w+)::", tables))


@pytest.mark.skipif(library.extension_error is not None, reason="the compiled part is not there")
def test_the_machine_has_some_of_them_in_the_order_of_the_table():
    here = torch.ops.hrnet_fast.cpu_capabilities().split()
    names = [name for name, _ in ROWS]
    assert here and here[-1] == "portable" and sorted(here, key=names.index) == here
