"""Intervals of gaps and means, and the paired test that goes with them.

Knows arrays of values only: no model, no record, no file. A level of 0.95 means 95 %. Every interval says what it
covers, because each answers another question: where one more oracle would fall, where the mean over new seeds and
clusters lies, or the same for new items alone. `benchmarks/coverage.py` prints how often each holds the truth.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Clusters = Sequence[Hashable] | npt.NDArray[Any]

MIN_SEEDS = 5
"""From this many seeds on a mean's interval covers seeds; a spread estimated from fewer is too uncertain."""


class Interval(NamedTuple):
    """A confidence or prediction interval.

    Attributes:
        low: Lower end, in the units of the value.
        high: Upper end.
        covers: What was treated as random: "oracles", "seeds and clusters", "clusters" (of items) or "items".
    """

    low: float
    high: float
    covers: str


class PairedTest(NamedTuple):
    """Comparison of two methods on the same seeds and items.

    Attributes:
        difference: Mean of the first minus mean of the second.
        interval: Confidence interval of the difference.
        p: Two-sided p-value of "no difference", from the same t statistic as the interval.
    """

    difference: float
    interval: Interval
    p: float


class _Mean(NamedTuple):
    value: float
    error: float  # standard error
    df: float  # Satterthwaite's degrees of freedom; meaningless where the error is 0
    covers: str


