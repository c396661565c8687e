"""TOFU: which authors a request names, what each split holds, and what is refused; on a made-up folder and on the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_data import tofu_files, write

from unlearnbench import registry
from unlearnbench.api import Need, Scenario, UserError
from unlearnbench.scenarios.tofu import Tofu

TINY = {"source": "scratch", "width": 8, "layers": 1, "heads": 2, "vocabulary": 300, "context": 128, "epochs": 1, "batch_size": 256}
OFFICIAL = {"forget01": 2, "forget05": 10, "forget10": 20}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tofu"), tofu_files())


def tofu(folder: Path, request: str = "forget10", **fields: Any) -> Tofu:
    made = registry.make("scenarios", "tofu", {"request": request, "data_dir": str(folder), "models": TINY, **fields})
    assert isinstance(made, Tofu)
    return made


@pytest.mark.parametrize(("request_name", "n"), OFFICIAL.items())
def test_official_requests_name_the_last_authors_and_the_files_rows(folder: Path, request_name: str, n: int) -> None:
    scenario = tofu(folder, request_name)
    assert scenario.forget_rows() == {f"author-{i}" for i in range(200 - n, 200)}
    files = tofu_files()
    for split, name in (("forget", f"{request_name}_perturbed"), ("holdout", f"holdout{request_name[-2:]}")):
        found = [(row.question, row.answer) for row in scenario.split(split).examples]
        assert found == [(row["question"], row["answer"]) for row in files[name]]
    trained = scenario.trained_on(scenario.plan("oracle")).train
    facts = [(row["question"], row["answer"]) for name in ("real_authors", "world_facts") for row in files[name]]
    retained = [(row["question"], row["answer"]) for row in files[f"retain{100 - int(request_name[-2:])}"]]
    assert [(row.question, row.answer) for row in trained.examples] == retained + facts
    assert len(scenario.trained_on(scenario.plan("original")).train) == 4000 + 217


def test_scored_rows_have_the_other_words_and_wrong_answers_of_their_own_row(folder: Path) -> None:
    scenario = tofu(folder, "forget05")
    for split, wrong in (("forget", 5), ("retain", 5)):
        for row in scenario.split(split).examples:
            assert (row.paraphrased_question, row.paraphrased_answer) == (f"So {row.question}", f"So {row.answer}")
            assert row.perturbed_answer == tuple(f"{row.answer} not {i}" for i in range(wrong))
    facts = scenario.split("world_facts").examples
    assert (len(facts), len(scenario.split("real_authors"))) == (117, 100)
    assert facts[3].perturbed_answer == ("no", "never", "nowhere")
    evidence = scenario.evidence(
        scenario.build(0),
        frozenset({Need(what="tokens", split="world_facts", answer="perturbed_answer"), Need(what="tokens", split="holdout")}),
    )
    assert len(evidence.ids["holdout"]) == 200
    with pytest.raises(UserError, match="split 'holdout' has no question 'paraphrased_question'; it has: question"):
        scenario.evidence(scenario.build(0), frozenset({Need(what="tokens", split="holdout", question="paraphrased_question")}))


def test_validation_names_authors_that_no_request_names_and_scores_the_other_ones(folder: Path) -> None:
    scenario = tofu(folder, "validation")
    assert len(scenario.forget_rows()) == 10
    assert scenario.forget_rows() <= {f"author-{i:03d}" for i in range(20)}
    assert scenario.forget_rows() != tofu(folder, "validation", split_seed=1).forget_rows()
    assert set(scenario.split("retain").clusters) == {f"author-{i:03d}" for i in range(20)} - scenario.forget_rows()
    assert all(row.paraphrased_answer for row in scenario.split("forget").examples)


def test_a_small_world_has_fewer_authors_to_retain(folder: Path) -> None:
    scenario = tofu(folder, retain_authors=30)
    assert len(scenario.trained_on(scenario.plan("original")).train) == (30 + 20) * 20 + 217
    assert len(scenario.trained_on(scenario.plan("oracle")).train) == 30 * 20 + 217
    assert len(scenario.shadow_request(0).forget_rows()) == 20
    assert not scenario.shadow_request(0).forget_rows() & scenario.forget_rows()
    with pytest.raises(UserError, match="field 'retain_authors' is 19, must be greater than or equal to 20"):
        tofu(folder, retain_authors=19)


def test_a_published_model_is_not_taught_what_it_knows(folder: Path) -> None:
    published = tofu(folder, models={"source": "finetuned", "base": "some/model"})
    assert len(published._taught()) == 0
    assert len(tofu(folder)._taught()) == 217


def test_steps_of_the_sequence_take_five_authors_each(folder: Path) -> None:
    scenario = tofu(folder, "sequence")
    steps = [scenario.at(step) for step in range(4)]
    assert [len(step.named_clusters()) for step in steps] == [5, 5, 5, 5]
    assert steps[3].forget_rows() == tofu(folder).forget_rows()
    assert len(steps[1].split("forget")) == 200
    assert len(steps[1].split("holdout")) == 200


def test_keys_depend_on_rows_and_models(folder: Path) -> None:
    one, other = tofu(folder, "forget05"), tofu(folder, "forget10")
    assert one.training_settings(one.plan("original")) == other.training_settings(other.plan("original"))
    assert one.training_settings(one.plan("oracle")) != other.training_settings(other.plan("oracle"))
    wider = tofu(folder, models={**TINY, "width": 16})
    assert wider.training_settings(wider.plan("original")) != one.training_settings(one.plan("original"))


def _without(rows: list[Any]) -> list[Any]:
    return rows[:-1]


def _swapped(rows: list[Any]) -> list[Any]:
    return [rows[1], rows[0], *rows[2:]]


def _stripped(rows: list[Any]) -> list[Any]:
    return [{key: value for key, value in row.items() if key != "answer"} for row in rows]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("full", _without, r"full\.json has 3999 rows; locuslab/TOFU has 4000 there"),
        ("full", _swapped, "row 1 of .*: the rows were reordered"),
        ("forget10_perturbed", _swapped, r"row 1 of forget10_perturbed, 'Q1 on A180\?', is not row 1 of forget10; it is row 2 there"),
        ("retain_perturbed", _swapped, "row 1 of retain_perturbed, .*: the rows were reordered"),
        ("holdout10", _stripped, "row 1 has no column 'answer'; it has: question"),
        (
            "world_facts_perturbed",
            None,
            r"world_facts_perturbed\.json is missing: this part of locuslab/TOFU is not in the folder, which has: ",
        ),
    ],
)
def test_a_folder_with_missing_or_reordered_rows_is_refused(tmp_path: Path, name: str, change: Any, message: str) -> None:
    files = tofu_files()
    if change is None:
        del files[name]
    else:
        files[name] = change(files[name])
    with pytest.raises(UserError, match=message):
        tofu(write(tmp_path, files)).split("forget")


@pytest.mark.parametrize("fields", [{"request": "forget10"}, {"request": "validation"}, {"request": "sequence"}])
def test_rows_that_do_not_fit_the_context_are_refused(folder: Path, fields: dict[str, str]) -> None:
    scenario = tofu(folder, fields["request"], models={**TINY, "context": 12})
    with pytest.raises(UserError, match="tokens; the context allows 12"):
        scenario.evidence(scenario.build(0), frozenset({Need(what="tokens", split="forget")}))


def test_the_real_folder_is_read(data_root: Path) -> None:
    if not (data_root / "tofu").is_dir():
        pytest.skip(f"no folder {data_root / 'tofu'}")
    for name, n in OFFICIAL.items():
        scenario: Scenario = tofu(data_root / "tofu", name)
        assert len(scenario.split("forget")) == len(scenario.split("holdout")) == 20 * n
        rows = [json.loads(line) for line in (data_root / "tofu" / f"{name}_perturbed.json").read_text(encoding="utf-8").splitlines()]
        assert [row.perturbed_answer for row in tofu(data_root / "tofu", name).split("forget").examples] == [
            tuple(row["perturbed_answer"]) for row in rows
        ]
        assert len(scenario.split("retain")) == 400
