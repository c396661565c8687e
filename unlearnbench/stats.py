"""Statistics of the leaderboard: how well scores separate members, corrected p-values, means and rankings.

Knows arrays of numbers only: no model, no record, no file. Rates and AUCs are fractions in [0, 1]. Intervals of means
and gaps live in `intervals` and are offered here too, so that users need one import.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from unlearnbench.intervals import (
    MIN_SEEDS,
    FloatArray,
    Interval,
    PairedTest,
    finite_array,
    mean_interval,
    paired_difference,
    prediction_interval,
    tail_probability,
    tied,
)

__all__ = [
    "MIN_SEEDS",
    "Interval",
    "PairedTest",
    "auc",
    "auc_difference",
    "auc_interval",
    "harmonic_mean",
    "holm",
    "kendall_tau",
    "mean_interval",
    "paired_difference",
    "prediction_interval",
    "tied",
    "tpr_at_fpr",
    "tpr_supported",
]


def auc(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> float:
    """Probability that a member scores above a non-member, ties counted half (Mann and Whitney).

    Args:
        members: Scores of the members, shape [m]; higher means "more like a member".
        nonmembers: Scores of the non-members, shape [n].

    Returns:
        The area under the ROC curve, 0.5 for scores without information.

    Raises:
        ValueError: If either is empty, not one-dimensional or contains NaN.

    >>> auc([3.0, 2.0], [1.0, 2.0])
    0.875
    """
    return float(_placements(_scores("members", members), _scores("nonmembers", nonmembers)).mean())


def auc_interval(
    members: npt.ArrayLike,
    nonmembers: npt.ArrayLike,
    level: float = 0.95,
    *,
    member_clusters: Sequence[Hashable] | None = None,
    nonmember_clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Confidence interval of the AUC over new, independent members and non-members.

    DeLong, DeLong and Clarke-Pearson (1988), for clustered rows Obuchowski (1997, without her covariance of the two
    sides: no cluster here has rows on both), on the logit scale, which keeps the ends inside [0, 1], with Student's t and
    Satterthwaite's degrees of freedom, since a few authors on a side are common. At an AUC of
    exactly 0 or 1 that variance is 0 and says nothing; there the far end is Clopper and Pearson's for min(m, n)
    successes in as many trials, since that many disjoint member-nonmember pairs (of clusters, if there are any) are
    independent trials of probability AUC. If all scores are equal the interval is the point 0.5.

    Args:
        members: Scores of the members, shape [m], m >= 2.
        nonmembers: Scores of the non-members, shape [n], n >= 2.
        level: Confidence level.
        member_clusters: What each member belongs to; by default each row is its own.
        nonmember_clusters: What each non-member belongs to.

    Returns:
        The interval, covering clusters, or items where each row is its own.

    Raises:
        ValueError: As `auc`, or with fewer than two clusters on a side, clusters that do not fit the scores, or a level
            outside (0, 1).

    >>> low, high, _ = auc_interval([3, 4, 5, 6], [1, 2, 3.5, 2.5])
    >>> round(low, 3), round(high, 3)
    (0.272, 0.998)
    """
    tail = tail_probability(level)
    positive, negative = _scores("members", members, 2), _scores("nonmembers", nonmembers, 2)
    above, below = _placements(positive, negative), 1 - _placements(negative, positive)
    ours = _codes("members", member_clusters, len(above))
    theirs = _codes("nonmembers", nonmember_clusters, len(below))
    covers = "items" if ours.max() + 1 == len(above) and theirs.max() + 1 == len(below) else "clusters"
    area = float(above.mean())
    if area in (0.0, 1.0):
        far = tail ** (1 / (1 + min(int(ours.max()), int(theirs.max()))))
        return Interval(far, 1.0, covers) if area == 1.0 else Interval(0.0, 1 - far, covers)
    from scipy.special import expit, logit, stdtrit

    one, other = _clustered_variance(above, area, ours), _clustered_variance(below, area, theirs)
    if one + other == 0:
        return Interval(area, area, covers)
    freedom = (one + other) ** 2 / (one**2 / int(ours.max()) + other**2 / int(theirs.max()))
    half = -float(stdtrit(freedom, tail)) * float(np.sqrt(one + other)) / (area * (1 - area))
    return Interval(float(expit(logit(area) - half)), float(expit(logit(area) + half)), covers)


