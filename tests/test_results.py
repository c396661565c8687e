"""What is committed under results/ is what the code makes of its records, and one trial of the quickstart comes out again."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "results" / "quickstart"


@pytest.fixture(autouse=True)
def _committed() -> None:
    if not (QUICKSTART / "suite.json").exists():
        pytest.fail("results/quickstart is missing: run `make results`")


def test_one_trial_of_the_quickstart_comes_out_again(capsys: pytest.CaptureFixture[str]) -> None:
    verify = runpy.run_path(str(ROOT / "benchmarks" / "verify.py"))["verify"]
    assert verify(QUICKSTART) == 0, capsys.readouterr().out
    assert "largest difference" in capsys.readouterr().out


def test_verify_notices_a_changed_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json
    import shutil

    copy = tmp_path / "quickstart"
    shutil.copytree(QUICKSTART, copy)
    for path in copy.glob("gradient_ascent-*.json"):
        record = json.loads(path.read_text())
        for cell in record["cells"]:
            if cell["value"] is not None:
                cell["value"] -= 0.5
        path.write_text(json.dumps(record))
    verify = runpy.run_path(str(ROOT / "benchmarks" / "verify.py"))["verify"]
    assert verify(copy) == 1
    assert "gradient_ascent" in capsys.readouterr().out


def test_the_readme_shows_the_committed_tables() -> None:
    filled = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))["filled"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "| rank |" in text
    assert filled(text, QUICKSTART) == text
