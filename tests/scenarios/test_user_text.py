"""A user's own files: questions and texts, alone and together, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unlearnbench import registry
from unlearnbench.api import Need, UserError
from unlearnbench.contracts.checks import Report
from unlearnbench.contracts.data import check_scenario
from unlearnbench.scenarios.user_text import Text

TINY = {"source": "scratch", "width": 8, "layers": 1, "heads": 2, "vocabulary": 300, "context": 48, "epochs": 1, "batch_size": 4}


def questions(name: str, n: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {name} {i}?", "answer": f"{name} is {i}", "cluster": i // 2} for i in range(n)]


def texts(name: str, n: int) -> list[dict[str, Any]]:
    return [{"text": " ".join(f"{name}{i}w{word}" for word in range(20))} for i in range(n)]


def text(folder: Path, files: dict[str, list[Any]], request: str = "forget", **fields: Any) -> Text:
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    paths = {name: str(folder / f"{name}.jsonl") for name in files}
    made = registry.make("scenarios", "text", {"request": request, "models": TINY, **paths, **fields})
    assert isinstance(made, Text)
    return made


ASKED = {"forget": questions("forget", 8), "retain": questions("retain", 40), "holdout": questions("holdout", 8)}
WRITTEN = {"forget": texts("forget", 4), "retain": texts("retain", 30), "holdout": texts("holdout", 4)}


@pytest.mark.slow
def test_the_contract_of_scenarios_is_kept_on_texts(tmp_path: Path) -> None:
    report = Report()
    check_scenario(report, text(tmp_path, WRITTEN))
    assert [result for result in report.results if not result.passed] == []
    assert len(report.results) > 15


def test_rows_of_a_cluster_stay_together(tmp_path: Path) -> None:
    scenario = text(tmp_path, ASKED)
    assert scenario.forget_rows() == {f"forget/{i}" for i in range(4)}
    assert [row.question for row in scenario.split("forget").examples] == [row["question"] for row in ASKED["forget"]]
    held = scenario.held_clusters()
    assert len(held) == 2
    assert set(scenario.held().train.clusters) == held
    assert len(scenario.judged()) == 4


def test_what_is_spared_is_for_early_stopping_alone(tmp_path: Path) -> None:
    view = (scenario := text(tmp_path, ASKED)).method_view()
    spared = set(view["validation"].clusters)
    assert len(spared) == 1
    assert not spared & {
        *view["retain"].train.clusters,
        *scenario.split("retain").clusters,
        *scenario.attack_parts()["retain"].train.clusters,
    }
    assert spared <= set(scenario.trained_on(scenario.plan("oracle")).train.clusters)
    assert {*view["retain"].train.clusters} | spared == {f"retain/{i}" for i in range(20)}


def test_long_texts_are_cut_and_short_ones_not(tmp_path: Path) -> None:
    scenario = text(tmp_path, {**WRITTEN, "holdout": ["a short text", "another one"]})
    forget = scenario.split("forget")
    joined = {cluster: "".join(row.answer for row in forget.examples if row.cluster == cluster) for cluster in forget.clusters}
    assert list(joined.values()) == [row["text"] for row in WRITTEN["forget"]]
    assert len(forget) > len(joined)
    assert [row.answer for row in scenario.split("holdout").examples] == ["a short text", "another one"]


def test_texts_are_forgotten_and_questions_retained(tmp_path: Path) -> None:
    scenario = text(tmp_path, {"forget": WRITTEN["forget"], "retain": ASKED["retain"]}, retain_rows=5)
    assert scenario.rows("forget", scenario.split("forget"), None).ends is False
    assert scenario.rows("retain", scenario.split("retain"), None).ends is True
    assert len(scenario.split("retain")) == 5
    original = scenario.trained_on(scenario.plan("original")).train
    assert {bool(row.question) for row in original.examples} == {True, False}
    assert original.batch([0, len(original) - 1])["prompts"][0].startswith("Question: ")
    evidence = scenario.evidence(scenario.build(0), frozenset(Need(what="tokens", split=name) for name in ("forget", "retain")))
    assert len(evidence.ids["retain"]) == 5
    elsewhere = scenario.with_request("validation")
    assert {bool(row.question) for row in elsewhere.split("retain").examples} == {True}
    assert "unrelated" not in scenario.attack_parts()


def test_without_rows_to_hold_out_the_split_says_so(tmp_path: Path) -> None:
    scenario = text(tmp_path, {name: ASKED[name] for name in ("forget", "retain")})
    with pytest.raises(UserError, match="text has no rows to hold out: give their file as `holdout`"):
        scenario.split("holdout")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"forget": []}, r"forget\.jsonl has no rows; a row is {question, answer} or {text}"),
        ({"forget": [{"question": "Q?"}]}, r"row 1 is .*; a row is {question, answer} or {text}"),
        ({"forget": [*ASKED["forget"], {"text": "x"}]}, "has rows of both kinds"),
        ({"forget": [{"question": "Q?", "answer": " "}]}, "row 1 is .*; its columns must be texts with at least one word"),
        ({"forget": [{"question": "Q?", "answer": 3}]}, "row 1 is .*; its columns must be texts with at least one word"),
        ({"retain": ASKED["retain"][:4]}, r"retain\.jsonl has 2 clusters to retain; at least 3 are needed"),
        ({"retain": [*ASKED["retain"], ASKED["forget"][0]]}, r"retain/41 \('What is forget 0\?'\) is among the rows to forget too"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, files: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        text(tmp_path, {**ASKED, **files}).split("forget")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    scenario = text(tmp_path, ASKED, forget=str(tmp_path / "no.jsonl"))
    with pytest.raises(UserError, match=r"no\.jsonl: No such file"):
        scenario.split("forget")


def test_a_question_that_does_not_fit_the_context_is_refused(tmp_path: Path) -> None:
    scenario = text(tmp_path, {**ASKED, "forget": [{"question": 60 * "long ", "answer": "short"}]})
    with pytest.raises(UserError, match=r"alone has .* tokens; the context allows 48"):
        scenario.split("forget").batch([0])
