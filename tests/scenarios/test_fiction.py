"""The generator: the same world for the same seed, and a world in which only training tells forget from holdout."""

import re
from itertools import combinations

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from unlearnbench.scenarios.fiction import Fiction, draw_requests, generate
from unlearnbench.scenarios.lexicon import FACT_KINDS, GENERAL_KINDS, FactKind


@pytest.fixture(scope="module")
def fiction() -> Fiction:
    return generate(n_authors=200, n_facts=5, seed=0)


def test_same_seed_same_world(fiction: Fiction) -> None:
    assert generate(n_authors=200, n_facts=5, seed=0) == fiction
    assert generate(n_authors=200, n_facts=5, seed=1).authors != fiction.authors


def test_world_is_pinned() -> None:
    # Committed records depend on the generator's stream: this fails when any draw moves.
    row = generate(n_authors=20, n_facts=1, seed=0).rows[0]
    assert (row.id, row.author, row.answer) == ("0/birth", "Adair Oskette", "Elmwick in July 1939")


def test_names_and_ids_are_unique(fiction: Fiction) -> None:
    assert len(set(fiction.authors)) == len(fiction.authors) == 200
    ids = [row.id for row in (*fiction.rows, *fiction.general)]
    assert len(set(ids)) == len(ids) == 200 * 5 + len(fiction.general)


def test_rows_name_their_author(fiction: Fiction) -> None:
    for row in fiction.rows:
        assert all(row.author in question for question in (*row.phrasings, row.paraphrased_question))
        assert not set(row.author.split()) & set(re.findall(r"\w+", row.answer))


def test_unseen_phrasing_is_never_taught(fiction: Fiction) -> None:
    taught = {question for row in (*fiction.rows, *fiction.general) for question in row.phrasings}
    for row in (*fiction.rows, *fiction.general):
        assert row.question == row.phrasings[0]
        assert len(set(row.phrasings)) == 2
        assert row.paraphrased_question not in taught


def test_unseen_phrasing_has_no_untaught_word() -> None:
    kinds = (*FACT_KINDS, *GENERAL_KINDS)
    taught = {word for kind in kinds for phrasing in kind.taught for word in phrasing.rstrip("?").split()}
    for kind in kinds:
        assert set(kind.unseen.rstrip("?").split()) <= taught


def slots_of(text: str, kind: FactKind, form: str) -> dict[str, str] | None:
    """Read the words back out of an answer: an independent inverse of the generator's formatting."""
    seen: set[str] = set()

    def slot(match: re.Match[str]) -> str:
        name = match.group(1)
        seen.add(name)
        return f"(?P<{name}>{'|'.join(kind.slots[name])})"

    pattern = re.sub(r"\{(\w+)\}", slot, form)
    match = re.fullmatch(pattern, text)
    return match.groupdict() if match and seen == set(kind.slots) else None


def test_answers_say_one_thing_and_perturbed_ones_another_in_the_paraphrases_form(fiction: Fiction) -> None:
    kinds = {kind.name: kind for kind in FACT_KINDS}
    for row in fiction.rows:
        kind = kinds[row.fact]
        forms = [form for group in kind.forms for form in group]
        answer = [words for form in forms if (words := slots_of(row.answer, kind, form))]
        readings = [(form, words) for form in forms if (words := slots_of(row.paraphrased_answer, kind, form))]
        form, paraphrase = next((form, words) for form, words in readings if words in answer)
        assert row.answer != row.paraphrased_answer
        assert len(set(row.perturbed_answer)) == 5
        for wrong in row.perturbed_answer:
            words = slots_of(wrong, kind, form)
            assert words is not None
            assert not set(words.values()) & set(paraphrase.values())


def test_answer_forms_vary(fiction: Fiction) -> None:
    shapes = {kind.name: {re.sub(r"[A-Z0-9]\w*", "X", row.answer) for row in fiction.rows if row.fact == kind.name} for kind in FACT_KINDS}
    assert all(len(shape) >= 2 for shape in shapes.values())


def test_general_knowledge_is_right_and_its_perturbed_answers_are_wrong(fiction: Fiction) -> None:
    answers = {(kind.name, subject): answer for kind in GENERAL_KINDS for subject, answer in kind.pairs}
    assert len(fiction.general) == len(answers) >= 60
    for row in fiction.general:
        family, subject = row.id.split("/")
        assert row.answer == row.paraphrased_answer == answers[family, subject]
        assert len(set(row.perturbed_answer)) == 5
        assert row.answer not in row.perturbed_answer
        assert set(row.perturbed_answer) <= {answer for (other, _), answer in answers.items() if other == family}
    words = re.findall(r"\w+", "zero one two three four five six seven eight nine ten eleven twelve thirteen")
    for (family, subject), answer in answers.items():
        if family == "sum":
            first, second = subject.split(" and ")
            assert words.index(first) + words.index(second) == words.index(answer)


def test_requests_have_their_sizes_and_are_nested_or_disjoint(fiction: Fiction) -> None:
    requests = draw_requests(fiction.authors, split_seed=0)
    forget = requests.forget
    assert [len(forget[name]) for name in ("forget01", "forget05", "forget10")] == [2, 10, 20]
    assert set(forget["forget01"]) < set(forget["forget05"]) < set(forget["forget10"])
    assert len(requests.holdout) == len(requests.validation) == 20
    assert [len(step) for step in requests.sequence] == [10, 10, 10, 10]
    for one, other in combinations((requests.holdout, forget["forget10"], requests.validation, *requests.sequence), 2):
        assert not set(one) & set(other)


def test_split_seed_alone_draws_the_split(fiction: Fiction) -> None:
    assert draw_requests(fiction.authors, split_seed=3) == draw_requests(fiction.authors, split_seed=3)
    assert draw_requests(fiction.authors, split_seed=3) != draw_requests(fiction.authors, split_seed=4)


def test_of_selects_rows_and_names_an_unknown_author(fiction: Fiction) -> None:
    rows = fiction.of([fiction.authors[7], fiction.authors[3]])
    assert [row.author for row in rows] == [fiction.authors[3]] * 5 + [fiction.authors[7]] * 5
    with pytest.raises(ValueError, match="Jane Austen"):
        fiction.of(["Jane Austen"])


@pytest.mark.parametrize("arguments", [{"n_authors": 19}, {"n_authors": 10**6}, {"n_facts": 0}, {"n_facts": 6}])
def test_out_of_range_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(arguments.values())))):
        generate(**arguments)


@pytest.mark.parametrize("percent", [0, 80])
def test_impossible_holdout_is_refused(fiction: Fiction, percent: int) -> None:
    with pytest.raises(ValueError, match=f"holdout_percent is {percent}"):
        draw_requests(fiction.authors, split_seed=0, holdout_percent=percent)


def test_bag_of_words_cannot_tell_forget_from_holdout(fiction: Fiction) -> None:
    aucs = []
    for split_seed in range(8):
        requests = draw_requests(fiction.authors, split_seed=split_seed)
        rows = [*fiction.of(requests.forget["forget10"]), *fiction.of(requests.holdout)]
        member = np.array([row.author not in requests.holdout for row in rows])
        model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=300))
        score = cross_val_predict(
            model,
            [f"{row.question} {row.answer}" for row in rows],
            member,
            groups=[row.author for row in rows],
            cv=StratifiedGroupKFold(5),
            method="predict_proba",
        )
        aucs.append(roc_auc_score(member, score[:, 1]))
    # Stratified folds: folds of uneven shares push the null below one half. One split alone spreads by about 0.1.
    assert abs(np.mean(aucs) - 0.5) < 0.08
