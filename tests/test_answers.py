"""Probabilities, shares, truth ratios and ROUGE-L against plain arithmetic and independent implementations."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import entropy

from unlearnbench.answers import (
    answer_probability,
    closer_to_1,
    log_truth_ratio,
    ngram_entropy,
    option_probability,
    prob_mean,
    rouge_l,
    true_better,
)


def test_probability_of_an_impossible_answer_is_zero_and_of_nan_an_error() -> None:
    assert answer_probability(np.array([np.inf, 800.0])).tolist() == [0.0, np.exp(-800.0)]
    with pytest.raises(ValueError, match="1 of 2 answers have log-probability NaN"):
        answer_probability(np.array([1.0, np.nan]))


# ----------------------------------------------------------------------------------------------------------------- options


def test_option_probability_against_plain_arithmetic() -> None:
    draw = np.random.default_rng(0)
    right, wrong = draw.uniform(0.05, 0.9, 7), draw.uniform(0.05, 0.9, (3, 7))
    expected = [right[i] / (right[i] + sum(wrong[j][i] for j in range(3))) for i in range(7)]
    np.testing.assert_allclose(option_probability(-np.log(right), -np.log(wrong)), expected, rtol=1e-12)


def test_options_that_no_float_can_hold_are_still_compared() -> None:
    share = option_probability(np.array([2000.0]), np.array([[2001.0], [2002.0]]))
    assert share[0] == pytest.approx(1 / (1 + np.exp(-1) + np.exp(-2)), rel=1e-12)
    assert option_probability(np.array([0.0]), np.array([[2000.0]])).tolist() == [1.0]


def test_options_are_compared_in_float64() -> None:
    right, wrong = np.array([0.3, 1.7], np.float32), np.array([[0.2, 2.9], [1.1, 0.4]], np.float32)
    exact = option_probability(right.astype(np.float64), wrong.astype(np.float64))
    assert option_probability(right, wrong).tolist() == exact.tolist()


def test_true_better_against_a_ratio_of_probabilities() -> None:
    draw = np.random.default_rng(1)
    right, wrong = draw.uniform(0.3, 0.9, 50), draw.uniform(0.05, 0.9, (5, 50))
    ratios = [np.prod(wrong[:, i]) ** (1 / 5) / right[i] for i in range(50)]
    expected = [max(0.0, 1 - ratio) for ratio in ratios]
    assert 0.0 in expected
    np.testing.assert_allclose(true_better(log_truth_ratio(-np.log(right), -np.log(wrong))), expected, rtol=1e-12, atol=1e-15)


def test_the_other_truth_ratios_against_a_ratio_of_probabilities() -> None:
    draw = np.random.default_rng(1)
    right, wrong = draw.uniform(0.3, 0.9, 50), draw.uniform(0.05, 0.9, (5, 50))
    lies = [np.prod(wrong[:, i]) ** (1 / 5) for i in range(50)]
    log_ratio = log_truth_ratio(-np.log(right), -np.log(wrong))
    np.testing.assert_allclose(log_ratio, np.log(lies) - np.log(right), rtol=1e-12, atol=1e-14)
    assert {lie > truth for lie, truth in zip(lies, right, strict=True)} == {True, False}
    nearest = [min(lie / truth, truth / lie) for lie, truth in zip(lies, right, strict=True)]
    np.testing.assert_allclose(closer_to_1(log_ratio), nearest, rtol=1e-12)
    shares = [truth / (truth + lie) for lie, truth in zip(lies, right, strict=True)]
    np.testing.assert_allclose(prob_mean(log_ratio), shares, rtol=1e-12)


@pytest.mark.parametrize(
    ("log_ratio", "better", "closer", "share"),
    [(-3000.0, 1.0, 0.0, 1.0), (3000.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.5), (-1e-12, 1e-12, 1.0, 0.5)],
)
def test_truth_ratios_at_the_edges(log_ratio: float, better: float, closer: float, share: float) -> None:
    with np.errstate(all="raise", under="ignore"):
        assert true_better(np.array([log_ratio])).tolist() == pytest.approx([better], rel=1e-6, abs=0)
        assert closer_to_1(np.array([log_ratio])).tolist() == pytest.approx([closer])
        assert prob_mean(np.array([log_ratio])).tolist() == pytest.approx([share])


def test_a_truth_ratio_is_taken_in_float64() -> None:
    right, wrong = np.array([0.3, 1.7], np.float32), np.array([[0.2, 2.9], [1.1, 0.4]], np.float32)
    exact = log_truth_ratio(right.astype(np.float64), wrong.astype(np.float64))
    assert log_truth_ratio(right, wrong).tolist() == exact.tolist()


@pytest.mark.parametrize("formula", [option_probability, log_truth_ratio])
def test_options_must_be_finite_and_match(formula: Callable[[object, object], object]) -> None:
    with pytest.raises(ValueError, match="not finite"):
        formula(np.array([np.inf]), np.array([[1.0]]))
    with pytest.raises(ValueError, match="not finite"):
        formula(np.array([1.0]), np.array([[np.nan]]))
    with pytest.raises(ValueError, match="not finite"):
        formula(np.array([1.0, np.nan]), np.ones((1, 2)))
    with pytest.raises(ValueError, match="not finite"):
        formula(np.ones(2), np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\)"):
        formula(np.zeros((2, 3)), np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match=r"shape \(1, 2\); allowed: \(1 or more, 3\)"):
        formula(np.zeros(3), np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        formula(np.zeros(3), np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        formula(np.zeros(3), np.zeros(3))


# --------------------------------------------------------------------------------------------------------------------- texts


def lcs(a: list[str], b: list[str]) -> int:
    """Longest common subsequence, by the plain recursion."""
    if not a or not b:
        return 0
    return lcs(a[1:], b[1:]) + 1 if a[0] == b[0] else max(lcs(a[1:], b), lcs(a, b[1:]))


TEXTS = [
    ("a town by the sea with an old harbour", "The old harbour of the town"),
    ("she was running to shops", "She runs to the shop."),
    ("sea the by town", "town by the sea"),
    ("", "nothing said"),
]


def test_rouge_l_by_hand() -> None:
    # Stemmed words in common, in order: "the old harbour" of 6 and of 9 words; "she run to shop" of 5 and of 5 ("was" is a word); and
    # one word of four, since the order is reversed but for itself.
    recall = [3 / 6, 4 / 5, 1 / 4, 0.0]
    precision = [3 / 9, 4 / 5, 1 / 4, 0.0]
    texts, references = zip(*TEXTS, strict=True)
    assert lcs(["a", "b", "c"], ["b", "a", "c"]) == 2
    assert lcs(["town", "by", "the", "sea"], ["sea", "the", "by", "town"]) == 1
    np.testing.assert_allclose(rouge_l(texts, references), recall, rtol=1e-12)
    f1 = [2 * r * p / (r + p) if r else 0.0 for r, p in zip(recall, precision, strict=True)]
    np.testing.assert_allclose(rouge_l(texts, references, "f1"), f1, rtol=1e-12)


def test_rouge_l_against_the_package_and_a_plain_recursion() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    draw = np.random.default_rng(2)
    words = np.array(["ash", "birch", "cold", "dun", "elm"])
    texts = [" ".join(draw.choice(words, draw.integers(1, 8))) for _ in range(20)]
    references = [" ".join(draw.choice(words, draw.integers(1, 8))) for _ in range(20)]
    direct = [scorer.score(reference, text)["rougeL"] for text, reference in zip(texts, references, strict=True)]
    np.testing.assert_array_equal(rouge_l(texts, references), [score.recall for score in direct])
    np.testing.assert_array_equal(rouge_l(texts, references, "f1"), [score.fmeasure for score in direct])
    plain = [lcs(t.split(), r.split()) / len(r.split()) for t, r in zip(texts, references, strict=True)]
    np.testing.assert_allclose(rouge_l(texts, references), plain, rtol=1e-12)


def test_texts_and_references_must_match() -> None:
    with pytest.raises(ValueError, match="2 texts for 1 references"):
        rouge_l(["a", "b"], ["a"])


def test_ngram_entropy_against_scipy() -> None:
    draw = np.random.default_rng(4)
    words = draw.choice(["ash", "birch", "oak"], 60).tolist()
    text = " ".join(words).replace("oak ash", "oak, Ash")
    runs = [*text.replace(",", " ,").split()]
    assert "," in runs
    expected = 0.0
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        counts = Counter(tuple(runs[i : i + n]) for i in range(len(runs) - n + 1))
        expected += weight * entropy(list(counts.values()), base=2) / 2
    assert ngram_entropy(text) == pytest.approx(expected, rel=1e-12)


def test_ngram_entropy_of_short_and_repetitive_texts() -> None:
    assert [ngram_entropy(text) for text in ("", "word", "two words", "no no no no")] == [0.0] * 4
    assert ngram_entropy("three words here") == pytest.approx(2 / 3 / 2)  # two pairs, one triple
    assert ngram_entropy("one two three four five") > ngram_entropy("one two one two one")
