"""Probability, ROUGE-L, truth ratio and model utility against hand-computed values and independent implementations."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean

from unlearnbench.api import Audit, Need, UserError
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.metrics.tofu import (
    ModelUtility,
    Probability,
    Rouge,
    TruthRatioTrueBetter,
    answer_probability,
    harmonic_mean,
    option_probability,
    rouge_l,
    true_better,
)

AUDIT = Audit(originals=(), oracles=())
SCENARIO = SimpleNamespace(modality="language", splits=("forget", "retain", "holdout", "general"))


def tokens(*rows: list[float]) -> Tokens:
    """Token probabilities of each row, the end token's last."""
    flat = np.log(np.concatenate(rows))
    offsets = np.cumsum([0, *map(len, rows)])
    return Tokens(flat.astype(np.float32), np.zeros(len(flat), bool), offsets.astype(np.int64))


def evidence(split: str, stats: Mapping[Need, tuple[Tokens, ...]]) -> Evidence:
    n = len(next(iter(stats.values()))[0].offsets) - 1
    rows = tuple(f"{split}/{i}" for i in range(n))
    return Evidence(ids={split: rows}, clusters={split: rows}, token_stats=stats)


# ------------------------------------------------------------------------------------------------------------- probability


def test_probability_is_the_geometric_mean_over_all_tokens_with_the_end_token() -> None:
    need = Need(what="tokens", split="forget")
    seen = evidence("forget", {need: (tokens([0.5, 0.125], [0.9, 0.8, 0.3], [0.7]),)})
    values = Probability().measure(seen, AUDIT)
    assert values == {
        "forget/0": pytest.approx(0.25, rel=1e-6),
        "forget/1": pytest.approx((0.9 * 0.8 * 0.3) ** (1 / 3), rel=1e-6),
        "forget/2": pytest.approx(0.7, rel=1e-6),
    }


def test_probability_reads_its_own_split_and_question() -> None:
    plain, other = Need(what="tokens", split="retain"), Need(what="tokens", split="retain", question="paraphrased_question")
    seen = evidence("retain", {plain: (tokens([0.5]),), other: (tokens([0.25]),)})
    assert Probability(split="retain").measure(seen, AUDIT) == {"retain/0": pytest.approx(0.5)}
    paraphrased = Probability(split="retain", question="paraphrased_question")
    assert paraphrased.measure(seen, AUDIT) == {"retain/0": pytest.approx(0.25)}
    assert paraphrased.wants(SCENARIO) == (other,)


def test_probability_of_an_impossible_answer_is_zero_and_of_nan_an_error() -> None:
    assert answer_probability(np.array([np.inf, 800.0])).tolist() == [0.0, np.exp(-800.0)]
    with pytest.raises(ValueError, match="1 of 2 answers have log-probability NaN"):
        answer_probability(np.array([1.0, np.nan]))


@pytest.mark.parametrize(
    ("split", "side", "headline"),
    [
        ("forget", "forget", True),
        ("retain", "utility", False),
        ("general", "utility", False),
        ("holdout", "diagnostic", False),
    ],
)
def test_what_a_metric_speaks_of_depends_on_the_split(split: str, side: str, headline: bool) -> None:
    assert (Probability(split=split).side, Probability(split=split).headline) == (side, headline)
    assert (TruthRatioTrueBetter(split=split).side, TruthRatioTrueBetter(split=split).headline) == ("diagnostic", False)


@pytest.mark.parametrize("metric", [Probability, Rouge, TruthRatioTrueBetter])
def test_says_why_it_cannot_serve(metric: type[Probability]) -> None:
    assert metric().supports(SCENARIO) is None
    assert metric().supports(SimpleNamespace(modality="vision", splits=SCENARIO.splits)) == "works on language, not on vision"
    assert "needs a split 'test', not one of ('forget'" in str(metric(split="test").supports(SCENARIO))


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
    np.testing.assert_allclose(true_better(-np.log(right), -np.log(wrong)), expected, rtol=1e-12, atol=1e-15)


def test_true_better_at_the_edges() -> None:
    assert true_better(np.array([0.0]), np.array([[3000.0]])).tolist() == [1.0]
    assert true_better(np.array([3000.0]), np.array([[0.0]])).tolist() == [0.0]
    assert true_better(np.array([1.5]), np.array([[1.5]])).tolist() == [0.0]


@pytest.mark.parametrize("formula", [option_probability, true_better])
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


def test_truth_ratio_sets_the_paraphrase_against_the_perturbed_answers() -> None:
    right = Need(what="tokens", split="retain", answer="paraphrased_answer")
    wrong = Need(what="tokens", split="retain", answer="perturbed_answer")
    metric = TruthRatioTrueBetter(split="retain")
    assert set(metric.wants(SCENARIO)) == {right, wrong}
    stats = {right: (tokens([0.5], [0.1]),), wrong: (tokens([0.25], [0.4]), tokens([0.0625], [0.9]))}
    values = metric.measure(evidence("retain", stats), AUDIT)
    assert values == {"retain/0": pytest.approx(1 - 0.125 / 0.5, rel=1e-6), "retain/1": 0.0}


