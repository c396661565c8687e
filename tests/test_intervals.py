"""Intervals against cases worked by hand, another derivation, and their coverage on simulated data."""

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from unlearnbench.intervals import _cluster_correction, _crossed_mean, _working_variances
from unlearnbench.stats import Interval, mean_interval, paired_difference, prediction_interval, tied

Array = npt.NDArray[Any]
UNEQUAL = [1, 2, 3, 4, 6, 8, 10, 14]


def simulate(
    rng: np.random.Generator,
    seeds: int,
    sizes: list[int],
    seed: float = 1.0,
    cluster: float = 1.0,
    item: float = 1.0,
    noise: float = 1.0,
) -> tuple[Array, Array]:
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    values = (
        seed * rng.standard_normal((seeds, 1))
        + cluster * rng.standard_normal((1, len(sizes)))[:, clusters]
        + item * rng.standard_normal((1, len(clusters)))
        + noise * rng.standard_normal((seeds, len(clusters)))
    )
    return values, clusters


# --- the gap to a pool of oracles ---


def test_prediction_interval_by_hand() -> None:
    # Mean 3, s^2 = 2.5, n = 5, t_4(.975) = 2.776445; half = 2.776445 * sqrt(2.5 * 1.2)
    low, high, covers = prediction_interval(10.0, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert (low, high) == pytest.approx((7 - 4.808944, 7 + 4.808944), abs=1e-5)
    assert covers == "oracles"


@pytest.mark.parametrize("oracles", [2, 4, 20])
def test_prediction_interval_covers_one_more_oracle(oracles: int) -> None:
    draws = np.random.default_rng(oracles).normal(0.4, 0.05, (4000, oracles + 1))
    covered = np.mean([tied(prediction_interval(row[0], row[1:])) for row in draws])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_oracles_that_agree_give_a_point() -> None:
    # 0.1 is no float: a mean taken naively is off by a rounding and would break the tie.
    interval = prediction_interval(0.1, [0.1, 0.1, 0.1])
    assert interval == Interval(0.0, 0.0, "oracles")
    assert tied(interval)
    assert not tied(prediction_interval(0.1 + 1e-12, [0.1, 0.1, 0.1]))


def test_prediction_interval_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="pool has 1"):
        prediction_interval(0.5, [0.5])
    with pytest.raises(ValueError, match="pool contains nan"):
        prediction_interval(0.5, [0.5, math.nan])
    with pytest.raises(ValueError, match="pool has shape"):
        prediction_interval(0.5, [[0.5, 0.4]])
    with pytest.raises(ValueError, match="value is nan"):
        prediction_interval(math.nan, [0.5, 0.4])
    with pytest.raises(ValueError, match="level is 1"):
        prediction_interval(0.5, [0.5, 0.4], 1)


@pytest.mark.parametrize(("low", "high", "expected"), [(-1, 1, True), (0, 1, True), (-1, 0, True), (1, 2, False), (-2, -1, False)])
def test_tied_means_zero_is_inside(low: float, high: float, expected: bool) -> None:
    assert tied(Interval(low, high, "oracles")) is expected


# --- means over seeds and items ---


def test_below_five_seeds_equal_clusters_give_the_t_interval_of_cluster_means() -> None:
    values, clusters = simulate(np.random.default_rng(0), 3, [4] * 7)
    means = values.mean(0).reshape(7, 4).mean(1)
    expected = scipy_stats.t.interval(0.9, 6, means.mean(), scipy_stats.sem(means))
    interval = mean_interval(values, clusters, 0.9)
    assert interval[:2] == pytest.approx(expected)
    assert interval.covers == "clusters"


def test_seeds_are_covered_from_five_on() -> None:
    values, clusters = simulate(np.random.default_rng(0), 5, [4] * 7)
    assert mean_interval(values[:4], clusters).covers == "clusters"
    assert mean_interval(values, clusters).covers == "seeds and clusters"


