"""How alike two representations of the same rows are, and how well rows of one class lie together.

Knows feature matrices [rows, width] in numpy; no model. The CKA family is that of Kornblith, Norouzi, Lee, Hinton 2019, Similarity of
Neural Network Representations Revisited (arXiv 1905.00414), its unbiased estimator HSIC_1 that of Song et al. 2012 (JMLR 13), as Nguyen
et al. 2021 (arXiv 2010.15327) use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

MIN_ROWS = 4
"""HSIC_1 divides by n (n - 3)."""


# ------------------------------------------------------------------------------------------------------------------------ kernels


def centred_gram(X: Floats) -> Doubles:
    """Gram matrix of the centred features [n, n], in float64.

    HSIC sees no shift of features; float64 does, when they have a large mean.

    Args:
        X: features [n, width].

    Raises:
        ValueError: a feature is not finite, or the features do not vary over rows.
    """
    if not np.isfinite(X).all():
        raise ValueError("a feature is NaN or infinite")
    wide = X.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    # What varies by less than float32 resolves is rounding noise, not a representation.
    if np.linalg.norm(centred) <= np.finfo(np.float32).eps * np.linalg.norm(wide):
        raise ValueError(f"the features of all {len(X)} rows are the same, so that their similarity to others is undefined")
    return np.asarray(centred @ centred.T)


def rbf_gram(X: Floats, bandwidth: float) -> Doubles:
    """Gaussian kernel exp(-|x - y|^2 / (2 bandwidth^2)) of all pairs of rows [n, n].

    Args:
        X: features [n, width].
        bandwidth: in the features' unit.

    >>> rbf_gram(np.array([[0.0], [2.0]]), 1.0).round(4).tolist()  # e^-2
    [[1.0, 0.1353], [0.1353, 1.0]]
    """
    return np.exp(-squared_distances(X) / (2 * bandwidth**2))


def squared_distances(X: Floats) -> Doubles:
    """Squared Euclidean distances of all pairs of rows [n, n], in float64."""
    wide = X.astype(np.float64)
    wide = wide - wide.mean(axis=0)
    norms = (wide**2).sum(axis=1)
    found = np.maximum(norms[:, None] + norms[None, :] - 2 * wide @ wide.T, 0.0)
    np.fill_diagonal(found, 0.0)
    return np.asarray(found)


# --------------------------------------------------------------------------------------------------------------------------- HSIC


def hsic_0(K: Floats, L: Floats) -> float:
    """Biased estimator of the Hilbert-Schmidt independence criterion: tr(K H L H) / (n - 1)^2 with H = I - 1 1' / n.

    Args:
        K: symmetric Gram matrix [n, n].
        L: Gram matrix of the same rows [n, n].

    >>> K = np.array([[1.0, -1.0], [-1.0, 1.0]])
    >>> hsic_0(K, K)
    4.0
    """
    K = K.astype(np.float64)
    centred = K - K.mean(axis=0) - K.mean(axis=1)[:, None] + K.mean()
    return float((centred * L).sum() / (len(K) - 1) ** 2)


def hsic_1(K: Floats, L: Floats) -> float:
    """Unbiased estimator of the Hilbert-Schmidt independence criterion.

    [tr(K~ L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2/(n-2) 1'K~L~1] / (n(n-3)), where ~ sets the diagonal to zero.

    Args:
        K: symmetric Gram matrix [n, n].
        L: Gram matrix of the same rows [n, n].

    Raises:
        ValueError: the shapes do not fit, or n < 4.

    >>> K = np.diag(np.ones(3), 1) + np.diag(np.ones(3), -1)  # a path of four rows
    >>> round(hsic_1(K, K), 4)  # (6 + 6 * 6 / 6 - 10) / 4
    0.5
    """
    n = len(K)
    if K.shape != (n, n) or L.shape != (n, n):
        raise ValueError(f"Gram matrices have shapes {K.shape} and {L.shape}; allowed: two equal square ones")
    if n < MIN_ROWS:
        raise ValueError(f"unbiased HSIC has {n} rows; allowed: {MIN_ROWS} or more")
    K, L = K.astype(np.float64), L.astype(np.float64)
    np.fill_diagonal(K, 0.0)
    np.fill_diagonal(L, 0.0)
    k, m = K.sum(axis=0), L.sum(axis=0)
    total = (K * L).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m)
    return float(total / (n * (n - 3)))


def cka(K: Floats, L: Floats, hsic: Callable[[Floats, Floats], float] = hsic_1) -> float:
    """Centred kernel alignment of two Gram matrices of the same rows: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)).

    Args:
        K: symmetric Gram matrix [n, n].
        L: Gram matrix of the same rows [n, n].
        hsic: the estimator, `hsic_1` or `hsic_0`.
    """
    return float(hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L)))


def unbiased_cka(X: Floats, Y: Floats) -> float:
    """Unbiased linear CKA of two feature matrices: HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)), K = XX', L = YY'.

    Between -1 and 1; invariant to rotation, isotropic scaling and shift of either side.

    Args:
        X: features [n, width], any width.
        Y: features of the same rows in the same order [n, another width].

    Raises:
        ValueError: other numbers of rows, fewer than 4, a feature that is not finite, or features that do not vary over rows.

    >>> X = np.array([[0.0, 1.0], [2.0, 0.0], [3.0, 5.0], [1.0, 1.0], [4.0, 0.0]])
    >>> round(unbiased_cka(X, 3 * X[:, ::-1] + 7), 6)
    1.0
    """
    if len(X) != len(Y):
        raise ValueError(f"features of {len(X)} and of {len(Y)} rows; allowed: the same rows")
    return cka(centred_gram(X), centred_gram(Y))


# --------------------------------------------------------------------------------------------------------------------- neighbours


def unit_rows(X: Floats) -> Doubles:
    """Rows scaled to length 1, in float64; a row of zeros stays one.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    wide = X.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(lengths > 0, lengths, 1.0))


