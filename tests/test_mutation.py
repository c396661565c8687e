"""The mutation check counts right: on ten lines, with a test that notices every mistake, one that notices none, and one that fails."""

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[1] / "benchmarks" / "mutation.py"
MODULE = '''
"""Ten lines with a mask and a comparison."""

import numpy as np


def kept_sum(values, limit):
    """Sum of the values below the limit, minus one."""
    array = np.asarray(values)
    below = array < limit
    return array[below].sum() - 1
'''.lstrip()
GOOD = "from clip import kept_sum\n\n\ndef test_by_hand():\n    assert kept_sum([1, 2, 5, 3], 3) == 2\n"
BAD = "from clip import kept_sum\n\n\ndef test_order():\n    assert kept_sum([1, 2, 3], 3) is not None\n"
CHANGES = [  # all that can be done to the three statements
    "array < limit -> array <= limit",
    "array < limit -> array >= limit",
    "array[below] -> array",
    "array[below].sum -> array[below].mean",
    "array[below].sum() - 1 -> array[below].sum()",
    "array[below].sum() - 1 -> array[below].sum() + 1",
    "array[below].sum() - 1 -> array[below].sum() - 0",
    "array[below].sum() - 1 -> array[below].sum() - 2",
]


def check(folder: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "clip.py").write_text(MODULE)
    (folder / "test_clip.py").write_text(test)
    command = [sys.executable, str(TOOL), "--file", "clip.py", "--tests", "test_clip.py", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


def survivors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return sorted(line.split("kept_sum: ")[1] for line in done.stdout.splitlines() if line.startswith("  survived  clip.py:"))


def test_a_good_test_kills_every_mutant(tmp_path: Path) -> None:
    done = check(tmp_path, GOOD, "--fail-under", "100")
    assert (done.returncode, done.stderr, survivors(done)) == (0, "", [])
    assert f"100.0 %  {len(CHANGES)} of {len(CHANGES)} killed" in done.stdout
    assert (tmp_path / "clip.py").read_text() == MODULE


def test_a_bad_test_lets_them_live_and_each_is_named(tmp_path: Path) -> None:
    done = check(tmp_path, BAD, "--jobs", "2")
    assert (done.returncode, survivors(done)) == (1, CHANGES)
    assert f"  0.0 %  0 of {len(CHANGES)} killed" in done.stdout
    assert "clip.py:9  kept_sum: array < limit -> array <= limit" in done.stdout


def test_a_sample_is_a_part_and_the_score_may_be_asked_for(tmp_path: Path) -> None:
    done = check(tmp_path, BAD, "--limit", "2", "--fail-under", "0")
    assert done.returncode == 0
    assert len(survivors(done)) == 2
    assert set(survivors(done)) < set(CHANGES)
    assert "0 of 2 killed" in done.stdout


def test_tests_that_fail_unmutated_prove_nothing(tmp_path: Path) -> None:
    done = check(tmp_path, GOOD.replace("== 2", "== 7"))
    assert done.returncode == 2
    assert "its tests fail without a mutation" in done.stdout
