"""Which answers probability, ROUGE-L, truth ratio and model utility read; values by hand."""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import hmean

from unlearnbench.api import Audit, Need, UserError
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.metrics.tofu import ModelUtility, Probability, Rouge, TruthRatioTrueBetter

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


def test_truth_ratio_sets_the_paraphrase_against_the_perturbed_answers() -> None:
    right = Need(what="tokens", split="retain", answer="paraphrased_answer")
    wrong = Need(what="tokens", split="retain", answer="perturbed_answer")
    metric = TruthRatioTrueBetter(split="retain")
    assert set(metric.wants(SCENARIO)) == {right, wrong}
    stats = {right: (tokens([0.5], [0.1]),), wrong: (tokens([0.25], [0.4]), tokens([0.0625], [0.9]))}
    values = metric.measure(evidence("retain", stats), AUDIT)
    assert values == {"retain/0": pytest.approx(1 - 0.125 / 0.5, rel=1e-6), "retain/1": 0.0}


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


# ----------------------------------------------------------------------------------------------------------------- utility


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
