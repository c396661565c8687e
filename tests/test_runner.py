"""Whole runs of a small suite: nothing twice, the same numbers however they were come by, failures with their reason."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from unlearnbench import report, runner
from unlearnbench.api import UserError
from unlearnbench.config import Suite, load_suite
from unlearnbench.planning import trials_of
from unlearnbench.records import Record, read_record
from unlearnbench.runner import RunSummary, build_graph, run_suite
from unlearnbench.store import Store
from unlearnbench.training import hardware
from unlearnbench.trial import Population, Settings, population_key

PLUGINS = Path(__file__).parent / "fixtures" / "runner_plugins.py"
TRACK = """\
  - scenario: {{name: digits, epochs: 2, width: 8, label: {label}}}
    requests: [{requests}]
    methods: [{methods}]
    attacks: [{attacks}]
    metrics: [{metrics}]
"""
METHODS = f'{{name: finetune, epochs: 1, lr: 0.01, batch_size: 64}}, collapsed, "{PLUGINS}:Noisy"'
ATTACKS = "loss_attack, {name: relearning, steps: [0, 2]}"
METRICS = "accuracy, {name: accuracy, label: retain_accuracy, split: retain}"
Files = dict[str, Any]


def suite_of(
    folder: Path,
    *,
    suite: str = "small",
    seeds: str = "0, 1",
    requests: str = "class3",
    methods: str = METHODS,
    attacks: str = ATTACKS,
    metrics: str = METRICS,
    labels: tuple[str, ...] = ("digits",),
) -> Suite:
    tracks = "".join(TRACK.format(label=label, requests=requests, methods=methods, attacks=attacks, metrics=metrics) for label in labels)
    path = folder / "suite.yaml"
    path.write_text(f"suite: {suite}\nseeds: [{seeds}]\noracles: 2\ntracks:\n{tracks}")
    return load_suite(path)


def records(out: Path) -> dict[str, Record]:
    """The records that the latest run names, by file name."""
    return {name: read_record(out / name) for name in json.loads((out / "suite.json").read_text())["records"]}


def stable(out: Path) -> Files:
    """What must be equal in two runs: records without their volatile block, and the per-item values."""
    found: Files = {name: record.stable() for name, record in records(out).items()}
    return found | {path.name: path.read_bytes() for path in out.glob("*.parquet")}


def by_label(out: Path) -> dict[str, Record]:
    return {f"{record.trial.label}/{record.trial.seed}": record for record in records(out).values()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store and the records of one undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_suite(suite_of(folder), store=str(folder / "store"), out=folder / "out") == RunSummary(
        done=10, skipped=0, failed=0, folder=folder / "out"
    )
    return folder


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """A copy of it that may be damaged."""
    shutil.copytree(done, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the nodes that are computed in this process, as they are."""
    kinds: list[str] = []
    real = runner.work

    def spy(store: str, run: str, settings: Settings, job: Any) -> Any:
        kinds.append(type(job).__name__)
        return real(store, run, settings, job)

    monkeypatch.setattr(runner, "work", spy)
    return kinds


def run_in(folder: Path, suite: Suite | None = None, **options: Any) -> RunSummary:
    return run_suite(suite or suite_of(folder), store=str(folder / "store"), out=folder / "out", **options)


def test_a_run_gives_every_number(done: Path) -> None:
    found = by_label(done / "out")
    oracles = [f"oracle/{seed}" for seed in (1000, 1001)]
    assert sorted(found) == sorted(
        [f"{label}/{seed}" for label in ("original", "finetune", "collapsed", "Noisy") for seed in (0, 1)] + oracles
    )
    columns = [("accuracy", None, None), ("retain_accuracy", None, None), ("loss_attack", None, None), ("loss_attack_tpr@0.01", None, None)]
    columns += [("accuracy", "relearning", 0), ("accuracy", "relearning", 2)]
    for record in found.values():
        assert record.status == "done"
        assert [cell.column for cell in record.cells] == columns
        assert all(cell.value is not None or cell.reason for cell in record.cells)
    cells = {key: record.cells for key, record in found.items()}
    original, oracle = cells["original/0"][0].value, cells["oracle/1000"][0].value
    assert original is not None
    assert oracle is not None
    assert original > 0.8
    assert oracle < 0.05
    assert cells["finetune/0"][4].final is False
    assert cells["finetune/0"][5].final is True
    # The attack is judged on the rows that it does not hold.
    assert 0 < cells["finetune/0"][5].n < cells["finetune/0"][0].n


def test_anchors_are_named_by_the_keys_of_their_records(done: Path) -> None:
    found = by_label(done / "out")
    for record in found.values():
        assert record.anchors == {
            "original": (found["original/0"].key, found["original/1"].key),
            "oracle": (found["oracle/1000"].key, found["oracle/1001"].key),
        }


