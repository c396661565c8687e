"""Forgetting, memorisation and privacy between the anchors: the parts by hand and by scikit-learn, both ends, and beyond."""

import sys
from types import SimpleNamespace
from zlib import compress

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from torch import nn

from unlearnbench.api import Audit, Member, Metric, Need, NotMeasurable, Threat
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.metrics.forgetting import Forgetting, MemorizationScore, PrivacyScore

ANSWER = Need(what="tokens", split="forget")
PARAPHRASE = Need(what="tokens", split="forget", answer="paraphrased_answer")
PERTURBED = Need(what="tokens", split="forget", answer="perturbed_answer")
LANGUAGE = SimpleNamespace(modality="language", task="generate")


def tokens(probability: float, hits: str = "1") -> Tokens:
    """One row whose tokens have one probability; hits (1) and misses (0), the end token's last."""
    n = len(hits)
    return Tokens(np.full(n, np.log(probability), np.float32), np.array([mark == "1" for mark in hits]), np.array([0, n]))


def known(hits: str, paraphrase: float, perturbed: tuple[float, float] = (0.1, 0.1)) -> Evidence:
    ids = {"forget": ("a",)}
    stats = {
        ANSWER: (tokens(0.5, hits + "1"),),
        PARAPHRASE: (tokens(paraphrase),),
        PERTURBED: tuple(tokens(p) for p in perturbed),
    }
    return Evidence(ids=ids, clusters=ids, token_stats=stats)


def members(role: str, *seen: Evidence) -> tuple[Member, ...]:
    return tuple(Member(role=role, seed=i, evidence=one, load=nn.Module) for i, one in enumerate(seen))


ORIGINALS = members("original", known("1111", 0.9), known("1111", 0.7))  # 1 and .8: .9
ORACLES = members("oracle", known("1000", 0.2), known("1001", 0.25))  # 0 and .25, .2 and .25: .175
AUDIT = Audit(originals=ORIGINALS, oracles=ORACLES)


@pytest.mark.parametrize(
    ("hits", "paraphrase", "value"),
    [
        ("1111", 0.8, 0.0),
        ("0001", 0.1, 1.0),  # (.25 + .1) / 2 = .175
        ("1110", 0.1, (0.9 - 0.05) / 0.725),  # beyond the oracles
        ("1011", 0.3, (0.9 - 0.4) / 0.725),
    ],
)
def test_forgetting_is_the_way_from_the_originals_to_the_oracles(hits: str, paraphrase: float, value: float) -> None:
    assert Forgetting().measure(known(hits, paraphrase), AUDIT) == pytest.approx(value, rel=1e-6, abs=1e-6)


def test_forgetting_is_a_mean_over_rows_and_reads_two_needs() -> None:
    both = rows(known("1111", 0.8), known("0001", 0.1))
    assert Forgetting().measure(both, AUDIT) == pytest.approx(0.5, rel=1e-6)
    assert Forgetting().wants(LANGUAGE) == (ANSWER, PARAPHRASE)


def test_memorisation_is_the_mean_agreement_with_the_oracles() -> None:
    audit = Audit(
        originals=members("original", known("1111", 0.8, (0.2, 0.2))), oracles=members("oracle", known("1010", 0.2, (0.4, 0.1)))
    )  # the oracle: strength 0, exact .5, paraphrase .2, truth ratio .5; the original 1, 1, .8, .8
    made = MemorizationScore()
    assert set(made.wants(LANGUAGE)) == {ANSWER, PARAPHRASE, PERTURBED}
    assert made.measure(known("1010", 0.2, (0.2, 0.2)), audit) == pytest.approx(1.0, rel=1e-6)
    assert made.measure(known("1111", 0.8, (0.2, 0.2)), audit) == pytest.approx(0.0, abs=1e-6)
    # Strength .25, exact .5, paraphrase .5, truth ratio .5 / (.5 + .25).
    parts = (0.75, 1.0, 0.5, 1 - (2 / 3 - 0.5) / 0.3)
    assert made.measure(known("1001", 0.5, (0.25, 0.25)), audit) == pytest.approx(np.mean(parts), rel=1e-6)


