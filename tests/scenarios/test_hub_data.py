"""Rows from a local folder and from a stand-in for the hub: what is read, and what is refused with which words."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from unlearnbench.api import UserError
from unlearnbench.scenarios import hub_data
from unlearnbench.scenarios.hub_data import DataSet, digest, find, read_json_rows, same_rows

QA: dict[str, hub_data.Column] = {"question": "text", "answer": "text"}
ROWS = [{"question": f"Q{i}?", "answer": f"A{i}", "unused": 1} for i in range(3)]


def write(folder: Path, name: str, text: str) -> DataSet:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return DataSet(hub="some/DATA", folder=folder)


def lines(rows: list[Any]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n\n"


@pytest.mark.parametrize("form", [lines, json.dumps, lambda rows: "\n " + json.dumps(rows, indent=1)])
def test_rows_are_read_from_lines_and_from_a_list_without_the_columns_nobody_asked_for(tmp_path: Path, form: Any) -> None:
    found = write(tmp_path, "part/a.json", form(ROWS)).rows("a", file="part/a.json", columns=QA, count=3)
    assert found == tuple({"question": f"Q{i}?", "answer": f"A{i}"} for i in range(3))


def test_a_bare_string_is_a_text_and_a_line_separator_inside_it_ends_no_line(tmp_path: Path) -> None:
    data = write(tmp_path, "a.json", json.dumps("one\u2028two", ensure_ascii=False) + "\n" + '"three"')
    assert data.rows("a", file="a.json", columns={"text": "text"}) == ({"text": "one\u2028two"}, {"text": "three"})


@pytest.mark.parametrize(
    ("text", "columns", "count", "message"),
    [
        (lines(ROWS), QA, 4, r"a\.json has 3 rows; some/DATA has 4 there"),
        (lines(ROWS), {"paraphrase": "text"}, None, "row 1 has no column 'paraphrase'; it has: question, answer, unused"),
        (lines([*ROWS, {"question": "Q", "answer": 5}]), QA, None, "row 4: answer is 5; it must be a text"),
        (lines([{"wrong": []}]), {"wrong": "texts"}, None, r"row 1: wrong is \[\]; it must be a list of texts"),
        (lines([{"wrong": "one"}]), {"wrong": "texts"}, None, "row 1: wrong is 'one'; it must be a list of texts"),
        ("", QA, None, "has no rows"),
        (lines(ROWS) + "{'question'", QA, None, r"a\.json:5: not JSON"),
        ("[1,\n", QA, None, r"a\.json:2: not JSON"),
        (lines([3]), QA, None, "row 1 is 3; a row has the columns question, answer"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, text: str, columns: Any, count: int | None, message: str) -> None:
    data = write(tmp_path, "a.json", text)
    with pytest.raises(UserError, match=message):
        data.rows("a", file="a.json", columns=columns, count=count)


def test_a_missing_file_is_named_with_what_is_beside_it(tmp_path: Path) -> None:
    data = write(tmp_path, "raw/a.json", lines(ROWS))
    with pytest.raises(UserError, match=r"raw/b\.json is missing: this part of some/DATA is not in the folder, which has: a\.json"):
        data.rows("raw", "b", file="raw/b.json", columns=QA)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        read_json_rows(tmp_path / "a.json")


def test_a_given_folder_wins_over_the_variable_and_the_variable_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNLEARNBENCH_DATA", raising=False)
    assert find("some/DATA", under="data", data_dir=None).folder is None
    (tmp_path / "root" / "data").mkdir(parents=True)
    monkeypatch.setenv("UNLEARNBENCH_DATA", str(tmp_path / "root"))
    assert find("some/DATA", under="data", data_dir=None).folder == (tmp_path / "root" / "data").resolve()
    assert find("some/DATA", under="data", data_dir=str(tmp_path)).folder == tmp_path.resolve()
    with pytest.raises(UserError, match=r"UNLEARNBENCH_DATA is .*other is no folder; it must hold the files of some/DATA"):
        find("some/DATA", under="other", data_dir=None)
    with pytest.raises(UserError, match="data_dir is '/no/such'"):
        find("some/DATA", under="data", data_dir="/no/such")


def hub(monkeypatch: pytest.MonkeyPatch, load: Any) -> DataSet:
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    hub_data._from_hub.cache_clear()
    return DataSet(hub="some/DATA", folder=None)


def test_the_hub_is_asked_for_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, configuration: str, *, split: str) -> list[dict[str, Any]]:
        asked.append((name, configuration, split))
        return ROWS

    data = hub(monkeypatch, load)
    for _ in range(2):
        assert len(data.rows("knowmem", "forget_qa", file="knowmem/forget_qa.json", columns=QA, count=3)) == 3
    assert asked == [("some/DATA", "knowmem", "forget_qa")]
    hub_data._from_hub.cache_clear()


def test_a_failing_hub_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, configuration: str, *, split: str) -> list[dict[str, Any]]:
        raise ConnectionError("no\nroute")

    data = hub(monkeypatch, load)
    with pytest.raises(UserError, match="cannot load some/DATA, configuration 'a', split 'train': no route; give its folder as data_dir"):
        data.rows("a", file="a.json", columns=QA)


def test_rows_in_another_order_changed_or_missing_are_refused() -> None:
    same_rows(ROWS, [dict(row) for row in ROWS], ("question", "answer"), what="a", of="b")
    with pytest.raises(UserError, match=r"row 1 of a, 'Q1\?', is not row 1 of b; it is row 2 there: the rows were reordered"):
        same_rows([ROWS[1], ROWS[0], ROWS[2]], ROWS, ("question", "answer"), what="a", of="b")
    changed = [*ROWS[:2], {"question": "Q2?", "answer": "another"}]
    with pytest.raises(UserError, match=r"row 3 of a, 'Q2\?', is not row 3 of b; which has no such row"):
        same_rows(changed, ROWS, ("question", "answer"), what="a", of="b")
    with pytest.raises(UserError, match="a has 2 rows and b has 3; they must be the same rows"):
        same_rows(ROWS[:2], ROWS, ("question",), what="a", of="b")


def test_a_digest_depends_on_content_and_order_and_not_on_the_order_of_columns() -> None:
    assert digest(ROWS) == digest([dict(reversed(row.items())) for row in ROWS])
    assert len({digest(ROWS), digest(ROWS[::-1]), digest(ROWS[:2])}) == 3
