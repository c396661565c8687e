"""Records as files: what comes back, what is refused, how values are pooled by cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from unlearnbench.api import UserError
from unlearnbench.records import Cell, Clusters, Record, TrialInfo, cluster_means, read_record, read_records, write_items


def record(label: str = "npo[lr=0.1]", key: str = "0c8f" * 6, **changes: Any) -> Record:
    info = TrialInfo(
        suite="small",
        scenario="digits",
        settings={"epochs": 2, "width": None},
        request="class3",
        request_kind="class",
        request_description="all threes",
        signal=True,
        step=0,
        method="npo",
        label=label,
        role="method",
        hyperparameters={"lr": 0.1},
        seed=4,
    )
    pooled = Clusters(digest=7, means=(0.1 + 0.2, 1 / 3), counts=(2, 1))
    cells = (
        Cell(metric="p", level="T2", direction="higher", bounds=(0, 1), side="forget", headline=True, value=0.1, n=3, clusters=pooled),
        Cell(
            metric="q", level="T2", direction="lower", bounds=(0, float(10**300)), side="utility", headline=False, status="na", reason="no"
        ),
    )
    given = {"key": key, "status": "done", "trial": info, "cells": cells, "anchors": {"oracle": ("a", "b")}, "provenance": {"commit": None}}
    return Record(**{**given, "volatile": {"seconds": 1.5}, **changes})


def test_a_record_comes_back_to_the_bit(tmp_path: Path) -> None:
    written = record()
    path = written.write(tmp_path / "new")
    assert path == tmp_path / "new" / "npo_lr_0.1_-0c8f0c8f0c8f0c8f.json"
    assert read_record(path) == written
    assert json.loads(path.read_text())["schema_version"] == 1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_stable_leaves_out_the_volatile_block_and_nothing_else() -> None:
    plain = record()
    assert plain.stable() == record(volatile={"seconds": 9.0}).stable()
    assert set(plain.stable()) == set(Record.model_fields) - {"volatile"}
    for change in ({"key": "1" * 24}, {"status": "failed"}, {"reason": "x"}, {"cells": ()}, {"anchors": {}}, {"provenance": {}}):
        assert record(**change).stable() != plain.stable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the file: Invalid JSON"),
        ("[]", "the file: "),
        (lambda plain: plain.pop("key"), "key: Field required"),
        (lambda plain: plain.update(schema_version=2), "schema_version: Input should be 1"),
        (lambda plain: plain["cells"][0].update(mean=1), "cells.0.mean: Extra inputs are not permitted"),
        (lambda plain: plain["trial"].update(role="judge"), "trial.role: Input should be 'original'"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: Any, message: str) -> None:
    path = tmp_path / "a-1.json"
    if not isinstance(text, str):
        plain = record().model_dump(mode="json")
        text(plain)
        text = json.dumps(plain)
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_record(path)
    assert f"{path}: {message}" in str(error.value)
    assert str(error.value).endswith("is it a record of schema 1?")
    assert "\n" not in str(error.value)


def test_a_folder_gives_the_records_of_its_latest_run(tmp_path: Path) -> None:
    first, second = record("one"), record("two")
    first.write(tmp_path)
    second.write(tmp_path / "sub")
    assert read_records(tmp_path) == [first, second]
    (tmp_path / "suite.json").write_text(json.dumps({"records": []}))
    assert read_records(tmp_path) == [second]
    with pytest.raises(UserError, match="is no folder of records"):
        read_records(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no records"):
        read_records(tmp_path / "empty")


def test_means_and_sizes_are_those_of_the_clusters() -> None:
    values = {"r1": 1.0, "r2": 3.0, "r3": 10.0, "r4": -1.0}
    found = cluster_means(values, {"r1": "b", "r2": "b", "r3": "a", "r4": "c", "unused": "z"})
    assert (found.means, found.counts) == ((10.0, 2.0, -1.0), (1, 2, 1))


@pytest.mark.parametrize("clusters", [3, 64, 65, 500])
def test_pooling_keeps_the_mean_over_rows_and_bounds_the_size(clusters: int) -> None:
    numbers = np.random.default_rng(clusters)
    values = {f"r{i}": float(numbers.normal()) for i in range(3 * clusters)}
    owner = {row: f"author {numbers.integers(clusters) if i >= clusters else i}" for i, row in enumerate(values)}
    found = cluster_means(values, owner)
    assert len(found.means) == len(found.counts) == (clusters if clusters <= 64 else len(found.means))
    assert len(found.means) <= 64
    assert sum(found.counts) == len(values)
    assert np.average(found.means, weights=found.counts) == pytest.approx(np.mean(list(values.values())), abs=1e-12)
    # Rows of one cluster stay together: giving a whole cluster another value changes one mean alone.
    changed = cluster_means({row: value + (owner[row] == "author 1") for row, value in values.items()}, owner)
    assert sum(before != after for before, after in zip(found.means, changed.means, strict=True)) == 1


@pytest.mark.parametrize("clusters", [5, 1000])
def test_the_digest_tells_clusters_apart_and_not_values_or_order(clusters: int) -> None:
    rows = [f"r{i}" for i in range(clusters)]

    def digest(prefix: str, value: float = 1.0, order: int = 1) -> int:
        return cluster_means(dict.fromkeys(rows[::order], value), {row: prefix + row for row in rows}).digest

    assert digest("a") == digest("a", value=2.0) == digest("a", order=-1)
    assert digest("a") != digest("b")


def test_per_item_values_are_a_table(tmp_path: Path) -> None:
    items = [("p", None, None, "r1", "c1", 0.1 + 0.2), ("p", "relearning", 4, "r2", "c1", -1.5)]
    write_items(tmp_path / "items.parquet", items)
    table = pq.read_table(tmp_path / "items.parquet")
    assert table.column_names == ["metric", "attack", "step", "row", "cluster", "value"]
    assert [tuple(row.values()) for row in table.to_pylist()] == items
    write_items(tmp_path / "none.parquet", [])
    empty = pq.read_table(tmp_path / "none.parquet")
    assert (empty.num_rows, empty.schema) == (0, table.schema)