def test_one_cluster_per_item_is_the_plain_t_interval() -> None:
    values = np.random.default_rng(0).normal(2, 1, (1, 12))
    interval = mean_interval(values, list("abcdefghijkl"))
    assert interval[:2] == pytest.approx(scipy_stats.t.interval(0.95, 11, values.mean(), scipy_stats.sem(values[0])))
    assert interval.covers == "items"


def test_crossed_interval_by_hand() -> None:
    # Five seeds x two clusters of one item. Seed means 1 2 3 4 5, clusters 2 and 4, interaction +-d, d = .5 0 -.5 0 0:
    # V_seed = 2.5 / 5 = .5; V_cluster = (1 + 1) / (2 * 1) = 1; cells deviate by +-d, sum of squares 2 * .5 = 1 over
    # 2 * 1 * 5 * 4 = 40: V_interaction = .025. Variance .5 + 1 - .025 = 1.475;
    # df = 1.475^2 / (.5^2 / 4 + 1^2 / 1 + .025^2 / 4) = 2.175625 / 1.06265625 = 2.047346
    d = np.array([0.5, 0.0, -0.5, 0.0, 0.0])
    seeds = np.arange(1.0, 6.0)
    values = np.stack([seeds - 1 + d, seeds + 1 - d], axis=1)
    mean = _crossed_mean(values, ["a", "b"])
    assert mean.value == pytest.approx(3.0)
    assert mean.error**2 == pytest.approx(1.475)
    assert mean.df == pytest.approx(2.0473460, abs=1e-6)
    half = scipy_stats.t.ppf(0.975, 2.175625 / 1.06265625) * math.sqrt(1.475)
    assert mean_interval(values, ["a", "b"])[:2] == pytest.approx((3 - half, 3 + half))
    assert mean_interval(values, ["a", "b"]).covers == "seeds and clusters"


@pytest.mark.parametrize(
    ("spreads", "counted"),
    [
        ({}, "both"),
        ({"seed": 0, "item": 0.2, "cluster": 0}, "any"),
        ({"cluster": 0, "item": 0}, "any"),
        ({"seed": 0, "cluster": 0, "item": 0}, "any"),
    ],
)
def test_crossed_interval_equals_the_analysis_of_variance(spreads: dict[str, float], counted: str) -> None:
    # Mean squares of the two-way table by their textbook sums; effects below the interaction's mean square count as it.
    reached = set()
    for seed in range(40):
        values, clusters = simulate(np.random.default_rng(seed), 6, [3] * 4, **spreads)
        table = values.reshape(6, 4, 3).mean(2)
        grand, rows, columns = table.mean(), table.mean(1), table.mean(0)
        ms_seed = 4 * ((rows - grand) ** 2).sum() / 5
        ms_cluster = 6 * ((columns - grand) ** 2).sum() / 3
        ms_both = ((table - rows[:, None] - columns + grand) ** 2).sum() / 15
        terms = {5: (1, ms_seed), 3: (1, ms_cluster), 15: (-1, ms_both)}
        if ms_seed < ms_both:
            terms[5], terms[15] = (0, 0.0), (terms[15][0] + 1, ms_both)
        if ms_cluster < ms_both:
            terms[3], terms[15] = (0, 0.0), (terms[15][0] + 1, ms_both)
        variance = sum(factor * square for factor, square in terms.values()) / 24
        df = (24 * variance) ** 2 / sum((factor * square) ** 2 / df for df, (factor, square) in terms.items())
        mean = _crossed_mean(values, clusters)
        assert mean.value == pytest.approx(values.mean())
        assert mean.error == pytest.approx(math.sqrt(variance))
        assert mean.df == pytest.approx(df)
        reached.add((ms_seed < ms_both, ms_cluster < ms_both))
    assert (False, False) in reached
    assert counted == "both" or len(reached) > 1


