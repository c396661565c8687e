"""Likelihood-ratio attacks: closed forms of Gaussians, which bank stands where, joins by identity, and whom they find."""

from types import SimpleNamespace

import numpy as np
import pytest
from classified import bank, reordered, with_margins
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from unlearnbench.api import Bank, Need, NotMeasurable
from unlearnbench.attacks.likelihood_ratio import RULI, LiRA, ULiRA

BANKS = {
    ULiRA: ("unlearned", "oracle_unlearned_elsewhere"),
    RULI: ("unlearned", "oracle_unlearned_elsewhere"),
    LiRA: ("original", "oracle"),
}


def made(seed: int, n: int, shift: np.ndarray | float = 0.0, scale: float = 1.0, points: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (n, points))


@pytest.mark.parametrize("attack", [ULiRA, LiRA])
def test_closed_form_of_two_gaussians(attack: type[ULiRA]) -> None:
    """log N(x; a, s) - log N(x; b, t) with the banks' own means and spreads."""
    knew, never, values = made(0, 8, 2.0, 0.5), made(1, 8, 0.0, 2.0), made(2, 1, 1.0)[0]
    first, second = BANKS[attack]
    members = [*bank(second, never), *bank(first, knew)]
    found = attack(n=8).score(with_margins({"forget": values}), "forget", members)
    expected = norm.logpdf(values, knew.mean(0), knew.std(0, ddof=1)) - norm.logpdf(values, never.mean(0), never.std(0, ddof=1))
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_many_models_approach_the_true_ratio() -> None:
    # N(1, 1) against N(0, 1) at x has the log-ratio x - 1/2.
    values = np.linspace(-2, 2, 40)
    members = [*bank("unlearned", made(3, 800, 1.0), mixed=False), *bank("oracle_unlearned_elsewhere", made(4, 800), mixed=False)]
    found = ULiRA(n=800).score(with_margins({"forget": values}), "forget", members)
    np.testing.assert_allclose(found, values - 0.5, atol=0.45)


def test_kernel_densities_and_their_bandwidth() -> None:
    knew, never, values = made(5, 6, 3.0), made(6, 6), made(7, 1, 1.0)[0]
    members = [*bank("unlearned", knew), *bank("oracle_unlearned_elsewhere", never)]
    for bandwidth in (1.0, 0.3):
        found = RULI(n=6, bandwidth=bandwidth).score(with_margins({"forget": values}), "forget", members)
        expected = [np.log(norm.pdf(values, side, bandwidth).mean(axis=0)) for side in (knew, never)]
        np.testing.assert_allclose(found, expected[0] - expected[1], rtol=1e-6)


@pytest.mark.parametrize("attack", [ULiRA, RULI, LiRA])
def test_finds_rows_that_are_still_known_whatever_their_difficulty(attack: type[ULiRA]) -> None:
    hard = np.random.default_rng(8).normal(0, 5, 200)  # by the margin itself members and others look alike
    first, second = BANKS[attack]
    never, knew = made(9, 32, hard, points=200), made(10, 32, hard + 3.0, points=200)
    for still, low, high in ((True, 0.9, 1.0), (False, 0.0, 0.1)):
        value = made(11, 1, hard + (3.0 if still else 0.0), points=200)[0]
        forget = attack(n=32).score(with_margins({"forget": value}), "forget", [*bank(first, knew), *bank(second, never)])
        assert low <= np.mean(forget > 0) <= high
        other = made(12, 1, hard, points=200)[0]
        members = [*bank(first, made(13, 32, hard, points=200), "holdout"), *bank(second, made(14, 32, hard, points=200), "holdout")]
        holdout = attack(n=32).score(with_margins({"holdout": other}), "holdout", members)
        area = roc_auc_score(np.repeat([1, 0], 200), np.concatenate([forget, holdout]))
        assert area > 0.9 if still else area < 0.1


def test_rows_are_joined_by_identity_and_banks_must_be_full() -> None:
    members = [*bank("unlearned", made(15, 5, 1.0)), *bank("oracle_unlearned_elsewhere", made(16, 5))]
    evidence = with_margins({"forget": made(17, 1)[0]})
    mixed = reordered(evidence, 3)
    by_row = evidence.by_row("forget", ULiRA(n=5).score(evidence, "forget", members))
    assert mixed.by_row("forget", ULiRA(n=5).score(mixed, "forget", members)) == pytest.approx(by_row)
    with pytest.raises(NotMeasurable, match="5 models of role 'unlearned', not 6"):
        ULiRA(n=6).score(evidence, "forget", members)
    with pytest.raises(ValueError, match="lacks 2 rows of 'forget'"):
        ULiRA(n=5).score(with_margins({"forget": np.zeros(42)}), "forget", members)


def test_facts() -> None:
    assert ULiRA().banks == (Bank(role="unlearned", n=64), Bank(role="oracle_unlearned_elsewhere", n=64))
    assert LiRA(n=7).banks == (Bank(role="original", n=7), Bank(role="oracle", n=7))
    assert RULI().n == 90
    scenario = SimpleNamespace(modality="vision", task="classify")
    assert ULiRA().wants("holdout", scenario) == (Need(what="logits", split="holdout"),)
    assert "not on language" in str(ULiRA().supports(SimpleNamespace(modality="language", task="generate")))
