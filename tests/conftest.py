"""One torch thread, as in the benchmark's workers: results must not depend on the machine, and tiny models are slower on several.

And where real data and others' numbers are: folders outside of the project. A default that is absent skips the tests with a reason; a
path that was set and is not there fails them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch; a conftest that imported it would slow every test that needs none.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests need no network: what is not there is said at once, without a minute of attempts to reach the hub.
os.environ["HF_HUB_OFFLINE"] = "1"

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def _folder(variable: str, default: Path) -> Path:
    given = os.environ.get(variable)
    folder = Path(given) if given else default
    if not folder.is_dir():
        if given:
            pytest.fail(f"{variable} is {given!r}, which is no folder")
        pytest.skip(f"no folder {default}; set {variable} to run this")
    return folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real data sets, a folder each."""
    return _folder("UNLEARNBENCH_DATA", SHARED / "data")


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Numbers to agree with."""
    return _folder("UNLEARNBENCH_CONFORMANCE", SHARED / "conformance")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Others' published raw results."""
    return _folder("UNLEARNBENCH_REFERENCE", SHARED / "reference")