def auc_difference(
    a: tuple[npt.ArrayLike, npt.ArrayLike],
    b: tuple[npt.ArrayLike, npt.ArrayLike],
    level: float = 0.95,
    *,
    member_clusters: Sequence[Hashable] | None = None,
    nonmember_clusters: Sequence[Hashable] | None = None,
) -> PairedTest:
    """Difference of two models' AUCs on the same rows, such as an unlearned model's and an oracle's.

    DeLong, DeLong and Clarke-Pearson (1988) for correlated curves: what is averaged are the differences of a row's two
    placements. Clusters and degrees of freedom as in `auc_interval`: a bootstrap of clusters, which agrees with this where
    they are many, is far too narrow where they are few.
    Where no row's placement differs from the others' that variance is 0 and says nothing, unless all scores are the same:
    the interval then is Clopper and Pearson's for the chance that a pair of other rows departs from what
    min(m, n) disjoint pairs (of clusters, if there are any) have all shown.

    Args:
        a: Scores of the members [m] and of the non-members [n] by the first model.
        b: Scores of the same rows, in the same order, by the second.
        level: Confidence level.
        member_clusters: What each member belongs to; by default each row is its own.
        nonmember_clusters: What each non-member belongs to.

    Returns:
        The AUC of a minus that of b, in [-1, 1], its interval over clusters or items, and the p-value of "no difference".

    Raises:
        ValueError: As `auc_interval`, or if the models' scores differ in number.

    >>> found = auc_difference(([3, 4, 5, 6], [1, 2, 3.5, 2.5]), ([3, 1, 5, 6], [1, 2, 3.5, 2.5]))
    >>> round(found.difference, 5), round(found.interval.low, 3), round(found.interval.high, 3)
    (0.21875, -0.469, 0.907)
    """
    tail = tail_probability(level)
    (ours, theirs), (ours_b, theirs_b) = ((_scores("members", one, 2), _scores("nonmembers", other, 2)) for one, other in (a, b))
    if (len(ours), len(theirs)) != (len(ours_b), len(theirs_b)):
        raise ValueError(
            f"a has {len(ours)} members and {len(theirs)} non-members, b {len(ours_b)} and {len(theirs_b)}; both need the same rows"
        )
    above = _placements(ours, theirs) - _placements(ours_b, theirs_b)
    below = _placements(theirs_b, ours_b) - _placements(theirs, ours)
    groups = _codes("members", member_clusters, len(above)), _codes("nonmembers", nonmember_clusters, len(below))
    ends = [int(codes.max()) for codes in groups]
    covers = "items" if ends == [len(above) - 1, len(below) - 1] else "clusters"
    found = float(above.mean())
    one, other = _clustered_variance(above, found, groups[0]), _clustered_variance(below, found, groups[1])
    # A sum of squared rounding errors is no variance.
    if one + other < 1e-24:
        if np.array_equal(ours, ours_b) and np.array_equal(theirs, theirs_b):
            return PairedTest(0.0, Interval(0.0, 0.0, covers), 1.0)
        pairs = 1 + min(ends)
        far = 1 - tail ** (1 / pairs)
        return PairedTest(
            found, Interval(found - far * (1 + found), found + far * (1 - found), covers), min(1.0, 2 * (1 + abs(found)) ** -pairs)
        )
    from scipy.special import stdtr, stdtrit

    freedom = (one + other) ** 2 / (one**2 / ends[0] + other**2 / ends[1])
    error = float(np.sqrt(one + other))
    half = -float(stdtrit(freedom, tail)) * error
    return PairedTest(
        found, Interval(max(-1.0, found - half), min(1.0, found + half), covers), float(2 * stdtr(freedom, -abs(found) / error))
    )


def tpr_at_fpr(members: npt.ArrayLike, nonmembers: npt.ArrayLike, fpr: float) -> float:
    """Largest true-positive rate of a threshold whose false-positive rate is at most the target.

    A score counts as positive from the threshold up. Nothing is interpolated: the rate belongs to a threshold that
    exists.

    Args:
        members: Scores of the members, shape [m]; higher means "more like a member".
        nonmembers: Scores of the non-members, shape [n].
        fpr: The target, in [0, 1).

    Returns:
        The true-positive rate.

    Raises:
        ValueError: As `auc`, or if the target is outside [0, 1).

    >>> tpr_at_fpr([5.0, 3.0, 1.0, 4.0], [0.0, 2.0, 3.0, 2.5], fpr=0.25)
    0.75
    >>> tpr_at_fpr([5.0, 3.0, 1.0, 4.0], [0.0, 2.0, 3.0, 2.5], fpr=0.2)
    0.5
    """
    positive, negative = _scores("members", members), _scores("nonmembers", nonmembers)
    allowed = _false_positives(len(negative), fpr)
    # The first non-member that must not be flagged: everything strictly above it may be.
    return float(np.mean(positive > np.sort(negative)[::-1][allowed]))


