"""The code blocks of the README run as they stand, in order, in one empty folder that holds `configs/` alone.

A comment before a block says what it is: `<!-- test: setup -->` is not run here, `<!-- test: slow -->` takes more than ten seconds.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"(?:^<!-- test: (?P<mark>\w+) -->\n+)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    line: int
    language: str
    mark: str
    text: str


def blocks(readme: str) -> list[Block]:
    """Python and shell blocks, with the line of the README on which the first of their own lines stands."""
    found = [
        Block(readme.count("\n", 0, match.start("text")) + 1, match["language"], match["mark"] or "", match["text"])
        for match in FENCE.finditer(readme)
    ]
    return [block for block in found if block.language in ("python", "console", "bash", "sh")]


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block, without prompts and comments, a line that ends in a backslash joined to the next."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


BLOCKS = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
RUNNABLE = [block for block in BLOCKS if block.mark != "setup"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would be: later blocks find what earlier ones wrote."""
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", place / "configs")
    return place


def run(folder: Path, arguments: list[str]) -> str:
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "140", "MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_the_readme_shows_how_to_use_it() -> None:
    assert {block.mark for block in BLOCKS} <= {"", "setup", "slow"}
    assert any(block.language == "python" for block in RUNNABLE)
    assert any(block.language != "python" for block in RUNNABLE)


def test_blocks_are_found_with_their_marks() -> None:
    shell = "a\n<!-- test: slow -->\n```console\n$ unlearnbench list \\\n  methods  # all\n\n```\n"
    text = shell + "\n```yaml\nx: 1\n```\n```python\nprint()\n```\n"
    console, python = blocks(text)
    assert console[:3] == (4, "console", "slow")
    assert commands(console) == [["unlearnbench", "list", "methods"]]
    assert python == Block(13, "python", "", "print()\n")


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, id=f"line {block.line}", marks=[pytest.mark.slow] if block.mark == "slow" else []) for block in RUNNABLE],
)
def test_a_block_of_the_readme_runs(block: Block, folder: Path) -> None:
    if block.language == "python":
        program = folder / f"line_{block.line}.py"
        program.write_text(block.text, encoding="utf-8")
        run(folder, [program.name])
        return
    for program, *arguments in commands(block):
        assert program == "unlearnbench", f"README.md:{block.line}: {program} is not run here; mark the block `<!-- test: setup -->`"
        run(folder, ["-c", "from unlearnbench.cli import main; main()", *arguments])
