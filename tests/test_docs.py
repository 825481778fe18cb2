"""Every block of code in docs/ and README.md: run from top to bottom, page by page, at smaller sizes, or parsed.

``python`` blocks of a page share their names, as in one session. Of ``sh`` blocks, lines that call ``hrnet-fast`` or
``python`` are run, the others parsed. A block whose first line is ``# not run by the tests: REASON`` is parsed only.
"""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from hrnet_fast.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md")) + [ROOT / "README.md"]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "# not run by the tests: "
LANGUAGES = ("python", "sh", "text")
# What stands on a page -> what the tests run instead: the same at a size that takes a second, without a network
SMALLER = {
    "python": [
        ("hrnet_w48", "hrnet_w18_small_v1"),
        ('timm.create_model("hrnet_w18_small_v1"', 'timm.create_model("hrnet_w18_small"'),
        ("512, 512", "64, 64"),
        ("224, 224", "64, 64"),
        ("pretrained=True", "pretrained=False"),
        ("[1, 19, 512, 512]", "[1, 19, 64, 64]"),
    ],
    "sh": [
        ("--timm hrnet_w48", "--timm hrnet_w18_small"),
        ("--model hrnet_w48", "--model hrnet_w18_small_v1"),
        ("--size 512x512", "--size 64x64"),
        ("--steps 20", "--steps 2 --workers 0"),
        ("hrnet-fast bench", "hrnet-fast bench --budget 0.1"),
        ('--cases "exchange-c18-*"', "--cases exchange-c18-128x128-float32 --no-compile --budget 0.1"),
    ],
}
# Lines that take minutes, hardware or data of the reader's own
ONLY_PARSED = (
    "hrnet-fast verify",
    "python examples/train_segmentation.py --data",
    "make",
    "pip",
    "HRNET_FAST_",
    "torchrun",
)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int  # of the page, where the text begins


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(text)]


def smaller(block: Block) -> str:
    text = block.text
    for large, small in SMALLER[block.language]:
        text = text.replace(large, small)
    return text


def commands(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def where(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_blocks_can_be_parsed(page):
    text = page.read_text()
    assert text.count("```") == 2 * len(FENCE.findall(text)), "a fence that is not at the beginning of a line, or open"
    for block in blocks(page):
        place = f"{where(page)}:{block.line}"
        if block.language.startswith("{"):  # a directive of Sphinx
            continue
        assert block.language in LANGUAGES, f"{place}: {block.language!r}"
        if block.language == "python":
            ast.parse(block.text, place)
        elif block.language == "sh":
            done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{place}: {done.stderr}"
            for line in commands(block.text):
                known = line.startswith(("hrnet-fast ", "python ", *ONLY_PARSED))
                assert known, f"{place}: {line!r} is neither run nor listed in ONLY_PARSED"


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language in ("python", "sh") for b in blocks(p))], ids=where
)
def test_blocks_run(page, tmp_path, monkeypatch, request):
    if "timm" in "".join(block.text for block in blocks(page)):
        request.getfixturevalue("timm")
    for folder in ("examples", "benchmarks"):  # named in commands as from the root of the tree
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language not in SMALLER or block.text.startswith(NOT_RUN):
            continue
        text = smaller(block)
        if block.language == "python":
            # the page's own line numbers in tracebacks
            exec(compile("\n" * (block.line - 1) + text, where(page), "exec"), names)
        for line in commands(text) if block.language == "sh" else ():
            if not line.startswith(ONLY_PARSED):
                run(line)


def run(line: str) -> None:
    program, *argv = shlex.split(line)
    if program == "hrnet-fast":
        assert main(argv) == 0, line
        return
    done = subprocess.run(
        [sys.executable, *argv],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"{line}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_every_command_line_that_is_not_run_exists(capsys):
    """What is only parsed may still be wrong: its options are."""
    for page in PAGES:
        for block in blocks(page):
            for line in commands(block.text) if block.language == "sh" else ():
                if line.startswith("hrnet-fast "):
                    with pytest.raises(SystemExit) as ended:
                        main([shlex.split(line)[1], "--help"])
                    assert ended.value.code == 0
                    options = capsys.readouterr().out
                    assert [o for o in shlex.split(line)[2:] if o.startswith("--") and o not in options] == []


def test_the_picture_of_the_idea(tmp_path):
    spec = importlib.util.spec_from_file_location("draw_idea", ROOT / "docs" / "draw_idea.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.draw(tmp_path / "idea.png") < 1e-12
    for name in script.WIDTHS:
        usual, commuted = script.multiply_adds(name)
        assert usual == 8 * commuted  # as the page says
    with Image.open(tmp_path / "idea.png") as drawn, Image.open(script.OUT) as stored:
        assert drawn.size == stored.size


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 120
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert len(targets) > 10
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (ROOT / path).is_file(), target
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings], target


def test_every_page_is_in_a_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    listed = {
        line.strip() for text in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL) for line in text.split("\n")
    }
    pages = {str(p.relative_to(ROOT / "docs").with_suffix("")) for p in PAGES if p.name != "README.md"}
    assert pages - listed == {"index"}
