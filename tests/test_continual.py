"""Requests in sequence, followed by hand-made records: what is left of each request after every step."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from by_hand import anchors, beside, cell, record, write

from unlearnbench import continual, report
from unlearnbench.records import Record, write_items
from unlearnbench.tables import boards

KNOWN = {
    # (label, step): what is known of a request's clusters; the first request's are a and b, the second's c
    ("original", 0): {"a": 1.0, "b": 0.8},
    ("original", 1): {"a": 1.0, "b": 0.8, "c": 1.0},
    ("oracle", 0): {"a": 0.2, "b": 0.2},
    ("oracle", 1): {"a": 0.2, "b": 0.2, "c": 0.0},
    ("mine", 0): {"a": 0.2, "b": 0.2},
    ("mine", 1): {"a": 0.6, "b": 0.5, "c": 0.25},
}


def items(step: int, label: str) -> list[tuple[str, str | None, int | None, str, str, float]]:
    rows = [("probability", None, None, f"{name}{n}", name, value) for name, value in KNOWN[label, step].items() for n in range(2)]
    others = [("loss_attack", None, None, f"{name}0", name, -9.0) for name in ("a", "z")]  # z is held out
    attacked = [("probability", "relearning", 4, "a0", "a", 7.0)]
    return [*rows, *others, *attacked]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records: list[Record] = []
    for step in range(2):
        auc = cell("loss_attack", 0.9, two_sided=True)
        known = {"probability": 0.95, "loss_attack": auc, "model_utility": 1.0}
        unknown = [
            {"probability": v, "loss_attack": cell("loss_attack", 0.5 + v / 10, two_sided=True), "model_utility": 1.0} for v in (0.1, 0.2)
        ]
        mine = record("mine", 0, {"probability": 0.3, "loss_attack": auc, "model_utility": 0.9 - step / 10}, step=step, request="sequence")
        found = anchors([known], unknown, step=step, request="sequence")
        records += beside(found, mine)
    for item in records:
        item.write(tmp_path)
        write_items((tmp_path / item.filename).with_suffix(".parquet"), items(item.trial.step, item.trial.label))
    return write(tmp_path, records, records)


def test_each_request_is_followed_on_the_scale_of_the_anchors(folder: Path) -> None:
    records = report.read_records(folder)
    found = {course.label: course for course in continual.courses(folder, records, boards(records))}
    assert set(found) == {"original", "mine"}
    mine = found["mine"]
    assert mine.left[0] == pytest.approx((0.0, (0.55 - 0.2) / (0.9 - 0.2)))
    assert mine.left[1][0] is None
    assert mine.left[1][1] == pytest.approx(0.25)
    assert mine.kept == pytest.approx((0.9, 0.8))
    assert found["original"].left[0] == pytest.approx((1.0, 1.0))


def test_the_table_and_the_picture_stand_beside_the_leaderboard(folder: Path) -> None:
    written = report.write_all(folder)
    assert [path.name for path in written[-2:]] == ["continual.csv", "continual.png"]
    assert written[-1].stat().st_size > 10_000
    rows = list(csv.DictReader((folder / "continual.csv").open(encoding="utf-8")))
    mine = [(row["step"], row["what"], row["value"]) for row in rows if row["label"] == "mine"]
    assert mine == [
        ("1", "utility kept", "0.9"),
        ("2", "utility kept", "0.8"),
        ("1", "left of request 1", "0"),
        ("2", "left of request 1", "0.5"),
        ("2", "left of request 2", "0.25"),
    ]


def test_records_without_their_items_have_a_leaderboard_and_no_course(folder: Path) -> None:
    next(folder.glob("oracle-*.parquet")).unlink()
    assert "continual.csv" not in [path.name for path in report.write_all(folder)]


def test_a_single_request_has_no_course(tmp_path: Path) -> None:
    records = beside(anchors())
    write(tmp_path, records)
    assert continual.courses(tmp_path, records, boards(records)) == []
    assert not (tmp_path / "continual.png").exists()
