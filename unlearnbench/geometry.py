"""How the geometries of two representations of the same rows differ: shape, order of distances, main directions, sensitivity of weights.

Beside `similarity`, whose CKA a single feature of very large variance decides: Procrustes distance (Williams, Kunz, Kornblith, Linderman
2021, arXiv 2110.14739), representational similarity analysis (Kriegeskorte, Mur, Bandettini 2008, Frontiers in Systems Neuroscience 2:4),
shift and turn of principal directions and overlap of diagonal Fisher information, which Xu et al. 2025 (arXiv 2505.16831) ask of unlearned
models, and CKA of more rows than one Gram matrix holds. Knows arrays in numpy; no model.

Deviations from the code of arXiv 2505.16831: which tokens stand for a row is the evidence's matter (there the first token alone, or a
mean that counts padding); the cosine of two first components has no sign, since components have none; Fisher information squares the
gradients of examples, not those of batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlearnbench.similarity import centred_gram, hsic_1

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]


def _centred(X: Floats) -> Doubles:
    """Features less their mean, in float64.

    Raises:
        ValueError: a feature is not finite, or the features do not vary over rows.
    """
    if not np.isfinite(X).all():
        raise ValueError("a feature is NaN or infinite")
    wide = X.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    # What varies by less than float32 resolves is rounding noise, not a representation.
    if np.linalg.norm(centred) <= np.finfo(np.float32).eps * np.linalg.norm(wide):
        raise ValueError(f"the features of all {len(X)} rows are the same: they have no shape and no direction")
    return np.asarray(centred)


def _same_rows(X: Floats, Y: Floats) -> None:
    if len(X) != len(Y):
        raise ValueError(f"features of {len(X)} and of {len(Y)} rows; allowed: the same rows")


def minibatch_cka(batches: Iterable[tuple[Floats, Floats]]) -> float:
    """Unbiased linear CKA over batches: each of the three HSIC_1 is summed over batches before the ratio is taken.

    A mean of the batches' own values would be biased, the more the smaller they are. Nguyen, Raghu, Kornblith 2021, arXiv 2010.15327.

    Args:
        batches: pairs of features of the same rows, [n, width] and [n, another width], with 4 or more rows each.

    Raises:
        ValueError: see `similarity.unbiased_cka`; or there is no batch.
    """
    sums = np.zeros(3)
    for X, Y in batches:
        _same_rows(X, Y)
        K, L = centred_gram(X), centred_gram(Y)
        sums += np.array([hsic_1(K, L), hsic_1(K, K), hsic_1(L, L)])
    if not sums[1] * sums[2] > 0:
        raise ValueError(f"sums of HSIC_1 over batches are {sums.tolist()}; the last two must be positive")
    return float(sums[0] / np.sqrt(sums[1] * sums[2]))


def procrustes_distance(X: Floats, Y: Floats) -> float:
    """Distance of two shapes: sqrt(2 - 2 |X'Y|_*) of centred features scaled to Frobenius norm 1, with |.|_* the nuclear norm.

    It is min |X - Y Q| over rotations and reflections Q (the narrower side padded with zeros): 0 for one shape, sqrt(2) at most.
    Invariant to rotation, isotropic scaling and shift of either side, and a metric between shapes.

    Args:
        X: features [n, width].
        Y: features of the same rows in the same order [n, another width].

    Raises:
        ValueError: other numbers of rows, a feature that is not finite, or features that do not vary over rows.

    >>> X = np.array([[0.0, 1.0], [2.0, 0.0], [3.0, 5.0]])
    >>> round(procrustes_distance(X, 3 * X[:, ::-1] + 7), 6)
    0.0
    """
    _same_rows(X, Y)
    ours, theirs = (_compact(side / np.linalg.norm(side)) for side in (_centred(X), _centred(Y)))
    return float(np.sqrt(max(2 - 2 * float(np.linalg.norm(ours.T @ theirs, "nuc")), 0.0)))


def _compact(X: Doubles) -> Doubles:
    """The same rows in the coordinates of a basis of their span, where they have more features than there are rows."""
    return X if X.shape[1] <= len(X) else np.asarray(np.linalg.qr(X.T)[1].T)


def rsa(X: Floats, Y: Floats) -> float:
    """Representational similarity analysis: Spearman's correlation of the two sides' dissimilarities 1 - r of all pairs of rows.

    r is the correlation of two rows over features. Any rising function of one side's dissimilarities changes nothing; a rotation may.

    Args:
        X: features [n, width], width 2 or more.
        Y: features of the same rows in the same order [n, another width].

    Raises:
        ValueError: other numbers of rows, fewer than 3, a feature that is not finite, a row whose features are all equal, or
            dissimilarities that are all equal.

    >>> X = np.array([[1.0, 2.0, 4.0], [2.0, 2.0, 3.0], [4.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    >>> round(rsa(X, 5 * X + 1), 6)
    1.0
    """
    _same_rows(X, Y)
    if len(X) < 3:
        raise ValueError(f"{len(X)} rows have {len(X) * (len(X) - 1) // 2} dissimilarities to correlate; allowed: 3 rows or more")
    ours, theirs = (_ranks(_dissimilarities(side)) for side in (X, Y))
    if not ours.std() or not theirs.std():
        raise ValueError("all pairs of rows are equally dissimilar, so that they have no order")
    return float(np.corrcoef(ours, theirs)[0, 1])


def _dissimilarities(X: Floats) -> Doubles:
    """1 - r of all pairs of rows [n (n - 1) / 2]."""
    if not np.isfinite(X).all():
        raise ValueError("a feature is NaN or infinite")
    wide = X.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    if (lengths <= np.finfo(np.float32).eps * np.linalg.norm(wide, axis=1, keepdims=True)).any():
        raise ValueError("a row's features are all equal, so that its correlation with others is undefined")
    unit = centred / lengths
    return np.asarray(1 - (unit @ unit.T)[np.triu_indices(len(X), 1)])


def _ranks(values: Doubles) -> Doubles:
    """Ranks from 0 on; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[group])


# ----------------------------------------------------------------------------------------------------------- principal directions


class Principal(NamedTuple):
    """Where features lie, and along what they vary most.

    mean: [width]. directions: orthonormal [k, width], the first has the largest variance; signs are arbitrary. spread: standard
    deviation along each [k], over n.
    """

    mean: Doubles
    directions: Doubles
    spread: Doubles


def principal(X: Floats, k: int) -> Principal:
    """The first k principal directions of features.

    Args:
        X: features [n, width].
        k: of the min(n - 1, width) directions that n rows can have.

    Raises:
        ValueError: another k, a feature that is not finite, or features that do not vary over rows.
    """
    most = min(len(X) - 1, X.shape[1])
    if not 1 <= k <= most:
        raise ValueError(f"k is {k}; allowed: 1 to {most}, the directions of {len(X)} rows with {X.shape[1]} features")
    _, scales, directions = np.linalg.svd(_centred(X), full_matrices=False)
    return Principal(X.astype(np.float64).mean(axis=0), directions[:k], scales[:k] / np.sqrt(len(X)))


def principal_shift(original: Floats, changed: Floats, k: int = 2) -> float:
    """How far the mean has moved within the original's first k principal directions, in standard deviations of the original there.

    |P (mean of changed - mean of original)| / sqrt(sum of the original's variances along P's directions). Directions come from the
    original alone: refitted to what changed, they would turn with it.

    Args:
        original: features [n, width].
        changed: features of the same coordinates [m, width].
        k: number of directions.

    Raises:
        ValueError: other widths, or see `principal`.

    >>> X = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    >>> principal_shift(X, X + np.array([3.0, 50.0]), k=1)  # along the first direction the deviation is 1
    3.0
    """
    _same_width(original, changed)
    if not np.isfinite(changed).all():
        raise ValueError("a feature is NaN or infinite")
    fitted = principal(original, k)
    moved = fitted.directions @ (changed.astype(np.float64).mean(axis=0) - fitted.mean)
    return float(np.linalg.norm(moved) / np.linalg.norm(fitted.spread))


def principal_cosine(X: Floats, Y: Floats) -> float:
    """Cosine of the angle between the first principal directions of two sets of features, from 0 to 1; signs do not matter.

    Args:
        X: features [n, width].
        Y: features of the same coordinates [m, width].

    Raises:
        ValueError: other widths, or see `principal`.
    """
    _same_width(X, Y)
    return float(min(abs(principal(X, 1).directions[0] @ principal(Y, 1).directions[0]), 1.0))


def _same_width(X: Floats, Y: Floats) -> None:
    if X.shape[1] != Y.shape[1]:
        raise ValueError(f"features of width {X.shape[1]} and {Y.shape[1]} have no directions in common; allowed: equal widths")


# ------------------------------------------------------------------------------------------------------------- Fisher information


def diagonal_fisher(gradients: Floats) -> Doubles:
    """Diagonal of the empirical Fisher information [weights]: the mean over examples of each squared gradient.

    Args:
        gradients: of each example's own loss [n, weights]; those of a batch's mean cancel before they are squared.
    """
    return np.asarray((gradients.astype(np.float64) ** 2).mean(axis=0))


def fisher_overlap(F: Floats, G: Floats) -> float:
    """Overlap of two diagonals, each scaled to sum 1: sum sqrt(f g), from 0 (no weight in common) to 1 (proportional).

    One minus half the squared Frechet distance of the normalised matrices: Kirkpatrick et al. 2017, Overcoming catastrophic forgetting
    in neural networks (arXiv 1612.00796), section 4.3.

    Args:
        F: diagonal of a Fisher information [weights].
        G: another of the same weights.

    Raises:
        ValueError: other shapes, an entry that is negative or not finite, or nothing but zeros.

    >>> round(fisher_overlap(np.array([1.0, 0.0, 3.0]), np.array([0.0, 5.0, 5.0])), 4)  # sqrt(3/4 * 1/2)
    0.6124
    """
    if F.shape != G.shape:
        raise ValueError(f"diagonals of shapes {F.shape} and {G.shape}; allowed: those of the same weights")
    for diagonal in (F, G):
        if not np.isfinite(diagonal).all() or (diagonal < 0).any() or not diagonal.any():
            raise ValueError("a diagonal of Fisher information has an entry that is negative or not finite, or is zero everywhere")
    ours, theirs = (diagonal.astype(np.float64) / diagonal.astype(np.float64).sum() for diagonal in (F, G))
    return float(min(np.sqrt(ours * theirs).sum(), 1.0))
