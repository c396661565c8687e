"""RMIA: the prior and the score by hand, a closed form on Gaussians, and what must not change them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from classified import member, names, reordered, with_margins
from pydantic import TypeAdapter, ValidationError
from scipy.special import expit, logit
from scipy.stats import norm

from unlearnbench.api import Bank, Member, Need, NotMeasurable, Threat
from unlearnbench.attacks.rmia import RMIA, log_prior, share_exceeded
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.stats import auc


def pictures(forget: np.ndarray, holdout: np.ndarray) -> Evidence:
    """A classifier that gives the labels these probabilities."""
    return with_margins({"forget": logit(forget), "holdout": logit(holdout)})


def texts(forget: np.ndarray, holdout: np.ndarray) -> Evidence:
    """A language model whose answers have two tokens, one of them surely told."""
    token_stats = {}
    for split, values in (("forget", forget), ("holdout", holdout)):
        logprob = np.stack([2 * np.log(values), np.zeros(len(values))], axis=1).ravel()
        offsets = 2 * np.arange(len(values) + 1)
        token_stats[Need(what="tokens", split=split)] = (Tokens(logprob, np.zeros(len(logprob), bool), offsets),)
    ids = {"forget": names("forget", len(forget)), "holdout": names("holdout", len(holdout))}
    return Evidence(ids=ids, clusters=ids, token_stats=token_stats)


def references(*models: Evidence) -> list[Member]:
    return [member(model, "oracle", seed) for seed, model in enumerate(models)]


@pytest.mark.parametrize("made", [pictures, texts])
def test_scores_by_hand(made: type) -> None:
    model = made(np.array([0.6, 0.3, 0.05]), np.array([0.4, 0.2, 0.5]))
    bank = references(
        made(np.array([0.4, 0.2, 0.6]), np.array([0.4, 0.1, 0.9])), made(np.array([0.2, 0.4, 0.8]), np.array([0.6, 0.1, 0.7]))
    )
    # Priors (1.5 m + 0.5) / 2: m of forget .3 .3 .7, of holdout .5 .1 .8; ratios 1.2632 .6316 .0645 and .64 .6154 .5882.
    attack = RMIA(a=0.5)
    np.testing.assert_allclose(attack.score(model, "forget", bank), [1, 2 / 3, 0], atol=1e-12)
    np.testing.assert_allclose(attack.score(model, "holdout", bank), [1, 1 / 2, 0], atol=1e-12)


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_prior_is_the_formula(a: float) -> None:
    signals = np.random.default_rng(0).uniform(1e-6, 1, (3, 50))
    np.testing.assert_allclose(np.exp(log_prior(np.log(signals), a)), ((1 + a) * signals.mean(axis=0) + 1 - a) / 2, rtol=1e-12)
    # Far below the smallest float the prior is still one, and at 1 the references' mean.
    assert log_prior(np.full((2, 1), -2000.0), a) == pytest.approx(-2000.0 if a == 1 else np.log((1 - a) / 2))


def gaussian(draw: np.random.Generator, level: np.ndarray, gain: float = 0.0) -> np.ndarray:
    return np.exp(level + draw.normal(gain, 0.5, len(level)))


def test_closed_form_and_difficulty_cancels() -> None:
    """With ln p ~ N(difficulty + gain, s) on members, N(difficulty, s) elsewhere and a = 1 the AUC is Phi(gain / (s sqrt 2))."""
    draw = np.random.default_rng(1)
    forget, holdout = draw.normal(-30, 5, (2, 3000))
    bank = references(*(texts(gaussian(draw, forget), gaussian(draw, holdout)) for _ in range(60)))
    for gain in (0.0, 0.4, 1.0):
        model = texts(gaussian(draw, forget, gain), gaussian(draw, holdout))
        attack = RMIA(n=60, a=1)
        scores = [attack.score(model, split, bank) for split in ("forget", "holdout")]
        assert auc(*scores) == pytest.approx(norm.cdf(gain / (0.5 * np.sqrt(2))), abs=0.02)
        assert min(map(np.min, scores)) >= 0
        assert max(map(np.max, scores)) <= 1
        # By the probability alone difficulty hides the gain.
        by_loss = auc(*(evidence_of(model, split) for split in ("forget", "holdout")))
        assert abs(by_loss - norm.cdf(gain / np.sqrt(2 * (25 + 0.25)))) < 0.03


def evidence_of(model: Evidence, split: str) -> np.ndarray:
    return -model.nll(Need(what="tokens", split=split))[0]


def test_scaling_and_order_change_nothing() -> None:
    draw = np.random.default_rng(2)
    seen = [draw.uniform(0.05, 0.9, (2, 30)) for _ in range(4)]
    bank, model = references(*(pictures(*one) for one in seen[1:])), pictures(*seen[0])
    attack = RMIA(n=3)
    expected = {split: attack.score(model, split, bank) for split in ("forget", "holdout")}
    for split, scores in expected.items():
        np.testing.assert_allclose(attack.score(pictures(*(0.3 * seen[0])), split, bank), scores, atol=1e-12)
        mixed, shuffled = reordered(model, 5), [member(reordered(one.evidence, i), "oracle", i) for i, one in enumerate(bank)]
        assert mixed.by_row(split, attack.score(mixed, split, shuffled)) == pytest.approx(model.by_row(split, scores))
    # A row of the population is compared with all the others and not with itself: without ties every rank occurs once.
    np.testing.assert_allclose(np.sort(expected["holdout"]), np.linspace(0, 1, 30), atol=1e-12)
    assert not np.allclose(RMIA(n=2).score(model, "forget", bank), expected["forget"])


def test_few_references_and_rows() -> None:
    model = pictures(np.full(3, 0.5), np.full(2, 0.5))
    with pytest.raises(NotMeasurable, match="1 models of role 'oracle', not 2"):
        RMIA().score(model, "forget", references(model))
    lonely = pictures(np.full(3, 0.5), np.full(1, 0.5))
    with pytest.raises(NotMeasurable, match="holdout has 1 rows"):
        RMIA().score(lonely, "forget", references(lonely, lonely))
    broken = texts(np.array([0.5, np.nan]), np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="1 of 2 rows of 'forget' is NaN"):
        RMIA(n=1).score(broken, "forget", references(texts(np.full(2, 0.5), np.full(2, 0.5))))
    # All alike: nobody exceeds anybody.
    assert RMIA(n=1).score(model, "forget", references(model)).tolist() == [0, 0, 0]
    assert share_exceeded(np.array([expit(0.0)]), np.array([expit(0.0)])).tolist() == [0]


def test_facts() -> None:
    assert RMIA().banks == (Bank(role="oracle", n=2),)
    assert RMIA(n=4).banks == (Bank(role="oracle", n=4),)
    assert RMIA.level is Threat.T2
    language, vision = SimpleNamespace(modality="language", task="generate"), SimpleNamespace(modality="vision", task="classify")
    assert RMIA().wants("forget", language) == (Need(what="tokens", split="forget"), Need(what="tokens", split="holdout"))
    assert RMIA().wants("holdout", vision) == (Need(what="logits", split="holdout"),)
    assert RMIA().supports(language) is None
    assert RMIA().supports(vision) is None
    assert "not for those that diffuse" in str(RMIA().supports(SimpleNamespace(modality="vision", task="diffuse")))
    for bad in ({"n": 0}, {"a": -0.1}, {"a": 1.1}):
        with pytest.raises(ValidationError):
            TypeAdapter(RMIA).validate_python(bad)
