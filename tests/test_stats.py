"""AUC, TPR at low FPR and the small statistics, each against another implementation or a case worked by hand."""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, t
from scipy.stats import kendalltau as scipy_kendalltau
from sklearn.metrics import roc_auc_score, roc_curve

from unlearnbench.stats import (
    auc,
    auc_difference,
    auc_interval,
    harmonic_mean,
    holm,
    kendall_tau,
    tpr_at_fpr,
    tpr_supported,
)

Array = npt.NDArray[np.float64]
SCORES = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=12)  # few levels: many ties


def tied_scores(seed: int = 0, m: int = 30, n: int = 50) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(0.8, 1, m), 1), np.round(rng.normal(0, 1, n), 1)


def structural_components(members: Array, nonmembers: Array) -> float:
    """DeLong's variance by its definition, pair by pair."""
    kernel = np.array([[float(x > y) + 0.5 * (x == y) for y in nonmembers] for x in members])
    return kernel.mean(1).var(ddof=1) / len(members) + kernel.mean(0).var(ddof=1) / len(nonmembers)


@given(SCORES, SCORES)
def test_auc_equals_sklearn_with_ties(members: list[float], nonmembers: list[float]) -> None:
    labels = [1] * len(members) + [0] * len(nonmembers)
    assert auc(members, nonmembers) == pytest.approx(roc_auc_score(labels, members + nonmembers), abs=1e-12)


def test_auc_takes_infinite_scores() -> None:
    assert auc([math.inf, 1.0], [0.0, -math.inf]) == 1.0


@pytest.mark.parametrize("function", [auc, auc_interval, lambda a, b: tpr_at_fpr(a, b, 0.1)])
@pytest.mark.parametrize("bad", [[], [[1.0, 2.0]], [0.0, math.nan]])
def test_scores_that_cannot_be_ranked_are_refused(function: Callable[..., Any], bad: Any) -> None:
    with pytest.raises(ValueError, match=r"^members"):
        function(bad, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"^nonmembers"):
        function([0.0, 1.0], bad)


def test_nan_is_refused_with_its_position() -> None:
    with pytest.raises(ValueError, match="NaN at position 2"):
        auc([0.0, 1.0, math.nan], [0.0])


def test_auc_interval_is_delong_on_the_logit_scale() -> None:
    members, nonmembers = tied_scores()
    area, error = auc(members, nonmembers), math.sqrt(structural_components(members, nonmembers))
    # The two sides' shares of the variance, pair by pair, and Satterthwaite's degrees of freedom of their sum.
    wins = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in nonmembers] for a in members])
    one, other = np.var(wins.mean(1), ddof=1) / len(members), np.var(wins.mean(0), ddof=1) / len(nonmembers)
    assert one + other == pytest.approx(error**2)
    freedom = (one + other) ** 2 / (one**2 / (len(members) - 1) + other**2 / (len(nonmembers) - 1))
    for level in (0.9, 0.95):
        half = t.ppf(0.5 + level / 2, freedom) * error / (area * (1 - area))
        ends = [1 / (1 + (1 / area - 1) * math.exp(sign * half)) for sign in (1, -1)]
        interval = auc_interval(members, nonmembers, level)
        assert interval[:2] == pytest.approx(ends)
        assert interval.covers == "items"


def test_delong_variance_agrees_with_a_bootstrap() -> None:
    members, nonmembers = tied_scores(m=60, n=120)
    rng = np.random.default_rng(0)
    resampled = [auc(rng.choice(members, len(members)), rng.choice(nonmembers, len(nonmembers))) for _ in range(1500)]
    low, high, _ = auc_interval(members, nonmembers)
    area = auc(members, nonmembers)
    logit_error = (math.log(high / (1 - high)) - math.log(low / (1 - low))) / (2 * norm.ppf(0.975))
    assert logit_error * area * (1 - area) == pytest.approx(np.std(resampled), rel=0.08)


