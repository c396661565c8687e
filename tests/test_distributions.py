"""KLOM, epsilon and densities: against numpy and scipy, their defining properties, and the noise that identical models give."""

import itertools

import numpy as np
import pytest
from scipy.stats import entropy, gaussian_kde, norm

from unlearnbench.distributions import (
    epsilon,
    forgetting_score,
    gaussian_log_density,
    kernel_log_density,
    klom,
    largest_epsilon,
    one_sided_epsilon,
    threshold_rates,
)

# ---------------------------------------------------------------------------------------------------------------------------- KLOM


def made(n: int = 100, points: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, points)), draw.normal(0.5, 2, size=(n, points))


def test_klom_against_scipy() -> None:
    unlearned, oracles = made()
    for column, value in enumerate(klom(unlearned, oracles)):
        edges = np.histogram_bin_edges(np.concatenate([unlearned[:, column], oracles[:, column]]), 20)
        p, q = (np.histogram(side[:, column], edges)[0] / 100 for side in (unlearned, oracles))
        assert [p.sum(), q.sum()] == pytest.approx([1, 1])  # the largest value is in the last bin
        floored = np.maximum(q, 1e-5)
        # scipy normalises what it is given, which the log of the sum undoes.
        assert value == pytest.approx(entropy(p, floored) - np.log(floored.sum()), abs=1e-12)


def test_klom_is_the_divergence_of_the_unlearned_from_the_oracles() -> None:
    # Models that agree are found among oracles that do not, at a finite price; the other way round most oracles have no counterpart.
    draw = np.random.default_rng(1)
    narrow, wide = draw.normal(0, 0.3, (100, 400)), draw.normal(0, 1.2, (100, 400))
    assert 0.5 < klom(narrow, wide).mean() < 2
    assert klom(wide, narrow).mean() > 3 * klom(narrow, wide).mean()


def test_klom_by_hand_tells_its_direction() -> None:
    unlearned, oracles = np.array([[0.0], [0.0], [0.0], [1.0]]), np.array([[0.0], [1.0], [1.0], [1.0]])
    assert klom(unlearned, oracles, bins=2)[0] == pytest.approx(0.75 * np.log(3) + 0.25 * np.log(1 / 3))
    lonely = np.array([[0.0], [0.0], [0.0], [0.0]])
    assert klom(lonely, oracles, bins=2)[0] == pytest.approx(np.log(4))
    assert klom(oracles, lonely, bins=2)[0] == pytest.approx(0.25 * np.log(0.25) + 0.75 * np.log(0.75 / 1e-5))


def test_klom_properties() -> None:
    unlearned, oracles = made()
    value = klom(unlearned, oracles)
    assert (klom(unlearned, unlearned) == 0).all()
    assert (klom(unlearned, np.random.default_rng(2).permutation(unlearned)) == 0).all()
    draw = np.random.default_rng(3)
    np.testing.assert_allclose(klom(draw.permutation(unlearned), draw.permutation(oracles)), value, rtol=1e-12)
    # A power of two and a shift by one keep every value's bin exactly.
    np.testing.assert_allclose(klom(unlearned * 4, oracles * 4), value, rtol=1e-12)
    np.testing.assert_allclose(
        klom(np.round(unlearned, 3) + 8, np.round(oracles, 3) + 8), klom(np.round(unlearned, 3), np.round(oracles, 3)), atol=0.05
    )
    assert (klom(np.full((9, 1), 3.0), np.full((9, 1), 3.0)) == 0).all()


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_klom_is_bounded(eps: float) -> None:
    one_value = np.zeros((100, 1))
    assert klom(one_value, one_value + 9, eps=eps)[0] == pytest.approx(np.log(1 / eps))
    draw = np.random.default_rng(4)
    spread = klom(draw.normal(size=(100, 50)), draw.normal(50, 1, (100, 50)), eps=eps)
    assert (spread <= np.log(1 / eps)).all()
    assert spread.mean() > 0.8 * np.log(1 / eps)


def test_both_sides_are_clipped() -> None:
    unlearned, oracles = made()
    far = oracles.copy()
    far[0] = 1e6
    clipped = oracles.copy()
    clipped[0] = 100.0
    np.testing.assert_array_equal(klom(unlearned, far), klom(unlearned, clipped))
    np.testing.assert_array_equal(klom(far, unlearned), klom(clipped, unlearned))
    assert klom(unlearned, far, clip=10.0).mean() != klom(unlearned, far).mean()


def test_noise_floor_of_identical_models() -> None:
    """Mean and 95th percentile between two samples of N(0, 1): what cannot be told from 0 with so many models."""
    draw = np.random.default_rng(5)
    for n, mean, tail in ((20, 3.02, 5.1), (50, 0.86, 1.70), (100, 0.33, 0.65), (200, 0.15, 0.28), (500, 0.05, 0.09)):
        values = klom(draw.normal(size=(n, 2000)), draw.normal(size=(n, 2000)))
        assert values.mean() == pytest.approx(mean, rel=0.06, abs=0.01)
        assert np.percentile(values, 95) == pytest.approx(tail, rel=0.1, abs=0.01)


