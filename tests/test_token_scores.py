"""Memorisation and membership scores of one text against counting, plain loops and numbers worked out by hand."""

import zlib
from itertools import product

import numpy as np
import pytest

from unlearnbench.token_scores import exact_memorization, extraction_strength, min_k, min_k_plus_plus, zlib_score


@pytest.mark.parametrize(
    ("row", "strength", "memorised"),
    [
        ("1111", 1.0, 1.0),
        ("0000", 0.0, 0.0),  # not 1/T
        ("0001", 0.25, 0.25),
        ("1110", 0.0, 0.75),  # a prefix cannot be extracted
        ("0111", 0.75, 0.75),
        ("1011", 0.5, 0.75),
        ("1", 1.0, 1.0),
        ("0", 0.0, 0.0),
    ],
)
def test_of_one_answer(row: str, strength: float, memorised: float) -> None:
    hits = np.array([mark == "1" for mark in row])
    assert extraction_strength(hits) == strength
    assert exact_memorization(hits) == memorised


def test_strength_is_one_minus_the_smallest_share_to_be_given() -> None:
    # The definition: the smallest k such that, given k tokens, all the rest are hit; k = T always does.
    for row in product([False, True], repeat=6):
        k = min(k for k in range(7) if all(row[k:]))
        assert extraction_strength(np.array(row)) == pytest.approx(1 - k / 6, abs=1e-15)


@pytest.mark.parametrize("formula", [extraction_strength, exact_memorization])
def test_hits_of_no_token_are_an_error(formula: object) -> None:
    with pytest.raises(ValueError, match="no token besides the end token"):
        formula(np.zeros(0, bool))  # type: ignore[operator]


# ---------------------------------------------------------------------------------------------------------------- membership


def lowest(values: list[float], share: float) -> float:
    """Mean of the lowest values, picked one by one."""
    left, picked = list(values), []
    for _ in range(max(1, int(share * len(values)))):
        picked.append(left.pop(left.index(min(left))))
    return sum(picked) / len(picked)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.99, 1.0])
@pytest.mark.parametrize("length", [1, 2, 5, 23])
def test_min_k_against_a_plain_loop(share: float, length: int) -> None:
    draw = np.random.default_rng(length)
    values = -draw.exponential(2.0, length)
    assert min_k(values, share) == pytest.approx(lowest(values.tolist(), share), rel=1e-12)
    mean, variance = -draw.exponential(2.0, length), draw.uniform(0.1, 3.0, length)
    standard = [(v - m) / s**0.5 for v, m, s in zip(values, mean, variance, strict=True)]
    assert min_k_plus_plus(values, mean, variance, share) == pytest.approx(lowest(standard, share), rel=1e-12)


def test_min_k_is_taken_in_float64() -> None:
    values = -np.random.default_rng(0).exponential(2.0, 999).astype(np.float32)
    assert min_k(values, 1.0) == values.astype(np.float64).mean()
    mean, variance = values - np.float32(0.1), np.full(999, 3e-7, np.float32)
    wide = min_k_plus_plus(values.astype(np.float64), mean.astype(np.float64), variance.astype(np.float64), 0.4)
    assert min_k_plus_plus(values, mean, variance, 0.4) == wide


def test_moments_under_the_model_are_those_of_the_log_probability() -> None:
    # A token as likely as the model's guesses are on average scores 0; at a uniform position every token does, so none has a variance.
    p = np.array([0.5, 0.25, 0.25])
    mean, variance = (p * np.log(p)).sum(), (p * np.log(p) ** 2).sum() - (p * np.log(p)).sum() ** 2
    score = min_k_plus_plus(np.log(p[:1]), mean[None], variance[None], 1.0)
    assert score == pytest.approx((np.log(0.5) + 1.5 * np.log(2)) / (0.5 * np.log(2)), rel=1e-12)
    with pytest.raises(ValueError, match=r"lowest variance is 0\.0; allowed: above 0"):
        min_k_plus_plus(np.array([-1.0, -1.0]), np.array([-1.0, -1.0]), np.array([0.3, 0.0]), 1.0)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_lies_above_0_and_up_to_1(share: float) -> None:
    with pytest.raises(ValueError, match="allowed: above 0 and at most 1"):
        min_k(np.array([-1.0]), share)


def test_min_k_of_no_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="no token"):
        min_k(np.zeros(0), 0.4)


def test_zlib_divides_the_loss_by_compressed_bytes() -> None:
    text = "Ünlearning " * 40
    assert zlib_score(1.5, text) == -1.5 / len(zlib.compress(bytes(text, "utf-8")))
    assert zlib_score(1.5, text) < zlib_score(1.5, "".join(map(chr, range(200, 640)))) < 0  # a repetitive text is less surprising