# ------------------------------------------------------------------------------------------------------------------- rouge


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


def test_rouge_reads_generations() -> None:
    need = Need(what="generation", split="forget", question="paraphrased_question")
    rows = ("b", "a")
    seen = Evidence(
        ids={"forget": rows},
        clusters={"forget": rows},
        texts={need: ("the sea and more words", "hill")},
        references={need: ("the sea", "one hill there")},
    )
    metric = Rouge(question="paraphrased_question")
    assert metric.wants(SCENARIO) == (need,)
    assert metric.measure(seen, AUDIT) == {"b": 1.0, "a": pytest.approx(1 / 3)}
    f1 = Rouge(question="paraphrased_question", variant="f1").measure(seen, AUDIT)
    assert f1 == {"b": pytest.approx(2 * 0.4 / 1.4), "a": pytest.approx(0.5)}
    assert not metric.curve
    with pytest.raises(ValueError, match="2 texts for 1 references"):
        rouge_l(["a", "b"], ["a"])


# ----------------------------------------------------------------------------------------------------------------- utility


def test_harmonic_mean() -> None:
    assert harmonic_mean([0.2, 0.5, 0.9]) == pytest.approx(hmean([0.2, 0.5, 0.9]), rel=1e-12)
    assert harmonic_mean([0.9, 0.0, 0.8]) == 0.0
    with pytest.raises(ValueError, match="at least one value"):
        harmonic_mean([])
    with pytest.raises(ValueError, match="negative or NaN"):
        harmonic_mean([0.5, float("nan")])
    with pytest.raises(ValueError, match="negative or NaN"):
        harmonic_mean([0.5, -0.1])


def utility_evidence(*, retain_text: str = "by the sea") -> Evidence:
    rows = {"retain": ("r0", "r1"), "general": ("g0",)}
    answer = {split: Need(what="tokens", split=split) for split in rows}
    wrong = {split: Need(what="tokens", split=split, answer="perturbed_answer") for split in rows}
    paraphrase = Need(what="tokens", split="retain", answer="paraphrased_answer")
    text = {split: Need(what="generation", split=split) for split in rows}
    return Evidence(
        ids=rows,
        clusters=rows,
        token_stats={
            answer["retain"]: (tokens([0.9, 0.4], [0.8]),),  # probabilities 0.6 and 0.8
            paraphrase: (tokens([0.5], [0.2]),),
            wrong["retain"]: (tokens([0.25], [0.3]), tokens([0.0625], [0.3])),  # R = 0.25 and 1.5
            answer["general"]: (tokens([0.4]),),
            wrong["general"]: (tokens([0.2]), tokens([0.05])),  # share 0.4 / 0.65, R = 0.1 / 0.4
        },
        texts={text["retain"]: (retain_text, retain_text), text["general"]: ("Paris",)},
        references={text["retain"]: ("a hut by the sea", "by the sea"), text["general"]: ("Paris",)},
    )


def test_model_utility_by_hand() -> None:
    metric = ModelUtility()
    seen = utility_evidence()
    parts = [0.7, (3 / 5 + 1) / 2, (0.75 + 0.0) / 2, 0.4 / 0.65, 1.0, 0.75]
    assert metric.measure(seen, AUDIT) == pytest.approx(6 / sum(1 / part for part in parts), rel=1e-6)
    assert metric.measure(seen, AUDIT) == pytest.approx(hmean(parts), rel=1e-6)
    assert set(metric.wants(SCENARIO)) == {*seen.token_stats, *seen.texts}
    assert len(metric.wants(SCENARIO)) == 7


def test_model_utility_of_one_split() -> None:
    value = ModelUtility(splits=("general",)).measure(utility_evidence(), AUDIT)
    assert value == pytest.approx(hmean([0.4 / 0.65, 1.0, 0.75]), rel=1e-6)


def test_model_utility_is_zero_when_one_part_is() -> None:
    assert ModelUtility().measure(utility_evidence(retain_text="nothing"), AUDIT) == 0.0


def test_model_utility_says_what_it_needs() -> None:
    assert ModelUtility().supports(SCENARIO) is None
    assert (ModelUtility().side, ModelUtility().headline, ModelUtility().direction) == ("utility", False, "higher")
    without = SimpleNamespace(modality="language", splits=("forget", "retain", "holdout"))
    assert ModelUtility().supports(without) == "needs splits ['general'], not among ('forget', 'retain', 'holdout')"
    vision = SimpleNamespace(modality="vision", splits=("forget", "retain", "holdout"))
    assert ModelUtility().supports(vision) == "works on language, not on vision"
    for splits in ((), ("retain", "retain")):
        with pytest.raises(UserError, match="one split or more, each once"):
            ModelUtility(splits=splits)
