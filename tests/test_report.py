"""Reading a folder of records: which are shown, in which order, what is refused, and that committed tables come from their records."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from by_hand import ORACLES, anchors, beside, record, write

from unlearnbench import report
from unlearnbench.api import UserError
from unlearnbench.records import Record

RESULTS = Path(__file__).parent.parent / "results"
WRITTEN = ("leaderboard.md", "leaderboard.csv", "leaderboard.tex", "leaderboard.json", "leaderboard.png")


def records(**place: object) -> list[Record]:
    rows = [
        record(label, 0, {"probability": value, "rouge": 1.0 - value, "model_utility": utility, "perplexity": 1 - utility}, **place)
        for label, value, utility in (("near", 0.25, 0.9), ("far", 0.6, 1.0), ("below", 0.05, 0.95))
    ]
    found = anchors(
        [{"probability": 1.0, "rouge": 1.0, "model_utility": 1.0, "perplexity": 0.1}] * 2,
        [{"probability": v, "rouge": v, "model_utility": 1.0, "perplexity": 0.1} for v in ORACLES],
        **place,
    )
    return beside(found, *rows, record("broken", 0, status="failed", reason="NaN", **place))


def order(folder: Path, sort: str | None) -> list[str]:
    (board,) = json.loads(report.leaderboard(folder, sort=sort, fmt="json"))
    return [row["label"] for row in board["rows"] if row["role"] == "method"]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        (None, ["below", "near", "far", "broken"]),
        ("probability", ["near", "below", "far", "broken"]),  # 0.05, 0.15 and 0.4 from the oracles' 0.2
        ("model_utility", ["far", "below", "near", "broken"]),
        ("perplexity", ["far", "below", "near", "broken"]),
    ],
)
def test_methods_are_sorted_nearest_to_the_oracles_or_best_first(sort: str | None, expected: list[str], tmp_path: Path) -> None:
    only = [item.model_copy(update={"cells": tuple(cell for cell in item.cells if cell.metric != "rouge")}) for item in records()]
    assert order(write(tmp_path, only), sort) == expected


def test_without_a_gap_values_are_sorted(tmp_path: Path) -> None:
    assert order(write(tmp_path, [record("b", 0, {"rouge": 0.3}), record("a", 0, {"rouge": 0.1})]), "rouge") == ["a", "b"]


def test_a_board_without_the_column_keeps_its_order(tmp_path: Path) -> None:
    other = beside(
        anchors(scenario="digits"), *(record(label, 0, {"probability": v}, scenario="digits") for label, v in (("x", 0.9), ("y", 0.3)))
    )
    folder = write(tmp_path, [*records(), *other])
    before, after = (json.loads(report.leaderboard(folder, sort=sort, fmt="json")) for sort in (None, "perplexity"))
    assert after[1] == before[1]
    assert after[0] != before[0]


def test_what_cannot_be_shown_is_refused_with_what_can(tmp_path: Path) -> None:
    folder = write(tmp_path / "runs", records())
    with pytest.raises(UserError, match="--sort is 'speed'; the columns are: probability, rouge, model_utility, perplexity"):
        report.leaderboard(folder, sort="speed")
    with pytest.raises(UserError, match="--scenario is 'tofu'; the records speak of: authors"):
        report.leaderboard(folder, scenario="tofu")
    with pytest.raises(UserError, match="--format is 'pdf'; allowed: table, markdown, csv, latex, json"):
        report.leaderboard(folder, fmt="pdf")
    with pytest.raises(UserError, match="no folder of records"):
        report.leaderboard(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no records"):
        report.leaderboard(tmp_path / "empty")
    (folder / "npo-1.json").write_text('{"schema_version": 7}')
    with pytest.raises(UserError, match=r"npo-1.json: .*is it a record of schema 1\?"):
        report.leaderboard(folder)


def test_one_scenario_alone(tmp_path: Path) -> None:
    folder = write(tmp_path, [*records(), *records(scenario="digits", request="class3")])
    assert [board.scenario for board in report.load(folder)] == ["authors", "digits"]
    assert [board.scenario for board in report.load(folder, scenario="digits")] == ["digits"]


# ------------------------------------------------------------------------------------------------------------------ which records


def test_only_the_records_of_the_latest_run_are_shown(tmp_path: Path) -> None:
    stale = record("near", 0, {"probability": 0.9}, hyperparameters={"lr": 1.0})
    gone = record("gone", 0, {"probability": 0.9})
    folder = write(tmp_path, [*records(), stale, gone], named=records())
    (board,) = report.load(folder)
    assert "gone" not in [row.label for row in board.rows]
    assert next(row for row in board.rows if row.label == "near").scores["probability", None].value == pytest.approx(0.25)
    (folder / "suite.json").unlink()
    with pytest.raises(UserError, match="one of them is stale"):
        report.load(folder)


def test_a_manifest_speaks_of_its_own_folder(tmp_path: Path) -> None:
    write(tmp_path / "a", [*records(suite="a"), record("stale", 0, suite="a")], named=records(suite="a"))
    write(tmp_path / "b", records(suite="b"))
    found = report.load(tmp_path)
    assert [board.suite for board in found] == ["a", "b"]
    assert len(found[0].rows) == len(found[1].rows) == 7


def test_an_unfinished_run_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    every = records()
    with caplog.at_level(logging.WARNING):
        report.load(write(tmp_path, every[:-2], named=every))
    assert f"2 of {len(every)} records are not there yet" in caplog.text
    caplog.clear()
    report.load(write(tmp_path, every, named=every))
    assert caplog.text == ""


@pytest.mark.parametrize("text", ["{}", "no JSON", "[]"])
def test_a_broken_manifest_is_an_error(text: str, tmp_path: Path) -> None:
    write(tmp_path, records())
    (tmp_path / "suite.json").write_text(text)
    with pytest.raises(UserError, match=r"suite\.json does not name the records of a run"):
        report.load(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------- files


def test_all_files_are_written_and_the_same_again(tmp_path: Path) -> None:
    folder = write(tmp_path, records())
    paths = report.write_all(folder)
    assert tuple(path.name for path in paths) == WRITTEN
    before = [path.read_bytes() for path in paths]
    assert all(before)
    assert [path.read_bytes() for path in report.write_all(folder)] == before  # and none of them is taken for a record
    assert paths[0].read_text() == report.leaderboard(folder, fmt="markdown")
    assert json.loads(paths[3].read_text()) == json.loads(report.leaderboard(folder, fmt="json"))


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    folder = write(tmp_path, records())
    code = f"import sys\nfrom pathlib import Path\nfrom unlearnbench import report\nreport.write_all(Path({str(folder)!r}))\n"
    code += "heavy = {'torch', 'transformers', 'sklearn', 'pandas'} & set(sys.modules)\nassert not heavy, heavy\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def committed() -> list[Path]:
    return sorted({path.parent for path in RESULTS.rglob("suite.json")}) if RESULTS.is_dir() else []


@pytest.mark.skipif(not committed(), reason="results/ holds no records yet")
@pytest.mark.parametrize("folder", committed(), ids=lambda folder: folder.name)
def test_committed_tables_come_from_the_committed_records(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    for name in WRITTEN:
        (copy / name).unlink(missing_ok=True)
    report.write_all(copy)
    for name in WRITTEN[:-1]:
        assert (copy / name).read_bytes() == (folder / name).read_bytes(), f"{folder.name}/{name} is out of date: run make results"
    assert (folder / WRITTEN[-1]).is_file()