def test_an_effect_that_ties_with_the_interaction_counts_as_it() -> None:
    # Eight seeds x two clusters of one item, all powers of two, so that the tie is exact: V_interaction = 56 / 56 = 1.
    d = np.array([4.0, -4, 2, -2, 2, -2, 2, -2])
    for seed, cluster, variance, df in (
        (np.array([4.0, -4, -2, 2, 2, 2, -2, -2]), 4.0, 16.0, 1.0),  # V_seed = 1; V_cluster = 16 alone is left, with 1 df
        (8 * np.array([-1.0, -1, -1, 1, 1, 1, -1, 1]), 1.0, 512 / 56, 7.0),  # V_cluster = 1; V_seed = 512 / 56 with 7 df
    ):
        mean = _crossed_mean(np.stack([seed + d - cluster, seed - d + cluster], axis=1), ["a", "b"])
        assert (mean.error**2, mean.df) == pytest.approx((variance, df), rel=1e-12)


def test_satterthwaite_of_unequal_clusters_equals_the_matrix_form() -> None:
    # The squares are a quadratic form r' A r of residuals r = (I - 1 w') m: expectation tr(A S),
    # df = tr(A S)^2 / tr(A S A S).
    rng = np.random.default_rng(0)
    for sizes in (UNEQUAL, [30, 2, 2, 2], [5, 1]):
        weights = np.array(sizes) / sum(sizes)
        variances = rng.uniform(0.5, 2, len(sizes))
        factors, df = _cluster_correction(weights, variances)
        centre = np.eye(len(sizes)) - weights
        form = np.diag(factors) @ centre @ np.diag(variances) @ centre.T
        assert np.trace(form) == pytest.approx((weights**2 * variances).sum())  # unbiased for the mean's variance
        assert df == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form))


def test_working_variances_are_unbiased_for_clusters_and_items() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(8), UNEQUAL)
    sizes = np.array(UNEQUAL, dtype=float)
    drawn = [_working_variances(2 * rng.standard_normal(8)[clusters] + rng.standard_normal(48), clusters, sizes) for _ in range(3000)]
    assert np.mean(drawn, axis=0) == pytest.approx(4 + 1 / sizes, rel=0.05)


def test_order_of_items_and_names_of_clusters_do_not_matter() -> None:
    values, clusters = simulate(np.random.default_rng(1), 5, UNEQUAL)
    order = np.random.default_rng(2).permutation(len(clusters))
    shuffled = mean_interval(values[:, order], [("author", int(c)) for c in clusters[order]])
    assert shuffled[:2] == pytest.approx(mean_interval(values, clusters)[:2])


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([1, 4, 5, 7]), st.sampled_from([1e-90, 1e-3, 1.0, -2.0, 1e90]))
def test_interval_follows_the_units_of_the_values(seed: int, seeds: int, unit: float) -> None:
    values, clusters = simulate(np.random.default_rng(seed), seeds, [1, 4, 2])
    low, high, _ = mean_interval(values, clusters)
    ends = sorted((unit * low, unit * high))
    assert mean_interval(unit * values, clusters)[:2] == pytest.approx(ends, rel=1e-6, abs=0)
    assert low <= values.mean() <= high


@pytest.mark.parametrize("seeds", [2, 6])
def test_values_without_variation_give_a_point(seeds: int) -> None:
    low, high, _ = mean_interval(np.full((seeds, 4), 0.1), [0, 0, 1, 1])
    assert (low, high) == (0.1, 0.1)


def test_seeds_that_agree_leave_the_clusters_variance() -> None:
    values, clusters = simulate(np.random.default_rng(0), 1, UNEQUAL)
    once, many = mean_interval(values, clusters), mean_interval(np.repeat(values, 5, axis=0), clusters)
    assert many[:2] == pytest.approx(once[:2])


def test_items_that_agree_leave_the_seeds_variance() -> None:
    seeds = np.array([0.1, 0.4, 0.2, 0.5, 0.9])
    low, high, _ = mean_interval(np.repeat(seeds[:, None], 6, axis=1), [0, 0, 1, 1, 2, 2])
    assert (low, high) == pytest.approx(scipy_stats.t.interval(0.95, 4, seeds.mean(), scipy_stats.sem(seeds)))