@given(SCORES, SCORES)
def test_auc_interval_holds_the_auc_and_mirrors(members: list[float], nonmembers: list[float]) -> None:
    low, high, _ = auc_interval(members, nonmembers)
    assert 0 <= low <= auc(members, nonmembers) + 1e-12
    assert auc(members, nonmembers) - 1e-12 <= high <= 1
    assert auc_interval(nonmembers, members)[:2] == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_auc_interval_at_the_ends_is_clopper_pearson_of_disjoint_pairs() -> None:
    exact = binomtest(7, 7).proportion_ci(0.95)
    above, below = np.arange(10.0, 17.0), np.arange(9.0)  # 7 members, 9 non-members: 7 disjoint pairs
    assert auc_interval(above, below)[:2] == pytest.approx((exact.low, 1.0))
    assert auc_interval(below, above)[:2] == pytest.approx((0.0, 1 - exact.low))


def test_auc_interval_of_constant_scores_is_a_point() -> None:
    assert auc_interval([1.0, 1.0], [1.0, 1.0, 1.0])[:2] == (0.5, 0.5)


def test_auc_interval_needs_two_scores_a_side_and_a_level() -> None:
    with pytest.raises(ValueError, match="at least 2 score"):
        auc_interval([1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match=r"nonmembers .* at least 2 score"):
        auc_interval([0.0, 1.0], [1.0])
    for level in (0, 1, 95, math.nan):
        with pytest.raises(ValueError, match="level is"):
            auc_interval([1.0, 2.0], [0.0, 1.0], level)


@given(SCORES, SCORES, st.sampled_from([0.0, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.9]))
def test_tpr_equals_the_best_of_all_thresholds(members: list[float], nonmembers: list[float], target: float) -> None:
    best = 0.0
    for threshold in [*members, *nonmembers, math.inf]:
        false = sum(score >= threshold for score in nonmembers) / len(nonmembers)
        if false <= target:
            best = max(best, sum(score >= threshold for score in members) / len(members))
    assert tpr_at_fpr(members, nonmembers, target) == pytest.approx(best)


def test_tpr_equals_sklearn_without_interpolation() -> None:
    members, nonmembers = tied_scores(m=200, n=400)
    fpr, tpr, _ = roc_curve([1] * 200 + [0] * 400, [*members, *nonmembers], drop_intermediate=False)
    for target in (0.001, 0.01, 0.05, 0.3):
        assert tpr_at_fpr(members, nonmembers, target) == tpr[fpr <= target].max()


def test_tpr_never_takes_the_nearest_rate_above_the_target() -> None:
    # FPR 0 or 1/2 exist; 0.49 is nearer to 1/2, which a detector would be flattered by.
    assert tpr_at_fpr([3.0, 1.0], [2.0, 0.0], 0.49) == 0.5
    assert tpr_at_fpr([3.0, 1.0], [2.0, 0.0], 0.5) == 1.0


def test_tpr_allows_exactly_the_target_despite_rounding() -> None:
    # 0.29 * 100 is 28.999... in floats: 29 false positives are within the target all the same.
    assert tpr_at_fpr([70.5], np.arange(100.0), 0.29) == 1.0
    assert tpr_at_fpr([69.5], np.arange(100.0), 0.29) == 0.0


@pytest.mark.parametrize("target", [-0.1, 1, 5, math.nan])
def test_fpr_outside_its_range_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="fpr is"):
        tpr_at_fpr([1.0], [0.0], target)
    with pytest.raises(ValueError, match="fpr is"):
        tpr_supported(100, target)


def test_support_follows_the_exact_binomial_interval() -> None:
    # n * fpr whole: scipy's Clopper-Pearson upper bound decides.
    for n, fpr in itertools.product((20, 100, 200, 300, 400, 1000, 3000), (0.01, 0.05, 0.1)):
        upper = binomtest(round(n * fpr), n).proportion_ci(0.95, method="exact").high if n * fpr >= 1 else 1.0
        assert (tpr_supported(n, fpr) is None) == (upper <= 3 * fpr), (n, fpr)


def test_support_gives_its_reason_and_its_smallest_samples() -> None:
    assert "100 non-members rests on 1 of them: it may be 5.4%" in str(tpr_supported(100, 0.01))
    assert f"{100 * binomtest(2, 200).proportion_ci(0.95).high:.2g}" == "3.6"
    assert "200 non-members rests on 2 of them: it may be 3.6%" in str(tpr_supported(200, 0.01))
    assert "12 are too few" in str(tpr_supported(12, 0.01))
    assert "0 are too few" in str(tpr_supported(0, 0.01))
    assert "400 are too few" in str(tpr_supported(400, 0.001))
    for smallest, fpr in ((279, 0.01), (2839, 0.001)):
        assert tpr_supported(smallest - 1, fpr)
        assert all(tpr_supported(n, fpr) is None for n in range(smallest, smallest + 300))
    with pytest.raises(ValueError, match="n_nonmembers is -1"):
        tpr_supported(-1, 0.1)


