"""Where a number comes from: versions, commit, code and data."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

import pytest

import unlearnbench
from unlearnbench import provenance as module
from unlearnbench.config import load_suite
from unlearnbench.planning import trials_of
from unlearnbench.provenance import machine, provenance
from unlearnbench.trial import Settings, Trial


def trial(folder: Path, *, request: str = "class3", epochs: int = 1) -> Trial:
    (folder / "suite.yaml").write_text(f"""\
suite: small
seeds: [0]
oracles: 2
tracks:
  - scenario: {{name: digits, epochs: {epochs}}}
    requests: [{request}]
    methods: [collapsed]
    metrics: [accuracy]
""")
    return trials_of(load_suite(folder / "suite.yaml"))[0][-1]


def test_it_says_what_the_numbers_depend_on(tmp_path: Path) -> None:
    found = provenance(trial(tmp_path), Settings(dtype="bf16"))
    assert found["package"] == unlearnbench.__version__
    assert (found["device"], found["dtype"]) == ("cpu", "bf16")
    assert found["libraries"]["torch"] == importlib.metadata.version("torch")
    assert set(found["code"]) == {"scenario", "harness"}
    assert provenance(trial(tmp_path), Settings(dtype="bf16")) == found


def test_the_hash_of_the_data_is_that_of_this_request(tmp_path: Path) -> None:
    plain, other, longer = trial(tmp_path), trial(tmp_path, request="class4"), trial(tmp_path, epochs=2)
    hashes = [provenance(one, Settings())["data"] for one in (plain, trial(tmp_path), other, longer)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def _git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A repository that the package seems to run from."""
    (tmp_path / "unlearnbench").mkdir()
    (tmp_path / "unlearnbench" / "__init__.py").write_text("")
    monkeypatch.setattr(unlearnbench, "__file__", str(tmp_path / "unlearnbench" / "__init__.py"))
    for cached in (module._checkout, module.machine):
        cached.cache_clear()
    yield tmp_path
    for cached in (module._checkout, module.machine):
        cached.cache_clear()


def test_commit_and_changes_are_those_of_the_checkout(checkout: Path) -> None:
    _git(checkout, "init", "-q")
    _git(checkout, "add", "-A")
    _git(checkout, "commit", "-qm", "one")
    assert module._checkout() == {"commit": _git(checkout, "rev-parse", "HEAD"), "dirty": False}
    (checkout / "unlearnbench" / "__init__.py").write_text("changed = 1\n")
    (checkout / "results.json").write_text("untracked files are no change")
    module._checkout.cache_clear()
    assert module._checkout()["dirty"] is True
    assert machine("cpu")["dirty"] is True


def test_an_installed_package_has_no_commit(checkout: Path) -> None:
    assert module._checkout() == {}
    assert machine("cpu")["dirty"] is None
    (checkout / ".git").mkdir()  # no repository after all
    module._checkout.cache_clear()
    assert module._checkout() == {}
