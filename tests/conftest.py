"""One torch thread, as in the benchmark's workers: results must not depend on the machine, and tiny models are slower on several.

And where real data is: a folder outside of the project. A default that is absent skips the tests with a reason; a path that was set and
is not there fails them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch; a conftest that imported it would slow every test that needs none.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests need no network: what is not there is said at once, without a minute of attempts to reach the hub.
os.environ["HF_HUB_OFFLINE"] = "1"

DEFAULT = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real data sets, a folder each."""
    given = os.environ.get("UNLEARNBENCH_DATA")
    folder = Path(given) if given else DEFAULT
    if not folder.is_dir():
        if given:
            pytest.fail(f"UNLEARNBENCH_DATA is {given!r}, which is no folder")
        pytest.skip(f"no folder {DEFAULT}; set UNLEARNBENCH_DATA to run this")
    return folder
