"""What tests against others' numbers share: the tiny problem of the official vision implementations, and its order of rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from vision_conformance import Vision, in_stored_order


@pytest.fixture(scope="session")
def vision(conformance: Path) -> Vision:
    """The tiny problem of the official vision implementations."""
    return Vision(conformance / "methods-vision")


@pytest.fixture
def stored_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our loops take rows in stored order; ask for it in tests whose imports stand at the top of the file."""
    in_stored_order(monkeypatch)