def tpr_supported(n_nonmembers: int, fpr: float) -> str | None:
    """Say whether a sample is large enough for a TPR at this FPR to mean something.

    The rule: at least one non-member may lie above the threshold (n * fpr >= 1), and had exactly n * fpr of them done
    so, the upper end of the FPR's 95 % Clopper-Pearson interval would be at most 3 times the target. So 1 % needs 279
    non-members and 0.1 % needs 2,839; with 100 the 1 % threshold rests on one score, and the true FPR may be 5.4 %.
    n * fpr is not rounded in that bound, so that a larger sample never loses its support.

    Args:
        n_nonmembers: Number of non-members.
        fpr: The target, in [0, 1).

    Returns:
        None if the sample supports it, else the reason why not.

    Raises:
        ValueError: If the target is outside [0, 1) or the number is negative.

    >>> tpr_supported(400, 0.01) is None
    True
    >>> tpr_supported(100, 0.01)
    'FPR 1% on 100 non-members rests on 1 of them: it may be 5.4%, more than 3 times the target'
    """
    if n_nonmembers < 0:
        raise ValueError(f"n_nonmembers is {n_nonmembers}; it must be at least 0")
    allowed = _false_positives(n_nonmembers, fpr)
    if allowed == 0:
        return f"FPR {fpr:.3g} needs at least one of the non-members above the threshold; {n_nonmembers} are too few"
    from scipy.special import betaincinv

    upper = float(betaincinv(n_nonmembers * fpr + 1, n_nonmembers * (1 - fpr), 0.975))
    if upper <= 3 * fpr:
        return None
    return (
        f"FPR {100 * fpr:.3g}% on {n_nonmembers} non-members rests on {allowed} of them: "
        f"it may be {100 * upper:.2g}%, more than 3 times the target"
    )


def holm(pvalues: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by Holm's step-down method (1979).

    Args:
        pvalues: The p-values of one family of tests, each in [0, 1].

    Returns:
        Adjusted p-values in the same order; rejecting those at most alpha keeps the family-wise error at alpha.

    Raises:
        ValueError: If a p-value is NaN or outside [0, 1].

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if bad := [p for p in pvalues if not 0 <= p <= 1]:
        raise ValueError(f"p-value {bad[0]}; a p-value lies in [0, 1]")
    adjusted, running = [0.0] * len(pvalues), 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        running = max(running, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = running
    return adjusted


def harmonic_mean(values: npt.ArrayLike) -> float:
    """Harmonic mean; 0 as soon as one value is 0, NaN as soon as one is NaN.

    Args:
        values: Non-negative finite numbers, shape [n].

    Returns:
        n / sum(1 / value).

    Raises:
        ValueError: If there are none, or one is negative or infinite.

    >>> harmonic_mean([1.0, 0.5])
    0.6666666666666666
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"values has shape {array.shape}; it must be one-dimensional and not empty")
    if bad := array[(array < 0) | np.isinf(array)].tolist():
        raise ValueError(f"values contains {bad[0]}; a harmonic mean needs finite values of at least 0")
    lowest = float(array.min())  # NaN if any is
    if lowest == 0:
        return 0.0
    return lowest * len(array) / float(np.sum(lowest / array))  # scaled, so that 1 / value cannot overflow


def kendall_tau(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Kendall's rank correlation tau-b of two rankings of the same things.

    Args:
        a: First scores, shape [n], n >= 2.
        b: Second scores, shape [n].

    Returns:
        A number in [-1, 1]; NaN if either is constant, as no order can be compared.

    Raises:
        ValueError: If lengths differ, fewer than two are given, or a score is not finite.

    >>> round(kendall_tau([1, 2, 3, 4], [2, 1, 4, 3]), 3)
    0.333
    """
    first, second = finite_array("a", a, 1), finite_array("b", b, 1)
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"a has {len(first)} scores and b {len(second)}; both need the same number, at least 2")
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic)


def _placements(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """Share of their scores that each of ours exceeds, ties counted half."""
    ordered = np.sort(theirs)
    below, up_to = np.searchsorted(ordered, ours, "left"), np.searchsorted(ordered, ours, "right")
    return (below + up_to) / (2 * len(ordered))


def _codes(name: str, clusters: Sequence[Hashable] | None, n: int) -> npt.NDArray[np.int64]:
    """The number of each row's cluster, from 0 on."""
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"{name} have {n} scores but {len(clusters)} clusters")
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    if len(numbers) < 2:
        raise ValueError(f"{name} lie in {len(numbers)} cluster; an interval needs at least 2")
    return np.array([numbers[cluster] for cluster in clusters])


def _clustered_variance(placements: FloatArray, area: float, codes: npt.NDArray[np.int64]) -> float:
    """Variance of the mean placement [n], its rows grouped by `codes` [n]; var(ddof=1) / n where each row is alone."""
    count = int(codes.max()) + 1
    sums = np.bincount(codes, weights=placements - area)
    return count / (count - 1) * float((sums**2).sum()) / len(placements) ** 2


def _false_positives(n: int, fpr: float) -> int:
    """Largest k with k / n <= fpr, exact where n * fpr is off by a rounding."""
    if not 0 <= fpr < 1:
        raise ValueError(f"fpr is {fpr}; it must lie in [0, 1)")
    k = int(n * fpr) + 1
    return k if n and k / n <= fpr else k - 1


def _scores(name: str, scores: npt.ArrayLike, least: int = 1) -> FloatArray:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise ValueError(f"{name} has shape {array.shape}; it must be one-dimensional with at least {least} score(s)")
    if np.isnan(array).any():
        raise ValueError(f"{name} contains NaN at position {int(np.isnan(array).argmax())}")
    return array