def rows(*seen: Evidence) -> Evidence:
    """The rows of several, as one."""
    stats = {}
    for need, answers in seen[0].token_stats.items():
        parts = [[one.token_stats[need][j] for one in seen] for j in range(len(answers))]
        stats[need] = tuple(
            Tokens(
                np.concatenate([part.logprob for part in several]),
                np.concatenate([part.hit for part in several]),
                np.cumsum([0, *(len(part.hit) for part in several)]),
            )
            for several in parts
        )
    ids = {"forget": tuple(str(i) for i in range(len(seen)))}
    return Evidence(ids=ids, clusters=ids, token_stats=stats)


def test_memorisation_is_over_rows_and_leaves_the_end_token_out() -> None:
    original, oracle = known("1111", 0.8, (0.2, 0.2)), known("1010", 0.2, (0.4, 0.1))
    audit = Audit(originals=members("original", original), oracles=members("oracle", oracle))
    # Strength 1/3 and 2/4, exact 2/3 and 3/4, paraphrase .3 and .4, truth ratio .6 and .5: none at an end of the scale.
    model = rows(known("101", 0.3, (0.2, 0.2)), known("1011", 0.4, (0.4, 0.4)))
    strength, exact = (1 / 3 + 1 / 2) / 2, (2 / 3 + 3 / 4) / 2
    parts = (1 - strength, 1 - (exact - 0.5) / 0.5, 1 - 0.15 / 0.6, 1 - 0.05 / 0.3)
    assert MemorizationScore().measure(model, audit) == pytest.approx(np.mean(parts), rel=1e-6)


def test_forgetting_beyond_the_oracle_is_not_rewarded_and_one_part_at_0_hides_no_other() -> None:
    audit = Audit(
        originals=members("original", known("1111", 0.8, (0.2, 0.2))), oracles=members("oracle", known("1110", 0.4, (0.4, 0.4)))
    )  # exact .75, paraphrase .4, truth ratio .5
    beyond = known("0000", 0.1, (0.4, 0.4))  # exact 0: 3 times as far as the original; truth ratio .2, as far as the original
    assert MemorizationScore().measure(beyond, audit) == pytest.approx((1.0 + 0.0 + 0.25 + 0.0) / 4, rel=1e-6)
    assert MemorizationScore().measure(beyond, audit) < MemorizationScore().measure(known("1110", 0.4, (0.4, 0.4)), audit)


# ------------------------------------------------------------------------------------------------------------------- privacy


def scored(seed: int, shift: float) -> Evidence:
    """Twenty rows of forget and of holdout with five tokens each and an end token; forget is likelier by `shift`."""
    draw = np.random.default_rng(seed)
    ids = {split: tuple(f"{split}/{i}" for i in range(20)) for split in ("forget", "holdout")}
    stats, texts = {}, {}
    for split in ids:
        logprob = draw.normal(-5 + shift * (split == "forget"), 1.5, 120).astype(np.float32)
        mean, variance = draw.normal(-3, 0.5, 120).astype(np.float32), draw.uniform(0.5, 2, 120).astype(np.float32)
        need = Need(what="tokens", split=split, moments=True)
        stats[need] = (Tokens(logprob, np.zeros(120, bool), np.arange(0, 121, 6), mean, variance),)
        texts[Need(what="text", split=split)] = tuple("".join(draw.choice(list("abcdefgh"), draw.integers(5, 90))) for _ in range(20))
    return Evidence(ids=ids, clusters=ids, token_stats=stats, references=texts)


