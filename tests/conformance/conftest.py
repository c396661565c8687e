"""Where others' numbers and real data are: folders outside of the project.

A default that is absent skips the tests with a reason; a path that was set and is not there fails them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vision_conformance import Vision, in_stored_order

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def _folder(variable: str, default: Path) -> Path:
    given = os.environ.get(variable)
    folder = Path(given) if given else default
    if not folder.is_dir():
        if given:
            pytest.fail(f"{variable} is {given!r}, which is no folder")
        pytest.skip(f"no folder {default}; set {variable} to run this")
    return folder


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Numbers to agree with."""
    return _folder("UNLEARNBENCH_CONFORMANCE", SHARED / "conformance")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real data sets, a folder each."""
    return _folder("UNLEARNBENCH_DATA", SHARED / "data")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Others' published raw results."""
    return _folder("UNLEARNBENCH_REFERENCE", SHARED / "reference")


@pytest.fixture(scope="session")
def vision(conformance: Path) -> Vision:
    """The tiny problem of the official vision implementations."""
    return Vision(conformance / "methods-vision")


@pytest.fixture
def stored_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our loops take rows in stored order; ask for it in tests whose imports stand at the top of the file."""
    in_stored_order(monkeypatch)
