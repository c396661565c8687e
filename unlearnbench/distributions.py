"""How far two samples of one number lie apart: how a row's margin is spread over unlearned models, and over oracles.

KLOM is that of Georgiev, Rinberg, Park, Garg, Ilyas, Madry, Neel 2024, Attribute-to-Delete (arXiv 2410.23232); epsilon that of the first
NeurIPS unlearning competition (Triantafillou et al. 2024, arXiv 2406.09073; its rule for empty rates and its bins are recalled, not read).
Knows arrays of numbers, and no model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]

SMALLEST_STD = 1e-8
"""Standard deviation that a Gaussian is given at least: models that agree to the last digit still have a density."""


def klom(unlearned: Floats, oracles: Floats, *, bins: int = 20, eps: float = 1e-5, clip: float = 100.0) -> Doubles:
    """KL divergence (unlearned || oracles) of the binned values of each column [points], in nats.

    Both sides are clipped to [-clip, clip] and counted in `bins` bins of equal width from the smallest to the largest value of the two
    together, the last bin with its right edge. Where there are unlearned models in a bin, the oracles' share counts as eps at least. 0
    for equal samples; never more than ln(1 / eps); not symmetric. It has a noise floor: two samples of the same distribution give 0.33 in
    the mean with 100 models a side, 3.0 with 20.

    Args:
        unlearned: one value per unlearned model and point [models, points].
        oracles: one value per oracle and point [as many models, points].
        bins: their number.
        eps: the oracles' smallest share.
        clip: the largest absolute value.

    Raises:
        ValueError: the shapes differ, there is no model, or a value is NaN.

    >>> both = np.array([[0.0], [0.0], [1.0], [1.0]])
    >>> klom(both, np.array([[0.0], [1.0], [1.0], [1.0]])).round(4).tolist()  # 1/2 ln(2/1) + 1/2 ln(2/3)
    [0.1438]
    """
    if unlearned.ndim != 2 or unlearned.shape != oracles.shape or not len(oracles):
        raise ValueError(
            f"values have shapes {unlearned.shape} and {oracles.shape}; allowed: [models, points], as many models on both sides"
        )
    if np.isnan(unlearned).any() or np.isnan(oracles).any():
        raise ValueError("a value is NaN")
    p = binned(unlearned, oracles, bins=bins, clip=clip)
    q = binned(oracles, unlearned, bins=bins, clip=clip)
    share = np.where(p > 0, p, 1.0)
    return np.asarray((p * np.log(share / np.maximum(q, eps))).sum(axis=1))


def binned(values: Floats, others: Floats, *, bins: int, clip: float) -> Doubles:
    """Share of each column's values in each bin [points, bins]; the bins span the values and the others, clipped.

    Args:
        values: [models, points].
        others: [other models, points].
        bins: number of bins of equal width; the last holds its right edge.
        clip: the largest absolute value.
    """
    ours, theirs = np.clip(values.astype(np.float64), -clip, clip), np.clip(others.astype(np.float64), -clip, clip)
    low, high = np.minimum(ours.min(axis=0), theirs.min(axis=0)), np.maximum(ours.max(axis=0), theirs.max(axis=0))
    counts = [np.histogram(column, bins, (a, b))[0] for column, a, b in zip(ours.T, low, high, strict=True)]
    return np.asarray(counts, dtype=np.float64).reshape(len(counts), bins) / len(ours)


def one_sided_epsilon(fpr: Floats, fnr: Floats, delta: float) -> Doubles:
    """ln((1 - delta - fpr) / fnr), elementwise: what one of the two conditions of (epsilon, delta)-indistinguishability asks for.

    Args:
        fpr: false-positive rates, below 1 - delta.
        fnr: false-negative rates, above 0.
        delta: in [0, 1).

    >>> one_sided_epsilon(np.array([0.1, 0.5]), np.array([0.2, 0.5]), 0.0).round(4).tolist()  # ln 4.5, ln 1
    [1.5041, 0.0]
    """
    return np.asarray(np.log((1 - delta - fpr) / fnr))


def epsilon(fpr: Floats, fnr: Floats, delta: float) -> Doubles:
    """The epsilon of (epsilon, delta)-indistinguishability that attacks of these rates prove at least, elementwise, at least 0.

    max(ln((1 - delta - fpr) / fnr), ln((1 - delta - fnr) / fpr)). Infinite where an attack is never wrong. An attack of which one rate
    alone is 0 proves nothing by a finite sample, and one with a rate of 1 - delta or more nothing at all: both give 0.

    Args:
        fpr: false-positive rates.
        fnr: false-negative rates, of the same shape.
        delta: in [0, 1).

    >>> epsilon(np.array([0.1, 0.5, 0.0, 0.0]), np.array([0.2, 0.5, 0.0, 0.3]), 0.0).round(4).tolist()  # ln 8, none, all, unproved
    [2.0794, 0.0, inf, 0.0]
    """
    usable = (np.minimum(fpr, fnr) > 0) & (np.maximum(fpr, fnr) < 1 - delta)
    a, b = np.where(usable, fpr, 0.25), np.where(usable, fnr, 0.25)
    found = np.maximum(np.maximum(one_sided_epsilon(a, b, delta), one_sided_epsilon(b, a, delta)), 0.0)
    perfect = (np.asarray(fpr) == 0) & (np.asarray(fnr) == 0)
    return np.where(perfect, np.inf, np.where(usable, found, 0.0))


def threshold_rates(unlearned: Floats, oracles: Floats, thresholds: Floats) -> tuple[Doubles, Doubles]:
    """False-positive and false-negative rates of attacks that call a value above a threshold unlearned, each [thresholds].

    Args:
        unlearned: values of unlearned models [n].
        oracles: values of oracles [m].
        thresholds: a value that equals one counts as below.

    >>> threshold_rates(np.array([1.0, 2.0]), np.array([0.0, 1.5]), np.array([0.5, 1.5]))
    (array([0.5, 0. ]), array([0. , 0.5]))
    """
    above = 1 - np.searchsorted(np.sort(oracles), thresholds, "right") / len(oracles)
    below = np.searchsorted(np.sort(unlearned), thresholds, "right") / len(unlearned)
    return np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)


def largest_epsilon(unlearned: Floats, oracles: Floats, delta: float) -> float:
    """The largest epsilon that a single threshold proves, at any place and in both directions; infinite where one is never wrong.

    Args:
        unlearned: values of unlearned models [n].
        oracles: values of oracles [m].
        delta: in [0, 1).

    >>> round(largest_epsilon(np.array([1.0, 3.0, 4.0]), np.array([0.0, 2.0, 3.5]), 0.0), 4)  # above 0: fpr 2/3; above 2: 1/3 and 1/3
    0.6931
    """
    fpr, fnr = threshold_rates(unlearned, oracles, np.unique(np.concatenate([unlearned, oracles])))
    return float(max(epsilon(fpr, fnr, delta).max(), epsilon(1 - fpr, 1 - fnr, delta).max()))


def forgetting_score(epsilons: Floats, *, width: float = 0.5, bins: int = 13) -> Doubles:
    """The competition's score of each example: 2 / 2^n for an epsilon in bin n = 1, 2, ...: 1 below `width`, halved by each further bin.

    Args:
        epsilons: at least 0, possibly infinite.
        width: of a bin.
        bins: their number; the last is open.

    >>> forgetting_score(np.array([0.0, 0.49, 0.5, 1.7, np.inf])).tolist()
    [1.0, 1.0, 0.5, 0.125, 0.000244140625]
    """
    number = 1 + np.minimum(np.floor(np.minimum(epsilons, width * bins) / width), bins - 1)
    return np.asarray(2.0 / 2.0**number)


def gaussian_log_density(values: Floats, samples: Floats, *, ddof: int = 1) -> Doubles:
    """Log-density of each value under the Gaussian fitted to its column [points].

    Args:
        values: one per point [points].
        samples: [models, points], at least 1 + ddof models.
        ddof: 1 for the unbiased variance, 0 for the maximum-likelihood one.

    Raises:
        ValueError: too few samples.

    >>> gaussian_log_density(np.array([1.0]), np.array([[0.0], [1.0], [2.0]])).round(4).tolist()  # - log sqrt(2 pi)
    [-0.9189]
    """
    if len(samples) <= ddof:
        raise ValueError(f"{len(samples)} samples; a Gaussian's spread takes {ddof + 1} or more")
    wide = samples.astype(np.float64)
    spread = np.maximum(wide.std(axis=0, ddof=ddof), SMALLEST_STD)
    away = (values - wide.mean(axis=0)) / spread
    return np.asarray(-(away**2) / 2 - np.log(spread) - np.log(2 * np.pi) / 2)


def kernel_log_density(values: Floats, samples: Floats, *, bandwidth: float = 1.0) -> Doubles:
    """Log-density of each value under a Gaussian kernel estimate from its column [points].

    Args:
        values: one per point [points].
        samples: [models, points], at least one model.
        bandwidth: standard deviation of the kernel, in the values' unit.

    >>> kernel_log_density(np.array([0.0]), np.array([[-1.0], [1.0]])).round(4).tolist()  # - 1/2 - log sqrt(2 pi)
    [-1.4189]
    """
    from scipy.special import logsumexp

    away = (samples.astype(np.float64) - values) / bandwidth
    return np.asarray(logsumexp(-(away**2) / 2, axis=0) - np.log(len(samples) * bandwidth) - np.log(2 * np.pi) / 2)