def test_holm_by_hand() -> None:
    # Sorted .005 .011 .02 .04 times 4 3 2 1: .02 .033 .04 .04
    assert holm([0.02, 0.005, 0.04, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    # The running maximum and the cap at 1: .3*3 = .9, .6*2 -> 1, .7 -> 1
    assert holm([0.6, 0.3, 0.7]) == pytest.approx([1.0, 0.9, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(pvalues: list[float], alpha: float) -> None:
    rejected = set()
    for rank, index in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        if pvalues[index] * (len(pvalues) - rank) > alpha:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(holm(pvalues)) if p <= alpha} == rejected


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_probability(bad: float) -> None:
    with pytest.raises(ValueError, match="lies in"):
        holm([0.5, bad])


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_harmonic_mean_is_the_inverse_mean_inverse(values: list[float]) -> None:
    assert harmonic_mean(values) == pytest.approx(1 / np.mean([1 / value for value in values]))


def test_harmonic_mean_at_zero_nan_and_tiny_values() -> None:
    assert harmonic_mean([0.0, 0.9]) == 0.0
    assert math.isnan(harmonic_mean([0.5, math.nan]))
    assert math.isnan(harmonic_mean([0.0, math.nan]))
    assert harmonic_mean([5e-324, 1.0]) == 1e-323  # twice the smallest float: 1 / value would overflow


@pytest.mark.parametrize("bad", [[], [[1.0]], [1.0, -0.1], [1.0, math.inf], [math.nan, -1.0]])
def test_harmonic_mean_refuses_what_has_none(bad: Any) -> None:
    with pytest.raises(ValueError, match="values"):
        harmonic_mean(bad)


def test_kendall_tau_counts_pairs_and_ties() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 25), rng.integers(0, 6, 25)
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in itertools.combinations(range(25), 2)]
    tau_b = sum(x * y for x, y in signs) / math.sqrt(sum(x * x for x, _ in signs) * sum(y * y for _, y in signs))
    assert kendall_tau(a, b) == pytest.approx(tau_b)
    assert kendall_tau(a, b) == pytest.approx(scipy_kendalltau(a, b).statistic)
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))


def test_kendall_tau_refuses_rankings_that_do_not_match() -> None:
    for a, b in (([1, 2], [1, 2, 3]), ([1], [1])):
        with pytest.raises(ValueError, match="same number, at least 2"):
            kendall_tau(a, b)
    assert kendall_tau([1, 2], [4, 3]) == -1.0  # two are enough
    with pytest.raises(ValueError, match="b contains nan"):
        kendall_tau([1, 2], [1, math.nan])


def test_importing_stats_stays_light() -> None:
    heavy = "{'scipy.stats', 'scipy.special', 'torch'}"
    code = f"import sys, unlearnbench.stats; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_auc_interval_of_clusters_is_that_of_rows_where_each_row_is_alone() -> None:
    rng = np.random.default_rng(3)
    members, nonmembers = rng.normal(0.7, 1, 30), rng.normal(0, 1, 25)
    alone = auc_interval(members, nonmembers, member_clusters=range(30), nonmember_clusters=[f"n{i}" for i in range(25)])
    assert alone == auc_interval(members, nonmembers)
    assert alone.covers == "items"


def test_auc_interval_of_copied_rows_is_that_of_the_clusters() -> None:
    """Ten copies of a row bring nothing new: by clusters the interval stays, by rows it would shrink."""
    rng = np.random.default_rng(4)
    members, nonmembers = rng.normal(0.7, 1, 12), rng.normal(0, 1, 12)
    copied = auc_interval(
        np.repeat(members, 10),
        np.repeat(nonmembers, 10),
        member_clusters=np.repeat(np.arange(12), 10).tolist(),
        nonmember_clusters=np.repeat(np.arange(12), 10).tolist(),
    )
    once = auc_interval(members, nonmembers)
    assert copied[:2] == pytest.approx(once[:2], rel=1e-12)
    assert copied.covers == "clusters"
    by_rows = auc_interval(np.repeat(members, 10), np.repeat(nonmembers, 10))
    assert by_rows.high - by_rows.low < 0.5 * (copied.high - copied.low)