def test_a_second_run_computes_nothing(copied: Path, computed: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (copied / "store").rglob("*") if path.is_file()}
    first = {name: record.model_dump() for name, record in records(copied / "out").items()}
    shutil.rmtree(copied / "out")
    seen: list[tuple[int, int]] = []
    summary = run_in(copied, on_record=lambda record, number, total: seen.append((number, total)))
    assert (summary.done, summary.failed) == (10, 0)
    assert computed == []
    assert {path: path.stat().st_mtime_ns for path in (copied / "store").rglob("*") if path.is_file()} == before
    assert {name: record.model_dump() for name, record in records(copied / "out").items()} == first
    assert seen == [(number, 10) for number in range(1, 11)]


def test_the_number_of_workers_changes_no_bit(done: Path, tmp_path: Path) -> None:
    torch.rand(7)  # whatever was drawn in this process before
    assert run_in(tmp_path, workers=2).failed == 0
    assert stable(tmp_path / "out") == stable(done / "out")


def test_the_order_in_which_things_are_made_changes_no_bit(done: Path, tmp_path: Path) -> None:
    for seeds, methods in (("0, 1", f'"{PLUGINS}:Noisy"'), ("0, 1", METHODS)):
        assert run_in(tmp_path, suite_of(tmp_path, seeds=seeds, methods=methods)).failed == 0
    assert stable(tmp_path / "out") == stable(done / "out")


@pytest.mark.parametrize("kind", ["population", "unlearned", "evidence", "trial"])
@pytest.mark.parametrize("how", ["truncated", "changed", "gone"])
def test_a_damaged_artefact_is_found_said_and_made_again(
    done: Path, copied: Path, computed: list[str], caplog: pytest.LogCaptureFixture, kind: str, how: str
) -> None:
    store = copied / "store"
    if kind != "trial":  # a finished trial reads nothing else
        shutil.rmtree(store / "trial")
    if kind == "population":
        shutil.rmtree(store / "unlearned")
        shutil.rmtree(store / "evidence")
    victim = max(
        (path for path in (store / kind).rglob("*") if path.suffix in (".safetensors", ".parquet")), key=lambda path: path.stat().st_size
    )
    content = victim.read_bytes()
    if how == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    elif how == "changed":
        victim.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    else:
        victim.unlink()
    with caplog.at_level(logging.WARNING, logger="unlearnbench"):
        assert run_in(copied).failed == 0
    said = [message for message in caplog.messages if message.endswith("; removed")]
    assert len(said) == 1
    assert f"artefact {kind}/" in said[0]
    assert victim.name in said[0]
    assert stable(copied / "out") == stable(done / "out")
    assert victim.read_bytes() == content
    assert computed.count("TrialJob") == (1 if kind == "trial" else 10)


def test_a_failed_trial_says_why_and_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    methods = f'{{name: "{PLUGINS}:Breaks", flag: {flag}}}, {{name: "{PLUGINS}:Poisons"}}, collapsed'
    suite = suite_of(tmp_path, methods=methods)
    with caplog.at_level(logging.WARNING, logger="unlearnbench"):
        summary = run_in(tmp_path, suite)
    assert (summary.done, summary.failed) == (6, 4)
    found = by_label(tmp_path / "out")
    assert (found["Breaks/1"].status, found["Breaks/1"].reason) == ("failed", "RuntimeError: seed 1 hit the flag")
    poisoned = str(found["Poisons/0"].reason)
    assert re.fullmatch("FloatingPointError: Poisons left .*weight with NaN or infinite values", poisoned)
    assert found["Breaks/1"].cells == ()
    assert found["collapsed/0"].status == "done"
    assert any("RuntimeError: seed 1 hit the flag" in message for message in caplog.messages)
    flag.unlink()
    again = run_in(tmp_path, suite)
    assert (again.done, again.failed) == (8, 2)
    later = by_label(tmp_path / "out")
    assert later["Breaks/1"].status == "done"
    assert later["Breaks/1"].key == found["Breaks/1"].key
    assert run_in(tmp_path, suite).failed == 2


def test_a_failed_metric_leaves_the_others_and_is_tried_again(tmp_path: Path, computed: list[str]) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    suite = suite_of(tmp_path, methods="collapsed", attacks="", metrics=f'accuracy, {{name: "{PLUGINS}:Flagged", flag: {flag}}}')
    assert run_in(tmp_path, suite).failed == 6
    for record in records(tmp_path / "out").values():
        accuracy, flagged = record.cells
        assert record.status == "done"
        assert accuracy.value is not None
        assert (flagged.status, flagged.reason, flagged.value) == ("failed", "ValueError: the flag is up", None)
    assert Store(tmp_path / "store").keys("trial") == []
    flag.unlink()
    computed.clear()
    assert run_in(tmp_path, suite).done == 6
    assert computed == ["TrialJob"] * 6
    assert run_in(tmp_path, suite).done == 6
    assert computed == ["TrialJob"] * 6