def test_klom_errors() -> None:
    with pytest.raises(ValueError, match=r"shapes \(4, 2\) and \(5, 2\); allowed: \[models, points\], as many models"):
        klom(np.zeros((4, 2)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="NaN"):
        klom(np.full((4, 1), np.nan), np.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        klom(np.zeros((0, 1)), np.zeros((0, 1)))


# ------------------------------------------------------------------------------------------------------------------------- epsilon


def test_one_sided_bound_by_hand() -> None:
    assert one_sided_epsilon(np.array([0.2]), np.array([0.1]), 0.3)[0] == pytest.approx(np.log(5))


def test_epsilon_is_the_smallest_that_allows_both_conditions() -> None:
    draw = np.random.default_rng(6)
    for fpr, fnr in draw.uniform(0.01, 0.6, (40, 2)):
        delta = 0.01
        value = float(epsilon(np.array(fpr), np.array(fnr), delta))

        def allowed(e: float, fpr: float = fpr, fnr: float = fnr, delta: float = delta) -> bool:
            return fpr + np.exp(e) * fnr >= 1 - delta - 1e-12 and fnr + np.exp(e) * fpr >= 1 - delta - 1e-12

        assert allowed(value)
        assert value == 0 or not allowed(value - 1e-6)


def test_epsilon_of_empty_rates() -> None:
    fpr, fnr = np.array([0.0, 0.0, 0.4, 1.0, 0.999]), np.array([0.0, 0.4, 0.0, 0.2, 0.0005])
    assert epsilon(fpr, fnr, 0.01).tolist() == [np.inf, 0.0, 0.0, 0.0, 0.0]


def test_largest_epsilon_against_all_thresholds() -> None:
    draw = np.random.default_rng(7)
    for shift in (0.0, 1.0, -2.0):
        unlearned, oracles = draw.normal(shift, 1, 30), draw.normal(0, 1, 30)
        best = 0.0
        for threshold, above in itertools.product(np.concatenate([unlearned, oracles]), (True, False)):
            called, wrongly = (np.mean((side > threshold) == above) for side in (unlearned, oracles))
            fpr, fnr = float(wrongly), 1 - float(called)
            if fpr > 1e-9 and fnr > 1e-9:
                best = max(best, np.log(max(0.99 - fpr, 1e-300) / fnr), np.log(max(0.99 - fnr, 1e-300) / fpr))
        assert largest_epsilon(unlearned, oracles, 0.01) == pytest.approx(best, abs=1e-9)
    apart = np.arange(5.0)
    assert largest_epsilon(apart, apart + 9, 0.01) == largest_epsilon(apart + 9, apart, 0.01) == np.inf
    assert largest_epsilon(apart, apart, 0.01) < np.log(4)


def test_rates_of_thresholds() -> None:
    fpr, fnr = threshold_rates(np.array([3.0, 1.0]), np.array([2.0, 0.0, 1.0, 5.0]), np.array([1.0, 4.0]))
    assert (fpr.tolist(), fnr.tolist()) == ([0.5, 0.25], [0.5, 1.0])


def test_score_halves_by_bin_and_the_last_is_open() -> None:
    scores = forgetting_score(np.array([0.0, 0.5, 0.999, 1.0, 5.99, 6.0, 40.0, np.inf]))
    assert scores.tolist() == [1.0, 0.5, 0.5, 0.25, 2.0**-11, 2.0**-12, 2.0**-12, 2.0**-12]


# ----------------------------------------------------------------------------------------------------------------------- densities


def test_densities_against_scipy() -> None:
    draw = np.random.default_rng(8)
    samples, values = draw.normal(2, 3, (25, 6)), draw.normal(2, 3, 6)
    for ddof in (0, 1):
        expected = norm.logpdf(values, samples.mean(axis=0), samples.std(axis=0, ddof=ddof))
        np.testing.assert_allclose(gaussian_log_density(values, samples, ddof=ddof), expected, rtol=1e-10)
    for bandwidth in (1.0, 0.4):
        expected = [
            gaussian_kde(column, bw_method=bandwidth / column.std(ddof=1)).logpdf(value)[0]
            for column, value in zip(samples.T, values, strict=True)
        ]
        np.testing.assert_allclose(kernel_log_density(values, samples, bandwidth=bandwidth), expected, rtol=1e-9)


def test_models_that_agree_to_the_last_digit_have_a_density() -> None:
    assert np.isfinite(gaussian_log_density(np.array([1.0, 2.0]), np.ones((5, 2)))).all()
    with pytest.raises(ValueError, match="1 samples; a Gaussian's spread takes 2 or more"):
        gaussian_log_density(np.zeros(1), np.zeros((1, 1)))