def areas(seen: Evidence, count: int) -> np.ndarray:
    """AUC of loss, zlib, min-k, min-k++ by scikit-learn."""
    columns: list[list[float]] = [[], [], [], []]
    for split in ("forget", "holdout"):
        stats, texts = seen.token_stats[Need(what="tokens", split=split, moments=True)][0], seen.references[Need(what="text", split=split)]
        assert stats.mean is not None
        assert stats.variance is not None
        standard = ((stats.logprob - stats.mean) / np.sqrt(stats.variance)).reshape(20, 6)[:, :5]
        logprob = stats.logprob.reshape(20, 6).astype(float)
        columns[0] += logprob.mean(1).tolist()
        columns[1] += [row.mean() / len(compress(text.encode())) for row, text in zip(logprob, texts, strict=True)]
        columns[2] += np.sort(logprob[:, :5])[:, :count].mean(1).tolist()
        columns[3] += np.sort(standard)[:, :count].mean(1).tolist()
    return np.array([roc_auc_score([1] * 20 + [0] * 20, column) for column in columns])


@pytest.mark.parametrize(("share", "count"), [(0.4, 2), (0.8, 4)])
@pytest.mark.parametrize("shift", [0.4, -0.5])
def test_privacy_against_scikit_learn(share: float, count: int, shift: float) -> None:
    originals, oracles, model = [scored(1, 1.5), scored(2, 2.0)], [scored(3, 0.0), scored(4, 0.1)], scored(0, shift)
    audit = Audit(originals=members("original", *originals), oracles=members("oracle", *oracles))
    high, low = np.mean([areas(one, count) for one in originals], axis=0), np.mean([areas(one, count) for one in oracles], axis=0)
    assert (high > low).all()
    expected = np.clip(1 - np.abs(areas(model, count) - low) / (high - low), 0, 1).mean()
    made = PrivacyScore(share=share)
    assert made.measure(model, audit) == pytest.approx(expected, rel=1e-9)
    assert 0.1 < expected < 0.95
    assert set(made.wants(LANGUAGE)) == {*model.token_stats, *model.references}


# --------------------------------------------------------------------------------------------------------------- no anchors


@pytest.mark.parametrize("metric", [Forgetting, MemorizationScore])
def test_without_anchors_there_is_nothing_to_say(metric: type[Metric]) -> None:
    for audit, reason in (
        (Audit(originals=(), oracles=ORACLES), "no original to compare with"),
        (Audit(originals=ORIGINALS, oracles=()), "no oracle to compare with"),
        (Audit(originals=ORACLES, oracles=ORIGINALS), "does not tell the original"),
    ):
        with pytest.raises(NotMeasurable, match=reason):
            metric().measure(known("1001", 0.5), audit)


def test_what_tells_nothing_is_shown() -> None:
    audit = Audit(originals=members("original", known("1000", 0.2)), oracles=members("oracle", known("1001", 0.5)))
    with pytest.raises(NotMeasurable, match=r"paraphrase probability does not tell the original \(0.1\) from the oracle \(0.375\)"):
        Forgetting().measure(known("1001", 0.5), audit)


def test_the_part_that_tells_nothing_is_named() -> None:
    audit = Audit(originals=members("original", known("1111", 0.5)), oracles=members("oracle", known("1110", 0.5)))
    with pytest.raises(NotMeasurable, match=r"paraphrase probability does not tell the original \(0.5\) from the oracle \(0.5\)"):
        MemorizationScore().measure(known("1001", 0.5), audit)


@pytest.mark.parametrize(("metric", "bounded"), [(Forgetting, False), (MemorizationScore, True), (PrivacyScore, True)])
def test_facts(metric: type[Metric], bounded: bool) -> None:
    made = metric()
    assert (made.level, made.side, made.direction, made.headline) == (Threat.T0, "forget", "lower", False)
    assert made.bounds == ((0.0, 1.0) if bounded else (-sys.float_info.max, sys.float_info.max))
    assert PrivacyScore().share == 0.4
