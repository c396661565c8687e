"""A plugin of another package: installed by pip, found by its entry point, described and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "thirdparty"
COMMAND = "import sys; from unlearnbench.cli import main; main()"
SUITE = """\
suite: nudged
seeds: [0]
oracles: 2
tracks:
  - scenario: {name: digits, epochs: 1, width: 8}
    requests: [class0]
    methods: [{name: nudge, scale: 0.5}]
    metrics: [accuracy]
"""
RUN = """\
import sys
from pathlib import Path
from unlearnbench.config import load_suite
from unlearnbench.records import read_records
from unlearnbench.runner import run_suite
summary = run_suite(load_suite("suite.yaml"), store="store", out=Path("out"))
assert summary.failed == 0, [record.reason for record in read_records(Path("out"))]
print(*sorted(record.trial.label for record in read_records(Path("out")) if record.status == "done"))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables of a process that finds the installed package."""
    folder = tmp_path_factory.mktemp("thirdparty")
    shutil.copytree(PACKAGE, folder / "source")  # building writes into the source folder
    target = folder / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*install, "--target", str(target), str(folder / "source")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")]), "COLUMNS": "200"}


def command(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_with_the_package_that_brings_it(environment: dict[str, str]) -> None:
    rows = {row["name"]: row for row in json.loads(command(environment, "list", "methods", "--json"))}
    assert rows["nudge"]["distribution"] == "unlearnbench-nudge"
    assert rows["nudge"]["summary"] == "Add normal noise to every parameter."
    assert {row["distribution"] for name, row in rows.items() if name != "nudge"} == {"unlearnbench"}


def test_it_is_described(environment: dict[str, str]) -> None:
    text = command(environment, "describe", "nudge")
    assert "unlearnbench_nudge:Nudge" in text
    assert "Standard deviation of the noise" in text
    assert ">= 0" in text


@pytest.mark.slow
def test_its_method_runs(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["nudge", "oracle", "oracle", "original"]