def prediction_interval(value: float, pool: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Interval of the gap between a value and a pool of oracles.

    The gap is value - mean(pool). Around it lies t_{n-1} * s * sqrt(1 + 1/n), with s the pool's standard deviation: if
    the value were one more oracle, the interval would hold 0 with probability `level` (for normal spread).

    Args:
        value: The method's value.
        pool: The oracles' values, shape [n], n >= 2; the value judged is not among them.
        level: Confidence level.

    Returns:
        The interval. If all oracles agree it is the point of the gap, so that only a value equal to theirs is tied.

    Raises:
        ValueError: With fewer than two oracles, a value that is not finite, or a level outside (0, 1).

    >>> low, high, _ = prediction_interval(0.5, [0.1, 0.2, 0.3, 0.2])
    >>> round(low, 3), round(high, 3)
    (0.009, 0.591)
    """
    oracles = finite_array("pool", pool, 1)
    if len(oracles) < 2:
        raise ValueError(f"pool has {len(oracles)} value(s); a spread needs at least 2 oracles")
    if not np.isfinite(value):
        raise ValueError(f"value is {value}; it must be finite")
    # Measured from the first oracle, so that oracles that agree have a spread of exactly 0 and exactly their mean.
    shifted = oracles - oracles[0]
    gap = float(value - oracles[0] - shifted.mean())
    half = _t_quantile(len(oracles) - 1, level) * float(shifted.std(ddof=1)) * math.sqrt(1 + 1 / len(oracles))
    return Interval(gap - half, gap + half, "oracles")


def tied(interval: Interval) -> bool:
    """Whether an interval of a gap or difference contains 0, its ends included.

    >>> tied(Interval(-0.1, 0.2, "oracles")), tied(Interval(0.1, 0.2, "oracles"))
    (True, False)
    """
    return interval.low <= 0 <= interval.high


def mean_interval(values: npt.ArrayLike, clusters: Clusters, level: float = 0.95) -> Interval:
    """Confidence interval of the mean over seeds and items.

    From `MIN_SEEDS` seeds on, seeds and clusters are crossed random effects: each seed meets each cluster, and items
    lie in clusters. The variance of the mean is V_seed + V_cluster - V_interaction, each the mean square of its effect
    over the number of values, and the interval is t with Satterthwaite's degrees of freedom. With fewer seeds only
    V_cluster is used, and the interval holds for these seeds. Clusters of different sizes are weighted by size, as in
    the mean; their mean squares are corrected, as CR2 does (Bell and McCaffrey 2002), for a working model with a
    variance of clusters and one of items in them, both estimated.

    Args:
        values: Shape [seeds, items], every seed over the same items.
        clusters: Cluster label of each item, length items; a label each means independent items.
        level: Confidence level.

    Returns:
        The interval around the mean of all values; it collapses to a point if nothing varies. `covers` is "seeds and
        clusters" from `MIN_SEEDS` seeds on, else "clusters", or "items" where each item is its own cluster.

    Raises:
        ValueError: If the shapes disagree, a value is not finite, there are fewer than two clusters, or the level is
            outside (0, 1).

    >>> low, high, covers = mean_interval([[0.0, 1.0, 0.0, 1.0]], ["a", "a", "b", "c"])
    >>> round(low, 3), round(high, 3), covers
    (-0.479, 1.479, 'clusters')
    """
    return _t_interval(_crossed_mean(values, clusters), level)


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, clusters: Clusters, level: float = 0.95) -> PairedTest:
    """Compare two methods item by item and seed by seed.

    Args:
        a: Values of the first method, shape [seeds, items].
        b: Values of the second, of the same seeds and items.
        clusters: Cluster label of each item, length items.
        level: Confidence level of the interval.

    Returns:
        The mean of a - b, its interval (see `mean_interval`) and p-value. If every difference is the same, p is 1 for a
        difference of 0, else 0.

    Raises:
        ValueError: If the shapes differ, or as `mean_interval`.

    >>> paired_difference([[1.0, 2.0, 4.0]], [[0.0, 0.0, 1.0]], [0, 1, 2]).difference
    2.0
    """
    first, second = finite_array("a", a, 2), finite_array("b", b, 2)
    if first.shape != second.shape:
        raise ValueError(f"a has shape {first.shape} and b {second.shape}; both need the same seeds and items")
    mean = _crossed_mean(first - second, clusters)
    interval = _t_interval(mean, level)
    if mean.error == 0:
        return PairedTest(mean.value, interval, float(mean.value == 0))
    from scipy.special import stdtr

    return PairedTest(mean.value, interval, float(2 * stdtr(mean.df, -abs(mean.value / mean.error))))


def _crossed_mean(values: npt.ArrayLike, clusters: Clusters) -> _Mean:
    array = finite_array("values", values, 2)
    seeds, items = array.shape
    if not seeds or len(clusters) != items:
        raise ValueError(
            f"values has shape {array.shape} and clusters length {len(clusters)}; they must be [seeds, items] and one label per item"
        )
    index = {label: position for position, label in enumerate(dict.fromkeys(clusters))}
    if len(index) < 2:
        raise ValueError(f"clusters holds {len(index)} distinct label(s); an interval needs at least 2")
    codes = np.array([index[label] for label in clusters])
    sizes = np.bincount(codes).astype(np.float64)
    weights = sizes / items

    # From the first value and in units of the largest deviation: equal values have a variance of exactly 0, and tiny or
    # huge ones do not leave the range of floats when squared twice.
    shifted = array - array[0, 0]
    unit = float(np.abs(shifted).max()) or 1.0
    shifted = shifted / unit
    cells = np.stack([np.bincount(codes, row) for row in shifted]) / sizes  # [seeds, clusters]
    by_seed, by_cluster = cells @ weights, cells.mean(axis=0)
    mean = float(by_seed.mean())
    working = _working_variances(shifted.mean(axis=0), codes, sizes)
    scale, df_cluster = _cluster_correction(weights, working)

    cluster = float(scale @ (by_cluster - mean) ** 2)
    if seeds < MIN_SEEDS:
        covers = "items" if len(index) == items else "clusters"
        return _Mean(unit * mean + float(array[0, 0]), unit * math.sqrt(cluster), df_cluster, covers)
    seed = float(by_seed.var(ddof=1)) / seeds
    residual = cells - by_cluster - (by_seed - mean)[:, None]
    interaction = float((residual**2 @ scale).sum()) / (seeds * (seeds - 1))
    # An effect's mean square holds the interaction too; one below it carries no effect of its own and counts as equal.
    variance = max(seed, interaction) + max(cluster, interaction) - interaction
    share = 1 - (seed > interaction) - (cluster > interaction)  # the factor the interaction keeps in that sum
    spread = (
        (seed > interaction) * seed**2 / (seeds - 1)
        + (cluster > interaction) * cluster**2 / df_cluster
        + share**2 * interaction**2 / ((seeds - 1) * df_cluster)
    )
    df = variance**2 / spread if spread else 1.0
    return _Mean(unit * mean + float(array[0, 0]), unit * math.sqrt(variance), df, "seeds and clusters")


def _working_variances(values: FloatArray, codes: npt.NDArray[np.int64], sizes: FloatArray) -> FloatArray:
    """Variances of the cluster means by analysis of variance: that of clusters plus that of items / size."""
    clusters, items = len(sizes), len(values)
    if clusters == items:
        return np.ones(clusters)
    means = np.bincount(codes, values) / sizes
    within = float(((values - means[codes]) ** 2).sum()) / (items - clusters)
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (clusters - 1)
    typical = (items - float((sizes**2).sum()) / items) / (clusters - 1)
    variances = max(0.0, (between - within) / typical) + within / sizes
    return variances if variances.any() else np.ones(clusters)


def _cluster_correction(weights: FloatArray, variances: FloatArray) -> tuple[FloatArray, float]:
    """Factors that make sum(factor * (cluster mean - mean)^2) unbiased, and that sum's degrees of freedom.

    With variances v and weights w of the clusters, the mean has variance V = sum(w^2 v), a squared deviation expects
    (1 - 2 w_c) v_c + V, and deviations of clusters c, d covary by g_c + g_d, where g = V / 2 - w v; hence the double
    sum in Satterthwaite's formula, 2 E^2 / Var, splits into single sums.
    """
    total = float((weights**2 * variances).sum())
    expected = (1 - 2 * weights) * variances + total
    factors = weights**2 * variances / expected
    g = total / 2 - weights * variances
    squares = 2 * factors.sum() * (factors @ g**2) + 2 * (factors @ g) ** 2 + factors**2 @ (expected**2 - 4 * g**2)
    return factors, total**2 / float(squares)


def _t_interval(mean: _Mean, level: float) -> Interval:
    half = _t_quantile(mean.df, level) * mean.error
    return Interval(mean.value - half, mean.value + half, mean.covers)


def _t_quantile(df: float, level: float) -> float:
    tail = tail_probability(level)
    from scipy.special import stdtrit

    return -float(stdtrit(df, tail))


def tail_probability(level: float) -> float:
    """Probability beyond each end of a two-sided interval; an error for a level outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie in (0, 1), such as 0.95")
    return (1 - level) / 2


def finite_array(name: str, values: npt.ArrayLike, ndim: int) -> FloatArray:
    """The values as an array of `ndim` dimensions; an error naming the first value that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}; it must have {ndim} dimension(s)")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains {array[~np.isfinite(array)][0]}; every value must be finite")
    return array