def nearest(queries: Floats, rows: Floats, k: int) -> Indices:
    """The k rows of largest cosine to each query, nearest first [queries, k]; of equal ones the earlier row.

    Args:
        queries: features [q, width].
        rows: features [n, width], n >= k.
        k: number of neighbours.

    Raises:
        ValueError: there are fewer than k rows.

    >>> nearest(np.array([[1.0, 0.1]]), np.array([[0.0, 1.0], [5.0, 0.0], [1.0, 1.0]]), 2).tolist()
    [[1, 2]]
    """
    if not 1 <= k <= len(rows):
        raise ValueError(f"k is {k}; allowed: 1 to {len(rows)}, the number of rows")
    return np.argsort(-(unit_rows(queries) @ unit_rows(rows).T), axis=1, kind="stable")[:, :k]


def knn_classes(queries: Floats, rows: Floats, labels: NDArray[np.int64], k: int) -> Indices:
    """Class of most of the k nearest rows by cosine [queries]; of classes with as many neighbours the smallest.

    Args:
        queries: features [q, width].
        rows: features [n, width], n >= k.
        labels: class of each row [n].
        k: number of neighbours.

    >>> knn_classes(np.array([[1.0, 0.1]]), np.array([[0.0, 1.0], [5.0, 0.0], [1.0, 1.0]]), np.array([0, 1, 1]), 3).tolist()
    [1]
    """
    votes = labels[nearest(queries, rows, k)]
    classes = np.unique(labels)
    return np.asarray(classes[(votes[:, :, None] == classes).sum(axis=1).argmax(axis=1)])


def mutual_neighbours(X: Floats, Y: Floats, k: int) -> float:
    """Mean share of a row's k nearest others, by cosine, that are the same in both representations; in [0, 1].

    The Platonic Representation Hypothesis. Huh, Cheung, Wang, Isola. 2024, arXiv 2405.07987.

    Args:
        X: features [n, width].
        Y: features of the same rows in the same order [n, another width].
        k: number of neighbours, less than n.

    Raises:
        ValueError: other numbers of rows, or n <= k.
    """
    if len(X) != len(Y):
        raise ValueError(f"features of {len(X)} and of {len(Y)} rows; allowed: the same rows")
    ours, theirs = _others(X, k), _others(Y, k)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(ours, theirs, strict=True)]))


def _others(X: Floats, k: int) -> Indices:
    """The k nearest other rows of each row [n, k]."""
    if not 1 <= k < len(X):
        raise ValueError(f"k is {k}; allowed: 1 to {len(X) - 1}, the number of other rows")
    alike = unit_rows(X) @ unit_rows(X).T
    np.fill_diagonal(alike, -np.inf)
    return np.argsort(-alike, axis=1, kind="stable")[:, :k]