def test_auc_interval_covers_where_rows_of_a_cluster_move_together() -> None:
    rng = np.random.default_rng(5)
    truth, hits = 0.760249938906523, 0  # Phi(1 / sqrt(2)): members and non-members one standard deviation apart
    for _ in range(400):
        members = np.repeat(rng.normal(0, 0.8**0.5, 20), 5) + rng.normal(1, 0.2**0.5, 100)
        nonmembers = np.repeat(rng.normal(0, 0.8**0.5, 20), 5) + rng.normal(0, 0.2**0.5, 100)
        names = np.repeat(np.arange(20), 5).tolist()
        low, high, _ = auc_interval(members, nonmembers, member_clusters=names, nonmember_clusters=names)
        hits += low <= truth <= high
    assert 0.90 <= hits / 400 <= 0.985


def test_auc_interval_at_the_end_counts_clusters() -> None:
    interval = auc_interval([5, 6, 7, 8], [1, 2, 3, 4], member_clusters=[0, 0, 1, 1], nonmember_clusters=[0, 1, 2, 3])
    assert interval.low == pytest.approx(0.025 ** (1 / 2), rel=1e-12)
    assert interval[1:] == (1.0, "clusters")
    other = auc_interval([1, 2, 3, 4], [5, 6, 7, 8], nonmember_clusters=[0, 0, 1, 1])  # clusters on one side are enough
    assert other.high == pytest.approx(1 - 0.025 ** (1 / 2), rel=1e-12)
    assert (other.low, other.covers) == (0.0, "clusters")


