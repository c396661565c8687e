"""Unbiased CKA against explicit loops, its invariances, and known values on random features."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ortho_group

from unlearnbench.api import Audit, Member, Need, NotMeasurable
from unlearnbench.evidence import Evidence
from unlearnbench.metrics.unbiased_cka import UnbiasedCKA
from unlearnbench.similarity import hsic_1, unbiased_cka

Floats = NDArray[np.float64]


def brute_hsic(K: Floats, L: Floats) -> float:
    """HSIC_1 as a U-statistic, from its definition: sums over tuples of distinct rows."""
    n = len(K)
    two = np.mean([K[i, j] * L[i, j] for i, j in permutations(range(n), 2)])
    four = np.mean([K[i, j] * L[q, r] for i, j, q, r in permutations(range(n), 4)])
    three = np.mean([K[i, j] * L[i, q] for i, j, q in permutations(range(n), 3)])
    return float(two + four - 2 * three)


def biased_cka(X: Floats, Y: Floats) -> float:
    X, Y = X - X.mean(0), Y - Y.mean(0)
    return float(np.linalg.norm(Y.T @ X) ** 2 / (np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y)))


@pytest.mark.parametrize("n", [4, 5, 7])
def test_hsic_against_sums_over_distinct_rows(n: int) -> None:
    draw = np.random.default_rng(n)
    X, Y = draw.normal(size=(n, 3)), draw.normal(size=(n, 2)) + draw.normal(size=(n, 1))
    assert hsic_1(X @ X.T, Y @ Y.T) == pytest.approx(brute_hsic(X @ X.T, Y @ Y.T), rel=1e-10)
    assert hsic_1(X @ X.T, X @ X.T) == pytest.approx(brute_hsic(X @ X.T, X @ X.T), rel=1e-10)


def test_hsic_leaves_its_arguments_alone_and_checks_them() -> None:
    K = np.eye(5) + 1.0
    before = K.copy()
    hsic_1(K, K)
    np.testing.assert_array_equal(K, before)
    with pytest.raises(ValueError, match="3 rows; allowed: 4 or more"):
        hsic_1(np.eye(3), np.eye(3))
    with pytest.raises(ValueError, match=r"\(5, 5\) and \(4, 4\)"):
        hsic_1(np.eye(5), np.eye(4))
    with pytest.raises(ValueError, match=r"\(5, 4\)"):
        hsic_1(np.ones((5, 4)), np.eye(5))


def test_cka_against_sums_over_distinct_rows() -> None:
    draw = np.random.default_rng(3)
    X = draw.normal(size=(7, 4))
    Y = X[:, :2] + draw.normal(size=(7, 2))
    K, L = X @ X.T, Y @ Y.T
    expected = brute_hsic(K, L) / np.sqrt(brute_hsic(K, K) * brute_hsic(L, L))
    assert unbiased_cka(X, Y) == pytest.approx(expected, rel=1e-9)
    assert unbiased_cka(Y, X) == pytest.approx(expected, rel=1e-9)


def test_invariances() -> None:
    draw = np.random.default_rng(4)
    X, Y = draw.normal(size=(30, 6)), draw.normal(size=(30, 6))
    Y[:, :3] += X[:, :3]
    value = unbiased_cka(X, Y)
    assert 0.1 < value < 0.9
    rotation = ortho_group.rvs(6, random_state=0)
    assert unbiased_cka(X, X) == pytest.approx(1.0, abs=1e-12)
    assert unbiased_cka(X, 0.01 * X @ rotation + 5) == pytest.approx(1.0, abs=1e-12)
    assert unbiased_cka(7 * X @ rotation - 3, Y) == pytest.approx(value, rel=1e-10)
    order = draw.permutation(30)
    assert unbiased_cka(X[order], Y[order]) == pytest.approx(value, rel=1e-12)
    assert abs(unbiased_cka(X[order], Y)) < value
    assert unbiased_cka(X * np.arange(1, 7), Y) != pytest.approx(value, rel=1e-2)  # isotropic scaling only


def test_a_large_shared_mean_costs_no_precision() -> None:
    draw = np.random.default_rng(5)
    X, Y = draw.normal(size=(20, 6)), draw.normal(size=(20, 6))
    assert unbiased_cka(X + 1e5, Y - 1e5) == pytest.approx(unbiased_cka(X, Y), abs=1e-8)


def test_float32_features_are_compared_in_float64() -> None:
    draw = np.random.default_rng(6)
    X, Y = draw.normal(size=(20, 6)).astype(np.float32) + np.float32(1e3), draw.normal(size=(20, 6))
    assert unbiased_cka(X, Y) == unbiased_cka(X.astype(np.float64), Y)


def test_independent_features_are_alike_only_to_the_biased_form() -> None:
    draw = np.random.default_rng(0)
    pairs = [(draw.normal(size=(50, 2048)), draw.normal(size=(50, 2048))) for _ in range(3)]
    assert np.mean([biased_cka(X, Y) for X, Y in pairs]) == pytest.approx(0.976, abs=0.002)
    unbiased = [unbiased_cka(X, Y) for X, Y in pairs]
    assert max(map(abs, unbiased)) < 0.1  # one draw gave -0.034


def test_one_shared_outlier_row_does_not_make_two_models_alike() -> None:
    draw = np.random.default_rng(1)
    X, Y = draw.normal(size=(50, 16)), draw.normal(size=(50, 16))
    X[0] += 1e3
    Y[0] += 1e3
    assert biased_cka(X, Y) > 0.999
    assert abs(unbiased_cka(X, Y)) < 0.3


def test_one_shared_massive_feature_does() -> None:
    draw = np.random.default_rng(2)
    X, Y, shared = draw.normal(size=(50, 16)), draw.normal(size=(50, 16)), draw.normal(size=50)
    X[:, 0] = Y[:, 0] = 1e3 * shared
    assert unbiased_cka(X, Y) > 0.99


def test_errors() -> None:
    good = np.random.default_rng(0).normal(size=(6, 2))
    with pytest.raises(ValueError, match="features of 6 and of 5 rows"):
        unbiased_cka(good, good[:5])
    with pytest.raises(ValueError, match="3 rows; allowed: 4 or more"):
        unbiased_cka(good[:3], good[:3])
    with pytest.raises(ValueError, match="NaN or infinite"):
        unbiased_cka(good, np.where(good > good[0, 0], np.inf, good))
    for constant in (np.zeros((6, 2)), np.full((6, 2), 0.1, np.float32), 1e3 + 1e-6 * good):
        with pytest.raises(ValueError, match="all 6 rows are the same"):
            unbiased_cka(good, constant)


# ------------------------------------------------------------------------------------------------------------------ plugin


def evidence(ids: tuple[str, ...], features: Floats, layer: int = -1) -> Evidence:
    need = Need(what="features", split="forget", layer=layer)
    return Evidence(ids={"forget": ids}, clusters={"forget": ids}, arrays={need: features.astype(np.float32)})


def oracle(seen: Evidence, seed: int) -> Member:
    def load() -> object:
        raise AssertionError("a metric never touches a model")

    return Member(role="oracle", seed=seed, evidence=seen, load=load)


def test_plugin_averages_over_oracles_and_joins_rows_by_identity() -> None:
    draw = np.random.default_rng(6)
    ids = tuple("abcdefgh")
    X, Y, Z = (draw.normal(size=(8, 3)) for _ in range(3))
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    shuffled = evidence(tuple(ids[i] for i in order), Y[order], layer=2)
    audit = Audit(originals=(), oracles=(oracle(shuffled, 0), oracle(evidence(ids, Z, layer=2), 1)))
    metric = UnbiasedCKA(layer=2)
    expected = (unbiased_cka(X, Y) + unbiased_cka(X, Z)) / 2
    assert metric.measure(evidence(ids, X, layer=2), audit) == pytest.approx(expected, abs=1e-6)
    # An attack is judged on a part of the rows: only they are compared.
    part = unbiased_cka(X[2:7], Y[2:7]), unbiased_cka(X[2:7], Z[2:7])
    assert metric.measure(evidence(ids[2:7], X[2:7], layer=2), audit) == pytest.approx(sum(part) / 2, abs=1e-6)


def test_against_the_originals() -> None:
    draw = np.random.default_rng(8)
    ids = tuple("abcdefgh")
    X, Y, Z = (draw.normal(size=(8, 3)) for _ in range(3))
    audit = Audit(originals=(oracle(evidence(ids, Y), 0),), oracles=(oracle(evidence(ids, Z), 1),))
    to_original = UnbiasedCKA(reference="original")
    assert to_original.measure(evidence(ids, X), audit) == pytest.approx(unbiased_cka(X, Y), abs=1e-6)
    # Features that were left alone, under whatever classifier, are the original's.
    assert to_original.measure(evidence(ids, Y), audit) == pytest.approx(1.0, abs=1e-9)
    assert (to_original.direction, UnbiasedCKA(reference="original", split="test").direction) == ("higher", "higher")
    with pytest.raises(NotMeasurable, match="no other original"):
        to_original.measure(evidence(ids, X), Audit(originals=(), oracles=audit.oracles))


def test_plugin_errors_and_facts() -> None:
    features = np.random.default_rng(7).normal(size=(5, 3))
    seen = evidence(tuple("abcde"), features)
    with pytest.raises(ValueError, match="no oracle"):
        UnbiasedCKA().measure(seen, Audit(originals=(), oracles=()))
    with pytest.raises(NotMeasurable, match="forget has 3 rows"):
        UnbiasedCKA().measure(evidence(tuple("abc"), features[:3]), Audit(originals=(), oracles=(oracle(seen, 0),)))
    lacking = Audit(originals=(), oracles=(oracle(evidence(tuple("abcdx"), features), 0),))
    with pytest.raises(ValueError, match="lacks 1 rows of 'forget', the first is 'e'"):
        UnbiasedCKA().measure(seen, lacking)
    metric = UnbiasedCKA()
    assert (metric.side, metric.headline, metric.direction) == ("diagnostic", False, "lower")
    assert UnbiasedCKA(split="retain").direction == "higher"
    scenario = SimpleNamespace(modality="vision", task="classify", splits=("forget",))
    assert metric.supports(scenario) is None
    assert "not on audio" in str(metric.supports(SimpleNamespace(modality="audio", splits=("forget",))))
    assert metric.wants(scenario) == (Need(what="features", split="forget"),)
    assert UnbiasedCKA(split="test").supports(scenario) == "needs a split 'test', not one of ('forget',)"
