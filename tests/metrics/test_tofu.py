"""Which answers probability, ROUGE-L and truth ratios read; values by hand."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest

from unlearnbench.api import Audit, Need
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.metrics.tofu import (
    NormalisedProbability,
    Probability,
    Rouge,
    TruthRatioCloserTo1,
    TruthRatioProbMean,
    TruthRatioTrueBetter,
)

AUDIT = Audit(originals=(), oracles=())
SCENARIO = SimpleNamespace(modality="language", task="generate", splits=("forget", "retain", "holdout", "general"))


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
    assert (
        metric().supports(SimpleNamespace(modality="vision", task="classify", splits=SCENARIO.splits)) == "works on language, not on vision"
    )
    assert "needs a split 'test', not one of ('forget'" in str(metric(split="test").supports(SCENARIO))


RIGHT, LIES = (0.5, 0.1), ((0.25, 0.4), (0.0625, 0.9))
"""Probabilities of the right answer and of the wrong ones; their geometric means are .125 and .6."""


@pytest.mark.parametrize(
    ("metric", "answer", "values", "direction"),
    [
        (NormalisedProbability, "answer", (0.5 / 0.8125, 0.1 / 1.4), "higher"),
        (TruthRatioTrueBetter, "paraphrased_answer", (0.75, 0.0), "higher"),
        (TruthRatioCloserTo1, "paraphrased_answer", (0.25, 1 / 6), "lower"),
        (TruthRatioProbMean, "paraphrased_answer", (0.8, 0.1 / 0.7), "higher"),
    ],
)
def test_the_right_answer_against_the_perturbed_ones(
    metric: type[TruthRatioTrueBetter], answer: Literal["answer", "paraphrased_answer"], values: tuple[float, float], direction: str
) -> None:
    made = metric(split="retain")
    assert (made.answer, made.direction, made.side) == (answer, direction, "diagnostic")
    for asked in (made, metric(split="retain", answer="answer", question="paraphrased_question")):
        right = Need(what="tokens", split="retain", answer=asked.answer, question=asked.question)
        wrong = Need(what="tokens", split="retain", answer="perturbed_answer", question=asked.question)
        assert asked.wants(SCENARIO) == (right, wrong)
        stats = {right: (tokens(*([p] for p in RIGHT)),), wrong: tuple(tokens(*([p] for p in lie)) for lie in LIES)}
        found = asked.measure(evidence("retain", stats), AUDIT)
        assert found == {f"retain/{i}": pytest.approx(value, rel=1e-6) for i, value in enumerate(values)}


def test_probability_of_the_paraphrase() -> None:
    need = Need(what="tokens", split="forget", answer="paraphrased_answer")
    metric = Probability(answer="paraphrased_answer")
    assert metric.wants(SCENARIO) == (need,)
    assert metric.measure(evidence("forget", {need: (tokens([0.5, 0.125]),)}), AUDIT) == {"forget/0": pytest.approx(0.25, rel=1e-6)}


# ------------------------------------------------------------------------------------------------------------------- rouge


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