@pytest.mark.parametrize("workers", [2])
def test_a_worker_that_dies_is_a_failed_trial(tmp_path: Path, workers: int) -> None:
    summary = run_in(tmp_path, suite_of(tmp_path, seeds="0", methods=f'"{PLUGINS}:Dies", collapsed', attacks=""), workers=workers)
    assert (summary.done, summary.failed) == (4, 1)
    assert "the worker process died" in str(by_label(tmp_path / "out")["Dies/0"].reason)


def test_what_cannot_serve_is_skipped_with_its_reason(tmp_path: Path) -> None:
    summary = run_in(tmp_path, suite_of(tmp_path, seeds="0", methods=f'"{PLUGINS}:Talker", collapsed', attacks=""))
    assert (summary.done, summary.skipped, summary.failed) == (4, 1, 0)
    record = by_label(tmp_path / "out")["Talker/0"]
    assert (record.status, record.reason) == ("skipped", "works on language, not on vision")


def test_records_of_other_settings_in_the_same_folder_are_not_shown(copied: Path) -> None:
    old = set(records(copied / "out"))
    run_in(copied, suite_of(copied, methods="collapsed", metrics="accuracy"))
    new = set(records(copied / "out"))
    assert old & new == set()
    assert all((copied / "out" / name).exists() for name in old | new)
    assert "Noisy" not in report.leaderboard(copied / "out", fmt="csv")


def test_suites_share_trials_and_call_them_their_own(copied: Path, computed: list[str]) -> None:
    run_suite(suite_of(copied, suite="other"), store=str(copied / "store"), out=copied / "other")
    assert computed == []
    assert {record.trial.suite for record in records(copied / "other").values()} == {"other"}
    assert {record.trial.suite for record in records(copied / "out").values()} == {"small"}


def test_two_tracks_may_differ_in_their_label_alone(tmp_path: Path, computed: list[str]) -> None:
    suite = suite_of(tmp_path, seeds="0", methods=f'collapsed, "{PLUGINS}:Talker"', attacks="", labels=("one", "two"))
    assert (run_in(tmp_path, suite).done, run_in(tmp_path, suite).skipped) == (8, 2)
    assert sorted({record.trial.scenario for record in records(tmp_path / "out").values()}) == ["one", "two"]
    assert all(len(record.anchors["original"]) == 1 for record in records(tmp_path / "out").values() if record.status == "done")
    assert computed.count("Population") == 2


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--workers is 0; it must be 1 or more"):
        run_in(tmp_path, workers=0)
    assert not (tmp_path / "store").exists()


def test_the_graph_lists_what_is_missing_and_only_that(copied: Path) -> None:
    suite, settings = suite_of(copied), Settings()
    store = Store(copied / "store")
    assert build_graph(suite, store, settings).nodes == {}
    shutil.rmtree(copied / "store" / "trial")
    assert {key.partition("/")[0] for key in build_graph(suite, store, settings).nodes} == {"trial"}
    shutil.rmtree(copied / "store" / "evidence")
    graph = build_graph(suite, store, settings)
    assert {key.partition("/")[0] for key in graph.nodes} == {"trial", "evidence"}
    assert all(node.after <= graph.nodes.keys() for node in graph.nodes.values())
    empty = build_graph(suite, Store(copied / "elsewhere"), settings)
    kinds = [key.partition("/")[0] for key in empty.nodes]
    assert {kind: kinds.count(kind) for kind in kinds} == {"population": 2, "evidence": 10, "unlearned": 6, "trial": 10}


def test_populations_are_grouped_for_the_device_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = suite_of(tmp_path)
    monkeypatch.setattr(type(suite.tracks[0].asked("class3")), "trained_together", property(lambda _: 2 if on("cuda") else 1))
    for device, expected in (("cpu", [1, 1, 1, 1]), ("cuda", [2, 2])):
        nodes = build_graph(suite, Store(tmp_path / "store"), Settings(device=device)).nodes.values()
        assert [len(node.payload.runs) for node in nodes if isinstance(node.payload, Population)] == expected


def on(device: str) -> bool:
    return hardware.get().device == device


def test_requests_with_one_original_train_it_once(tmp_path: Path) -> None:
    trials, _ = trials_of(suite_of(tmp_path, requests="class3, class4"))
    keys = {
        (trial.role, trial.place.request): population_key(trial.source.population, Settings())
        for trial in trials
        if trial.role in ("original", "oracle")
    }
    assert keys["original", "class3"] == keys["original", "class4"]
    assert keys["oracle", "class3"] != keys["oracle", "class4"]


def test_looking_at_a_large_suite_that_is_done_takes_no_time(copied: Path, computed: list[str]) -> None:
    methods = ", ".join(f"{{name: finetune, label: f{i}, epochs: 1, lr: 0.01, batch_size: 64}}" for i in range(19))
    suite = suite_of(copied, methods=methods)
    assert run_in(copied, suite).done == 42
    assert computed.count("Unlearned") == 0
    shutil.rmtree(copied / "out")
    computed.clear()
    start = time.process_time()
    assert run_in(copied, suite).done == 42
    assert time.process_time() - start < 2
    assert computed == []
