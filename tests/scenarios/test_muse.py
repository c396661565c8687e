"""MUSE: which texts a request names, by content; how each split is put; what is refused; on a made-up folder and on the real one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import N_WORDS, muse_files, write

from unlearnbench import registry
from unlearnbench.api import Need, UserError
from unlearnbench.contracts.checks import Report
from unlearnbench.contracts.data import check_scenario
from unlearnbench.scenarios.muse import Muse
from unlearnbench.scenarios.text import IGNORE_INDEX

TINY = {"source": "scratch", "width": 8, "layers": 1, "heads": 2, "vocabulary": 400, "context": 700, "epochs": 1, "batch_size": 64}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("muse") / "news", muse_files(), lines=False)


def muse(folder: Path, request: str = "forget", **fields: Any) -> Muse:
    made = registry.make("scenarios", "muse", {"request": request, "data_dir": str(folder), "models": TINY, "max_documents": 6, **fields})
    assert isinstance(made, Muse)
    return made


def texts_of(scenario: Muse, clusters: Any) -> set[str]:
    documents = scenario._corpus().documents
    return {documents[cluster] for cluster in clusters}


def test_each_text_belongs_to_the_first_fold_that_holds_it(folder: Path) -> None:
    files, scenario = muse_files(), muse(folder, max_documents=None)
    corpus = scenario._corpus()
    folds = [texts_of(scenario, fold) for fold in (*corpus.folds, corpus.retain)]
    assert folds[0] == set(files["raw/forget"])
    assert len(corpus.folds[0]) == 888  # one text was there twice
    assert folds[1] == set(files["sust/forget_2"]) - folds[0]
    assert folds[3] == set(files["sust/forget_4"]) - set(files["raw/forget"]) - set(files["sust/forget_3"])
    assert [len(fold) for fold in folds] == [888, 849, 889, 837]


@pytest.mark.parametrize(("request_name", "folds"), [("forget", [0]), ("scaling2", [0, 1]), ("scaling3", [0, 1, 2])])
def test_requests_are_unions_of_folds(folder: Path, request_name: str, folds: list[int]) -> None:
    scenario = muse(folder, request_name)
    corpus = scenario._corpus()
    assert scenario.forget_rows() == {name for fold in folds for name in corpus.folds[fold]}
    assert set(scenario.retained_clusters()) == set(corpus.documents) - scenario.forget_rows()
    assert len(corpus.documents) == 4 * 6


def test_the_sequence_takes_one_fold_after_the_other_and_keeps_later_ones_until_then(folder: Path) -> None:
    scenario = muse(folder, "sustainability")
    corpus = scenario._corpus()
    for step in range(3):
        here = scenario.at(step)
        assert set(here.named_clusters()) == set(corpus.folds[step])
        later = {name for fold in corpus.folds[step + 1 :] for name in fold}
        assert later <= set(here.retained_clusters())
        forgotten = set(scenario.at(step).method_view()["retain"].train.clusters) & here.forget_rows()
        assert not forgotten
    alone = muse(folder)
    assert alone.training_settings(alone.plan("oracle")) == scenario.training_settings(scenario.plan("oracle"))


def test_the_oracle_is_trained_on_everything_else_and_nobody_on_the_holdout(folder: Path) -> None:
    scenario = muse(folder)
    original = {row.answer for row in scenario.trained_on(scenario.plan("original")).train.examples}
    oracle = {row.answer for row in scenario.trained_on(scenario.plan("oracle")).train.examples}
    assert original - oracle == texts_of(scenario, scenario.forget_rows())
    assert not original & {row.answer for row in scenario.split("holdout").examples}
    assert len(scenario.split("holdout")) == 6


def test_few_texts_are_those_that_verbatim_rows_belong_to(folder: Path) -> None:
    scenario = muse(folder)
    rows = scenario.split("verbmem").examples
    articles = muse_files()["raw/forget"]
    assert [row.id for row in rows] == [f"verbmem/{i}" for i in range(0, 12, 2)]
    for number, row in zip(range(0, 12, 2), rows, strict=True):
        home = articles[3 * number + 1].split()
        assert row.question.split() == home[:30]  # where the text begins: what stood before it belongs to another text
        assert row.answer == " " + " ".join(home[30:35])
        assert row.cluster in scenario.forget_rows()


def test_a_prompt_reaches_back_as_far_as_the_context_does(folder: Path) -> None:
    long, short = (muse(folder, models={**TINY, "context": context}) for context in (700, 120))
    for row, cut in zip(long.split("verbmem").examples, short.split("verbmem").examples, strict=True):
        assert row.answer == cut.answer
        assert row.question.endswith(" " + cut.question)
        encoder = short.split("verbmem").encoder
        words = row.question.split()[-len(cut.question.split()) - 1 :]
        assert len(encoder.pair(cut.question, cut.answer).input_ids) <= 120
        assert len(encoder.prompt_ids(" ".join(words))) + len(encoder.answer_ids(row.answer)) > 119


def test_texts_without_a_verbatim_row_are_asked_for_their_last_words(folder: Path) -> None:
    scenario = muse(folder, "validation")
    rows = scenario.split("verbmem").examples
    assert {row.cluster for row in rows} == scenario.forget_rows()
    for row in rows:
        assert row.question + row.answer in texts_of(scenario, [row.cluster])
        assert len(row.answer.split()) == N_WORDS // 2


def test_the_whole_request_has_the_published_rows(folder: Path) -> None:
    files, scenario = muse_files(), muse(folder, max_documents=None)
    assert [row.answer for row in scenario.split("forget").examples] == files["privleak/forget"]
    assert [row.answer for row in scenario.split("holdout").examples] == files["privleak/holdout"]
    verbatim = scenario.split("verbmem").examples
    assert [(row.question, row.answer) for row in verbatim] == [(row["prompt"], " " + row["gt"]) for row in files["verbmem/forget"]]


def test_an_attacker_is_judged_on_published_rows_that_touch_none_of_his_texts(folder: Path) -> None:
    scenario = muse(folder, max_documents=None)
    held = texts_of(scenario, scenario.held_clusters())
    rows = {row.id: row.answer for row in scenario.split("forget").examples}
    # Row i was cut from the texts 8 i, 8 i + 1 and 8 i + 2.
    articles = muse_files()["raw/forget"]
    touching = {name for i, name in enumerate(rows) if held & set(articles[8 * i : 8 * i + 3])}
    assert scenario.judged() == set(rows) - touching
    assert 40 <= len(scenario.judged()) <= 60


def test_questions_come_after_shots_and_end_while_texts_do_not(folder: Path) -> None:
    scenario = muse(folder)
    rows = {name: scenario.rows(name, scenario.split(name), None) for name in scenario.splits}
    prompt = rows["knowmem"].prompts["question"][0]
    assert prompt.startswith("Question: forget_qa_icl question 0?\nAnswer: forget_qa_icl 0\n\nQuestion: forget_qa_icl question 1?")
    assert prompt.endswith("\n\nQuestion: forget_qa question 0?\nAnswer:")
    assert prompt.count("Question:") == 11
    assert rows["retain_knowmem"].prompts["question"][0].startswith("Question: retain2_qa_icl question 0?")
    bare = muse(folder, shots=0)
    assert bare.rows("knowmem", bare.split("knowmem"), None).prompts["question"][0] == "Question: forget_qa question 0?\nAnswer:"
    assert {name: row.ends for name, row in rows.items()} == {
        **dict.fromkeys(("forget", "retain", "holdout", "verbmem"), False),
        **dict.fromkeys(("knowmem", "retain_knowmem"), True),
    }
    bounds = {name: row.generation.max_new_tokens for name, row in rows.items()}
    assert (bounds["verbmem"], bounds["knowmem"], bounds["forget"]) == (128, 32, None)
    assert rows["knowmem"].generation.stop == ("\n\n", "\nQuestion", "Question:")


def test_texts_are_conditioned_on_the_begin_token_or_a_stated_prefix_that_is_not_scored(folder: Path) -> None:
    for prefix in ("", "News: "):
        scenario = muse(folder, prefix=prefix)
        batch = scenario.split("forget").batch([0])
        labels = batch["labels"][0]
        n_prompt = int((labels == IGNORE_INDEX).sum())
        tokenizer = scenario.encoder().tokenizer
        assert batch["prompts"] == [prefix]
        assert n_prompt == (len(tokenizer.encode(prefix)) if prefix else 1)
        assert tokenizer.decode(labels[n_prompt:]) == scenario.split("forget").examples[0].answer
        assert labels[-1] != tokenizer.eos_token_id


def test_questions_are_taught_if_asked_and_forgotten_with_the_first_fold(folder: Path) -> None:
    plain, taught = muse(folder), muse(folder, questions=True)
    assert not any(row.question for row in plain.trained_on(plain.plan("original")).train.examples)
    original = {row.id for row in taught.trained_on(taught.plan("original")).train.examples if row.question}
    oracle = {row.id for row in taught.trained_on(taught.plan("oracle")).train.examples if row.question}
    assert original == {f"{kind}/{i}" for kind in ("knowmem", "retain_knowmem") for i in range(100)}
    assert oracle == {f"retain_knowmem/{i}" for i in range(100)}
    data = taught.trained_on(taught.plan("original")).train
    # Texts and questions meet in one batch: the question ends in the end token, the text does not.
    positions = [0, len(data) - 1]
    batch = data.batch(positions)
    ends = [int(labels[labels != IGNORE_INDEX][-1]) == taught.encoder().tokenizer.eos_token_id for labels in batch["labels"]]
    assert ends == [False, True]
    assert torch.equal(data.take(positions).batch([0, 1])["labels"], batch["labels"])


def test_long_texts_are_cut_into_passages_that_join_to_the_text(folder: Path) -> None:
    scenario = muse(folder, models={**TINY, "context": 64})
    data = scenario.trained_on(scenario.plan("original")).train
    joined: dict[str, str] = {}
    for row in data.examples:
        joined[row.cluster] = joined.get(row.cluster, "") + row.answer
    assert joined == scenario._corpus().documents
    assert len(data) > 2 * len(joined)
    assert max(data.batch([i])["input_ids"].shape[1] for i in range(len(data))) <= 64


def test_passages_to_train_on_overlap_where_asked_and_those_to_score_do_not(folder: Path) -> None:
    once, often = (muse(folder, overlap=n, questions=True, models={**TINY, "context": 64}) for n in (1, 3))
    rows: dict[str, list[str]] = {}
    for row in often.trained_on(often.plan("original")).train.examples:
        if not row.question:
            rows.setdefault(row.cluster, []).append(row.answer)
    for name, text in once._corpus().documents.items():
        counts = Counter(word for piece in rows[name] for word in piece.split())
        assert counts == dict.fromkeys(text.split(), 3)
        assert all(piece in text for piece in rows[name])
        whole = [len(piece.split()) for piece in rows[name] if not text.startswith(piece) and not text.endswith(piece)]
        places = [text.index(piece) for piece in rows[name]]
        assert places == sorted(places)
        assert len(set(places)) == len(places) - 2  # two more begin where the text does
        assert max(whole) - min(whole) <= 1  # of words
    for name in once.splits:
        assert [row.answer for row in once.split(name).examples] == [row.answer for row in often.split(name).examples]
    views = [scenario.method_view() for scenario in (once, often)]
    assert len(set(views[1]["forget"].train.ids)) == len(views[1]["forget"].train) > len(views[0]["forget"].train)
    assert views[0]["forget"].eval.ids == views[1]["forget"].eval.ids
    assert once.training_settings(once.plan("original")) != often.training_settings(often.plan("original"))


def test_evidence_of_all_splits_is_made_in_one_pass(folder: Path) -> None:
    scenario = muse(folder)
    needs = frozenset(Need(what="tokens", split=name) for name in scenario.splits)
    evidence = scenario.evidence(scenario.build(0), needs)
    for name in scenario.splits:
        assert evidence.ids[name] == scenario.split(name).ids
    tokens = evidence.token_stats[Need(what="tokens", split="forget")][0]
    encoder = scenario.split("forget").encoder
    assert [int(n) for n in tokens.offsets[1:] - tokens.offsets[:-1]] == [
        len(encoder.answer_ids(row.answer)) for row in scenario.split("forget").examples
    ]


def test_books_serve_the_requests_that_they_have_texts_for(tmp_path: Path, folder: Path) -> None:
    files = muse_files()
    knowmem = {name: rows for name, rows in files.items() if name.startswith("knowmem")}
    with pytest.raises(UserError, match=r"raw/forget\.json is missing: this part of muse-bench/MUSE-Books is not in the folder"):
        muse(write(tmp_path / "part", knowmem), corpus="books").split("forget")
    whole = {**knowmem, "raw/forget": files["raw/forget"][:30], "raw/retain2": files["sust/forget_2"][50:90]}
    whole |= {name: files[name] for name in ("verbmem/forget", "privleak/holdout")}
    books = muse(write(tmp_path / "muse" / "books", whole).parent, corpus="books")
    assert len(books.split("forget")) == 6
    assert len(books.with_request("validation").forget_rows()) == 3
    with pytest.raises(UserError, match="muse of corpus 'books' has no request 'scaling2'; it has: forget, validation"):
        muse(tmp_path / "muse", "scaling2", corpus="books").split("forget")


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("raw/forget", slice(0, 888), r"forget\.json has 888 rows; muse-bench/MUSE-News has 889 there"),
        ("knowmem/forget_qa_icl", slice(0, 9), "has 9 rows; muse-bench/MUSE-News has 10 there"),
        ("sust/forget_3", None, r"forget_3\.json is missing"),
    ],
)
def test_a_folder_with_missing_rows_is_refused(tmp_path: Path, name: str, rows: slice | None, message: str) -> None:
    files = muse_files()
    if rows is None:
        del files[name]
    else:
        files[name] = files[name][rows]
    with pytest.raises(UserError, match=message):
        muse(write(tmp_path, files)).split("forget")


@pytest.mark.slow
def test_the_contract_of_scenarios_is_kept_with_questions(folder: Path) -> None:
    report = Report()
    check_scenario(report, muse(folder, retain_documents=20, models={**TINY, "batch_size": 8}, questions=True))
    assert [result for result in report.results if not result.passed] == []
    assert len(report.results) > 40


def test_the_real_folder_is_read(data_root: Path) -> None:
    if not (data_root / "muse" / "news").is_dir():
        pytest.skip(f"no folder {data_root / 'muse' / 'news'}")
    scenario = muse(data_root / "muse", max_documents=20, models={**TINY, "vocabulary": 1000, "context": 2048})
    assert {name: len(scenario.split(name)) for name in scenario.splits} == {
        **dict.fromkeys(("forget", "retain", "holdout", "verbmem"), 20),
        **dict.fromkeys(("knowmem", "retain_knowmem"), 100),
    }
    documents = scenario._corpus().documents
    for row in scenario.split("verbmem").examples:
        assert row.question[-100:] + row.answer in documents[row.cluster]
    with pytest.raises(UserError, match=r"books/raw/forget\.json is missing"):
        muse(data_root / "muse", corpus="books").split("forget")