@pytest.mark.parametrize(("clusters", "problem"), [([0, 0, 0], "members lie in 1 cluster"), ([0, 1], "3 scores but 2 clusters")])
def test_auc_interval_refuses_clusters(clusters: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        auc_interval([1.0, 2.0, 3.0], [0.0, 1.5], member_clusters=clusters)


# ------------------------------------------------------------------------------------------------------- two models, the same rows

Pair = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def kernel(one: Pair) -> npt.NDArray[np.float64]:
    """1 where a member stands above a non-member, 1/2 at a tie [m, n]."""
    return np.asarray((one[0][:, None] > one[1]) + 0.5 * (one[0][:, None] == one[1]))


def two_models(seed: int, clusters: int, rows: int, shift: float) -> tuple[Pair, Pair, list[int]]:
    """Scores of members and non-members by two models, correlated in clusters and between models; the first has the shift."""
    draw, groups = np.random.default_rng(seed), np.repeat(np.arange(clusters), rows)

    def side() -> npt.NDArray[np.float64]:
        common, own = draw.standard_normal((2, clusters)), draw.standard_normal((2, len(groups)))
        common[1], own[1] = (common[0] + common[1]) / np.sqrt(2), (own[0] + own[1]) / np.sqrt(2)
        return np.asarray(np.sqrt(0.3) * common[:, groups] + np.sqrt(0.7) * own)

    members, others = side(), side()
    return (members[0] + shift, others[0]), (members[1], others[1]), groups.tolist()


def bootstrapped(a: Pair, b: Pair, groups: list[int], draws: int) -> npt.NDArray[np.float64]:
    """Differences of the AUCs over clusters of equal size drawn anew on both sides."""
    count = max(groups) + 1
    blocks = (kernel(a) - kernel(b)).reshape(count, len(groups) // count, count, len(groups) // count).mean(axis=(1, 3))
    draw = np.random.default_rng(0)
    ours, theirs = (draw.multinomial(count, np.full(count, 1 / count), draws) / count for _ in range(2))
    return np.asarray(((ours @ blocks) * theirs).sum(axis=1))


@given(SCORES, SCORES, st.randoms())
def test_auc_difference_is_that_of_the_aucs_and_mirrors(members: list[float], nonmembers: list[float], random: Any) -> None:
    a = [*members, 0.0], [*nonmembers, 0.0]
    b = tuple(random.sample(side, len(side)) for side in a)
    found, mirrored = auc_difference(a, b), auc_difference(b, a)  # type: ignore[arg-type]
    assert found.difference == pytest.approx(auc(*a) - auc(*b), abs=1e-12)
    assert found.interval.low <= found.difference + 1e-12
    assert found.interval.high >= found.difference - 1e-12
    assert mirrored.difference == pytest.approx(-found.difference)
    assert (-mirrored.interval.high, -mirrored.interval.low) == pytest.approx((found.interval.low, found.interval.high))
    assert mirrored.p == pytest.approx(found.p)
    if found.difference:
        assert (found.p < 0.05) != (found.interval.low <= 0 <= found.interval.high)


def test_auc_difference_by_hand() -> None:
    # 7/32 in the mean of the members' placements as of the others'.
    found = auc_difference(([3, 4, 5, 6], [1, 2, 3.5, 2.5]), ([3, 1, 5, 6], [1, 2, 3.5, 2.5]))
    ours, theirs = np.array([0, 7 / 8, 0, 0]), np.array([1 / 8, 1 / 4, 1 / 4, 1 / 4])
    one, other = ours.var(ddof=1) / 4, theirs.var(ddof=1) / 4
    freedom = (one + other) ** 2 / (one**2 / 3 + other**2 / 3)
    half = t.ppf(0.975, freedom) * math.sqrt(one + other)
    assert found.difference == 7 / 32
    assert tuple(found.interval) == pytest.approx((7 / 32 - half, 7 / 32 + half, "items"))
    assert found.p == pytest.approx(2 * t.sf(7 / 32 / math.sqrt(one + other), freedom))


def test_auc_difference_agrees_with_a_bootstrap_of_many_clusters() -> None:
    a, b, groups = two_models(0, 80, 5, 0.5)
    found = auc_difference(a, b, member_clusters=groups, nonmember_clusters=groups)
    low, high = np.quantile(bootstrapped(a, b, groups, 4000), [0.025, 0.975])
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert found.interval.covers == "clusters"
    # Rows by themselves and models apart have other spreads.
    width = high - low
    alone = auc_difference(a, b).interval
    apart = np.hypot(*(np.ptp(auc_interval(*one, member_clusters=groups, nonmember_clusters=groups)[:2]) for one in (a, b)))
    assert alone.high - alone.low < 0.85 * width
    assert apart > 1.2 * width


def test_auc_difference_covers_with_few_clusters_where_a_bootstrap_does_not() -> None:
    truth, hits = float(norm.cdf(0.5 / np.sqrt(2))) - 0.5, np.zeros(2)
    for seed in range(300):
        a, b, groups = two_models(seed, 4, 10, 0.5)
        found = auc_difference(a, b, member_clusters=groups, nonmember_clusters=groups).interval
        low, high = np.quantile(bootstrapped(a, b, groups, 300), [0.025, 0.975])
        hits += found.low <= truth <= found.high, low <= truth <= high
    assert hits[0] / 300 > 0.92
    assert hits[1] / 300 < 0.88


def test_auc_difference_without_variance() -> None:
    same = ([1.0, 2.0, 3.0], [0.0, 1.5])
    found = auc_difference(same, same)
    assert (found.difference, found.interval.low, found.interval.high, found.p) == (0, 0, 0, 1)
    # Both tell all rows apart: another pair may still be told apart by one alone.
    high, higher, low = np.arange(10.0) + 100, np.arange(10.0) + 200, np.arange(20.0)
    far = binomtest(0, 10).proportion_ci(method="exact").high
    found = auc_difference((high, low), (higher, low))
    assert tuple(found.interval)[:2] == pytest.approx((-far, far))
    assert found.p == 1
    # One tells all apart and the other all the wrong way round.
    found = auc_difference((high, low), (low[:10], np.arange(20.0) + 100), member_clusters=[0, 0, *range(1, 9)])
    nine = binomtest(0, 9).proportion_ci(method="exact").high
    assert tuple(found.interval) == pytest.approx((1 - 2 * nine, 1, "clusters"))
    assert found.p == pytest.approx(2 * 0.5**9)


def test_auc_difference_refuses_other_rows() -> None:
    with pytest.raises(ValueError, match="a has 2 members and 3 non-members, b 3 and 3; both need the same rows"):
        auc_difference(([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 2, 3]))
    with pytest.raises(ValueError, match="members lie in 1 cluster"):
        auc_difference(([1, 2], [1, 2]), ([1, 2], [1, 2]), member_clusters=[0, 0])
    with pytest.raises(ValueError, match="level"):
        auc_difference(([1, 2], [1, 2]), ([1, 2], [1, 2]), level=1.0)