def test_mean_interval_refuses_bad_input() -> None:
    for values, clusters, match in [
        ([0.0, 1.0], [0, 1], "must have 2 dimension"),
        ([[0.0, 1.0]], [0, 1, 2], r"values has shape \(1, 2\) and clusters length 3"),
        (np.zeros((0, 2)), [0, 1], r"values has shape \(0, 2\)"),
        ([[0.0, math.nan]], [0, 1], "values contains nan"),
        ([[0.0, 1.0]], [0, 0], r"1 distinct label\(s\)"),
        (np.zeros((1, 0)), [], r"0 distinct label\(s\)"),
    ]:
        with pytest.raises(ValueError, match=match):
            mean_interval(values, clusters)
    with pytest.raises(ValueError, match="level is 0"):
        mean_interval([[0.0, 1.0]], [0, 1], 0)


@pytest.mark.parametrize(
    ("seeds", "sizes", "spreads"),
    [
        (5, [6] * 20, {}),
        (5, UNEQUAL, {}),
        (10, [6] * 20, {}),
        (5, UNEQUAL, {"seed": 0}),
        (5, UNEQUAL, {"cluster": 0}),
        (5, [6] * 20, {"item": 0}),
        (5, [6] * 20, {"noise": 0}),
        (2, [6] * 20, {"seed": 0}),
    ],
)
def test_coverage_over_new_seeds_clusters_and_items(seeds: int, sizes: list[int], spreads: dict[str, float]) -> None:
    rng = np.random.default_rng(7)
    covered = np.mean([tied(mean_interval(*simulate(rng, seeds, sizes, **spreads))) for _ in range(1200)])
    assert 0.92 <= covered <= 0.98


# --- paired comparisons ---


def test_paired_difference_of_one_seed_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, (1, 15)), rng.normal(0, 1, (1, 15))
    test = paired_difference(a, b, range(15), level=0.9)
    reference = scipy_stats.ttest_rel(a[0], b[0])
    assert test.difference == pytest.approx((a - b).mean())
    assert test.p == pytest.approx(reference.pvalue)
    assert test.interval[:2] == pytest.approx(tuple(reference.confidence_interval(0.9)))


def test_p_value_and_interval_agree_and_the_test_is_antisymmetric() -> None:
    decisions = set()
    for seed, seeds in itertools.product(range(20), (1, 5)):
        rng = np.random.default_rng(seed)
        b = rng.standard_normal((seeds, 48))
        difference, clusters = simulate(rng, seeds, UNEQUAL)
        test, mirrored = (
            paired_difference(b + difference + 1, b, clusters),
            paired_difference(b, b + difference + 1, clusters),
        )
        assert (test.p > 0.05) == tied(test.interval)
        assert test.interval[:2] == pytest.approx(mean_interval(difference + 1, clusters)[:2])
        assert mirrored.p == pytest.approx(test.p)
        assert mirrored.difference == pytest.approx(-test.difference)
        decisions.add(tied(test.interval))
    assert decisions == {True, False}


def test_differences_without_variation_decide_without_a_test() -> None:
    a = np.random.default_rng(0).integers(0, 9, (2, 6)).astype(float)
    clusters = [0, 0, 1, 1, 2, 2]
    assert paired_difference(a, a, clusters) == (0.0, Interval(0.0, 0.0, "clusters"), 1.0)
    assert paired_difference(a + 1, a, clusters) == (1.0, Interval(1.0, 1.0, "clusters"), 0.0)


def test_paired_difference_refuses_other_seeds_or_items() -> None:
    with pytest.raises(ValueError, match=r"a has shape \(1, 3\) and b \(1, 2\)"):
        paired_difference([[1.0, 2.0, 3.0]], [[1.0, 2.0]], [0, 1, 2])
    with pytest.raises(ValueError, match="b contains inf"):
        paired_difference([[1.0, 2.0]], [[1.0, math.inf]], [0, 1])
