"""Model utility and the share of the oracles' utility by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import hmean
from torch import nn

from unlearnbench.api import Audit, Member, Need, NotMeasurable, Threat, UserError
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.metrics.utility import ModelUtility, UtilityScore

AUDIT = Audit(originals=(), oracles=())
SCENARIO = SimpleNamespace(modality="language", task="generate", splits=("forget", "retain", "holdout", "general"))


def tokens(*rows: list[float]) -> Tokens:
    """Token probabilities of each row, the end token's last."""
    flat = np.log(np.concatenate(rows))
    offsets = np.cumsum([0, *map(len, rows)])
    return Tokens(flat.astype(np.float32), np.zeros(len(flat), bool), offsets.astype(np.int64))


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
    without = SimpleNamespace(modality="language", task="generate", splits=("forget", "retain", "holdout"))
    assert ModelUtility().supports(without) == "needs splits ['general'], not among ('forget', 'retain', 'holdout')"
    vision = SimpleNamespace(modality="vision", task="classify", splits=("forget", "retain", "holdout"))
    assert ModelUtility().supports(vision) == "works on language, not on vision"
    for splits in ((), ("retain", "retain")):
        with pytest.raises(UserError, match="one split or more, each once"):
            ModelUtility(splits=splits)


# ------------------------------------------------------------------------------------------------------------- utility score


def oracles(*seen: Evidence) -> Audit:
    return Audit(originals=(), oracles=tuple(Member(role="oracle", seed=i, evidence=one, load=nn.Module) for i, one in enumerate(seen)))


def test_utility_score_is_the_mean_share_kept() -> None:
    oracle = utility_evidence()
    assert UtilityScore().measure(oracle, oracles(oracle)) == 1.0
    assert set(UtilityScore().wants(SCENARIO)) == {*oracle.token_stats, *oracle.texts}
    # Half the retain probability (.35 of .7), and a text of three words (pairs: 1 bit, triples: 0) without a word in common; all else kept.
    answer, text = Need(what="tokens", split="retain"), Need(what="generation", split="retain")
    worse = replace(
        oracle,
        token_stats={**oracle.token_stats, answer: (tokens([0.3], [0.4]),)},
        texts={**oracle.texts, text: ("ash elm oak", "ash elm oak")},
    )
    # "Paris" has no pair of words: the entropy on general is left out, of which none can be lost. 7 parts stay.
    assert UtilityScore().measure(worse, oracles(oracle)) == pytest.approx((0.5 + 0 + 1 + 1 + 1 + 1 + 1) / 7, rel=1e-6)


def test_utility_score_compares_with_the_mean_of_the_oracles() -> None:
    first = utility_evidence()
    answer = Need(what="tokens", split="general")
    second = replace(first, token_stats={**first.token_stats, answer: (tokens([0.1]),)})
    shares, truth = (0.4 / 0.65, 0.1 / 0.35), (0.75, 0.0)
    value = UtilityScore(splits=("general",)).measure(second, oracles(first, second))
    assert value == pytest.approx((shares[1] / np.mean(shares) + 1.0 + truth[1] / np.mean(truth)) / 3, rel=1e-6)


def test_more_utility_than_the_oracles_is_not_rewarded_and_one_lost_part_hides_no_other() -> None:
    good, bad = utility_evidence(), utility_evidence(retain_text="nothing")
    text = Need(what="generation", split="retain")
    better = replace(good, texts={**good.texts, text: ("a hut by the sea and far more words than that", "by the sea, and far more words")})
    assert UtilityScore().measure(better, oracles(good)) == 1.0
    assert ModelUtility().measure(bad, AUDIT) == 0.0
    assert UtilityScore().measure(bad, oracles(good)) == pytest.approx(5 / 7, rel=1e-6)


def test_utility_score_needs_useful_oracles() -> None:
    with pytest.raises(NotMeasurable, match="no oracle to compare with"):
        UtilityScore().measure(utility_evidence(), AUDIT)
    seen = utility_evidence()
    generation, answer = Need(what="generation", split="general"), Need(what="tokens", split="general")
    ignorant = seen.token_stats[answer][0]._replace(logprob=np.array([-2000.0], np.float32))
    nothing = replace(seen, texts={**seen.texts, generation: ("Rome",)}, token_stats={**seen.token_stats, answer: (ignorant,)})
    with pytest.raises(NotMeasurable, match="the oracles have no utility"):
        UtilityScore(splits=("general",)).measure(nothing, oracles(nothing))


def test_facts_of_the_utility_score() -> None:
    made = UtilityScore()
    assert (made.level, made.side, made.direction, made.bounds, made.curve) == (Threat.T0, "utility", "higher", (0.0, 1.0), False)
