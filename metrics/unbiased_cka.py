"""Unbiased linear CKA: how alike a model's features are to the oracles', on the same inputs.

Similarity of Neural Network Representations Revisited. Kornblith, Norouzi, Lee, Hinton. 2019, arXiv 1905.00414; with the unbiased
estimator HSIC_1 of Song et al. 2012 (JMLR 13), as Nguyen et al. 2021 (arXiv 2010.15327) use it. The biased form tends to 1 when
there are more features than rows (0.976 for independent Gaussians, 50 rows by 2048), the unbiased one to 0.

A diagnostic: one dimension of very large activations shared by two models lifts it to 1, and as a detector of forgetting it is weak
(open-unlearning's meta-evaluation gives AUC 0.65). Read it beside the oracles' agreement with each other. The file knows feature
matrices, and no model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlearnbench.api import Audit, Direction, Metric, Need, NotMeasurable, Scenario, Threat
from unlearnbench.evidence import Evidence

Floats = NDArray[np.floating[Any]]

MIN_ROWS = 4
"""HSIC_1 divides by n (n - 3)."""


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
    K, L = _gram(X), _gram(Y)
    return float(hsic_1(K, L) / np.sqrt(hsic_1(K, K) * hsic_1(L, L)))


def _gram(X: Floats) -> Floats:
    """Gram matrix of the centred features [n, n]. HSIC_1 does not see the shift; float64 does, when features have a large mean."""
    if not np.isfinite(X).all():
        raise ValueError("a feature is NaN or infinite")
    wide = X.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    # What varies by less than float32 resolves is rounding noise, not a representation.
    if np.linalg.norm(centred) <= np.finfo(np.float32).eps * np.linalg.norm(wide):
        raise ValueError(f"the features of all {len(X)} rows are the same, so that their similarity to others is undefined")
    return np.asarray(centred @ centred.T)


class UnbiasedCKA(Metric):
    """Mean over the oracles of the unbiased linear CKA between this model's features and theirs."""

    paper = "arXiv 2010.15327"
    level = Threat.T0
    side = "diagnostic"
    bounds = (-1.0, 1.0)

    split: str = "forget"
    layer: int = -1

    @property
    def direction(self) -> Direction:
        """Nearer to the oracles means less known on forget, and more useful elsewhere."""
        return "lower" if self.split == "forget" else "higher"

    def supports(self, scenario: Scenario) -> str | None:
        """The scenario must have the split."""
        known = self.split in scenario.splits
        return super().supports(scenario) or (None if known else f"needs a split {self.split!r}, not one of {scenario.splits}")

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The features of one layer."""
        return (self._need(),)

    def _need(self) -> Need:
        return Need(what="features", split=self.split, layer=self.layer)

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The mean over the oracles.

        Raises:
            NotMeasurable: the split has fewer than 4 rows.
            ValueError: see `unbiased_cka`; or there is no oracle, or an oracle's evidence lacks a row.
        """
        if not audit.oracles:
            raise ValueError("there is no oracle to compare with")
        features, rows = evidence.array(self._need()), evidence.ids[self.split]
        if len(rows) < MIN_ROWS:
            raise NotMeasurable(f"{self.split} has {len(rows)} rows; unbiased CKA takes {MIN_ROWS} or more")
        return float(np.mean([unbiased_cka(features, self._features(oracle.evidence, rows)) for oracle in audit.oracles]))

    def _features(self, evidence: Evidence, rows: tuple[str, ...]) -> Floats:
        """An oracle's features of these rows, in this order."""
        place = {row: index for index, row in enumerate(evidence.ids[self.split])}
        missing = [row for row in rows if row not in place]
        if missing:
            raise ValueError(f"an oracle's evidence lacks {len(missing)} rows of {self.split!r}, the first is {missing[0]!r}")
        return evidence.array(self._need())[[place[row] for row in rows]]
