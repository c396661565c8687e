"""What may go wrong around a run: killed at any moment, a full disk, two at once. Nothing is lost, and records are equal."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from unlearnbench.records import read_record

PLUGINS = Path(__file__).parent.parent / "fixtures" / "runner_plugins.py"
SUITE = f"""\
suite: small
seeds: [0, 1]
oracles: 2
tracks:
  - scenario: {{name: digits, epochs: 2, width: 128}}
    requests: [class3]
    methods: [{{name: finetune, epochs: 1, lr: 0.01, batch_size: 64}}, collapsed, "{PLUGINS}:Counts"]
    attacks: [loss_attack, {{name: relearning, steps: [0, 2]}}]
    metrics: [accuracy, "{PLUGINS}:Counted"]
"""
ARTEFACTS = {"population": 2, "unlearned": 6, "evidence": 10, "trial": 10}
KILLS = 10


class Zygote:
    """A process that has imported everything and forks runs of the command line; `counts` gets a line for what is computed."""

    def __init__(self, counts: Path) -> None:
        self.counts = counts
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "UNLEARNBENCH_TEST_COUNT": str(counts)},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, folder: Path, *, out: str = "out", file_limit: int | None = None, workers: int = 1) -> int:
        (folder / "suite.yaml").write_text(SUITE)
        argv = ["run", str(folder / "suite.yaml"), "--store", str(folder / "store"), "--out", str(folder / out)]
        pid: int = self.ask(
            argv=[*argv, "--workers", str(workers), "--device", "cpu"], log=str(folder / f"{out}.log"), file_limit=file_limit
        )
        return pid

    def wait(self, pid: int) -> int:
        status: int = self.ask(wait=pid)
        return status

    def run(self, folder: Path, **options: Any) -> int:
        return self.wait(self.start(folder, **options))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    process = Zygote(tmp_path_factory.mktemp("zygote") / "counts")
    yield process
    process.close()


def stable(out: Path) -> dict[str, Any]:
    """What must be equal: the records that the run names without their volatile block, and the per-item values."""
    names = json.loads((out / "suite.json").read_text())["records"]
    return {name: read_record(out / name).stable() for name in names} | {path.name: path.read_bytes() for path in out.glob("*.parquet")}


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The records of a run that nothing happens to, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start = time.monotonic()
    assert zygote.run(folder) == 0, (folder / "out.log").read_text()
    seconds = time.monotonic() - start
    found = stable(folder / "out")
    assert len(found) == 20
    assert left_in(folder / "store") == ARTEFACTS
    return found, seconds


def left_in(store: Path) -> dict[str, int]:
    """How many artefacts a store holds of each kind; nothing half-written may be there."""
    assert [path for place in ("tmp", "locks") for path in (store / place).glob("*")] == []
    return {kind.name: len(list(kind.glob("*/*"))) for kind in store.iterdir() if kind.name not in ("tmp", "locks")}


@pytest.mark.slow
def test_killed_at_ten_moments_the_same_command_gives_the_same_records(
    zygote: Zygote, undisturbed: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    moments, kills = random.Random(0), 0
    while kills < KILLS:
        pid = zygote.start(tmp_path)
        end = time.monotonic() + moments.uniform(0.02, 0.6 * seconds)
        while zygote.ask(poll=pid) is None:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                assert zygote.wait(pid) == -signal.SIGKILL
                kills += 1
                break
            time.sleep(0.01)
        else:  # it ended before it was killed: all there is must be right, and the next begins anew
            assert stable(tmp_path / "out") == expected
            shutil.rmtree(tmp_path / "store")
            shutil.rmtree(tmp_path / "out")
    assert zygote.run(tmp_path) == 0, (tmp_path / "out.log").read_text()
    assert stable(tmp_path / "out") == expected
    assert left_in(tmp_path / "store") == ARTEFACTS
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".tmp", ".part")] == []


@pytest.mark.slow
def test_killed_with_workers_the_same_command_gives_the_same_records(
    zygote: Zygote, undisturbed: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    pid = zygote.start(tmp_path, workers=2)
    while not (tmp_path / "store" / "population").exists():
        assert zygote.ask(poll=pid) is None
        time.sleep(0.05)
    workers = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    assert zygote.wait(pid) == -signal.SIGKILL
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert zygote.run(tmp_path, workers=2) == 0, (tmp_path / "out.log").read_text()
    assert stable(tmp_path / "out") == undisturbed[0]
    assert left_in(tmp_path / "store") == ARTEFACTS


def test_a_truncated_weight_file_is_said_and_made_again(zygote: Zygote, undisturbed: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    assert zygote.run(tmp_path) == 0
    weights = next((tmp_path / "store" / "unlearned").rglob("model.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:1000])
    shutil.rmtree(tmp_path / "store" / "trial")
    (tmp_path / "out.log").unlink()
    assert zygote.run(tmp_path) == 0
    said = " ".join((tmp_path / "out.log").read_text().split())
    assert f"model.safetensors has 1000 bytes instead of {len(content)}; removed" in said
    assert weights.read_bytes() == content
    assert stable(tmp_path / "out") == undisturbed[0]


def test_a_disk_with_no_room_for_weights_fails_the_trials_and_leaves_no_half(
    zygote: Zygote, undisturbed: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    assert zygote.run(tmp_path, file_limit=20_000) == 1
    log = " ".join((tmp_path / "out.log").read_text().split())
    assert "no room to write" in log
    assert "Traceback" not in log
    names = json.loads((tmp_path / "out" / "suite.json").read_text())["records"]
    reasons = {read_record(tmp_path / "out" / name).reason for name in names}
    assert all(str(reason).startswith("StoreError: no room to write in") for reason in reasons)
    assert left_in(tmp_path / "store") == {}
    assert zygote.run(tmp_path) == 0
    assert stable(tmp_path / "out") == undisturbed[0]


def test_a_disk_with_no_room_for_a_record_ends_in_one_line(
    zygote: Zygote, undisturbed: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    assert zygote.run(tmp_path, file_limit=400) in (1, 2)
    lines = (tmp_path / "out.log").read_text().splitlines()
    assert sum("no room to write in" in line for line in lines) == 1, lines
    assert not any("Traceback" in line for line in lines)
    assert list((tmp_path / "out").iterdir()) == []
    assert zygote.run(tmp_path) == 0
    assert stable(tmp_path / "out") == undisturbed[0]


@pytest.mark.parametrize("outs", [("one", "two"), ("same", "same")])
def test_two_runs_at_once_make_each_artefact_once(
    zygote: Zygote, undisturbed: tuple[dict[str, Any], float], tmp_path: Path, outs: tuple[str, str]
) -> None:
    zygote.counts.write_text("")
    runs = [zygote.start(tmp_path, out=out) for out in outs]
    assert [zygote.wait(pid) for pid in runs] == [0, 0], [(tmp_path / f"{out}.log").read_text() for out in outs]
    assert Counter(zygote.counts.read_text().split()) == {"unlearn": 2, "measure": ARTEFACTS["trial"]}
    assert left_in(tmp_path / "store") == ARTEFACTS
    for out in outs:
        assert stable(tmp_path / out) == undisturbed[0]
