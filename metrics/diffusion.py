"""What a denoising model draws, and what it predicts without a label: Fréchet distance and unconditional drift.

Fréchet distance: Martin Heusel, Hubert Ramsauer, Thomas Unterthiner, Bernhard Nessler, Sepp Hochreiter, "GANs trained by a two time-scale
update rule converge to a local Nash equilibrium", 2017, arXiv:1706.08500. Deviations: the features are those of the scenario's judge, a
small classifier, not Inception's, so that values compare within one scenario alone; as many samples as real images, one for each, where
the paper takes 50,000. Few rows raise it (between 1,000 training images of the digits and all unseen ones it is 3.2, not 0).

Drift: after Seunghoo Hong, Juhun Lee, Simon S. Woo, "All but one: surgical concept erasing with model preservation in text-to-image
diffusion models", 2023, arXiv:2312.12807, which asks that the unconditional score stay; the measure is ours. The file knows feature
matrices and predictions, and no model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlearnbench.api import Audit, Metric, Need, NotMeasurable, Scenario, Threat
from unlearnbench.evidence import Evidence

Floats = NDArray[np.floating[Any]]


def frechet_distance(X: Floats, Y: Floats) -> float:
    """|m - n|^2 + tr(A + B - 2 (A B)^(1/2)), m, n the means and A, B the covariances (divided by rows - 1) of two sets of features.

    tr((A B)^(1/2)) is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.

    Args:
        X: features [n, width], n at least 2.
        Y: features of other rows [m, width], m at least 2.

    Raises:
        ValueError: other widths, fewer than 2 rows, or a feature that is not finite.

    >>> X = np.array([[0.0], [2.0]])  # mean 1, variance 2
    >>> round(frechet_distance(X, 2 * X), 6)  # (2 - 1)^2 + 2 + 8 - 2 * sqrt(16)
    3.0
    """
    if X.ndim != 2 or Y.ndim != 2 or X.shape[1] != Y.shape[1] or min(len(X), len(Y)) < 2:
        raise ValueError(f"features have shapes {X.shape} and {Y.shape}; allowed: two matrices of one width, 2 rows or more")
    if not (np.isfinite(X).all() and np.isfinite(Y).all()):
        raise ValueError("a feature is NaN or infinite")
    X, Y = X.astype(np.float64), Y.astype(np.float64)
    A, B = np.atleast_2d(np.cov(X, rowvar=False)), np.atleast_2d(np.cov(Y, rowvar=False))
    values, vectors = np.linalg.eigh(A)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ B @ root).clip(min=0)).sum()
    # Rounding may leave a distance of 0 a little below it.
    return float(max(((X.mean(axis=0) - Y.mean(axis=0)) ** 2).sum() + np.trace(A) + np.trace(B) - 2 * cross, 0.0))


class FrechetDistance(Metric):
    """Fréchet distance between the samples of a split's classes and the split's real images, in the judge's features."""

    paper = "arXiv:1706.08500"
    modality = ("vision",)
    tasks = ("diffuse",)
    level = Threat.T1
    direction = "lower"
    side = "utility"
    bounds = (0.0, sys.float_info.max)

    split: str = "retain"

    def supports(self, scenario: Scenario) -> str | None:
        """The scenario must have the split, and it must not be the forgotten images."""
        if (reason := super().supports(scenario)) is not None:
            return reason
        allowed = [name for name in scenario.splits if name != "forget"]
        return None if self.split in allowed else f"measures the quality of what is kept: split {self.split!r} is not one of {allowed}"

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The judge's features of samples and of real images."""
        return (Need(what="features", split=self.split), Need(what="image_features", split=self.split))

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """One number for the split.

        Raises:
            NotMeasurable: the split has one row.
        """
        drawn, real = (evidence.array(Need(what=what, split=self.split)) for what in ("features", "image_features"))
        if len(real) < 2:
            raise NotMeasurable(f"{self.split} has {len(real)} rows; a covariance takes 2 or more")
        return frechet_distance(drawn, real)


class UnconditionalDrift(Metric):
    """Mean squared change of the noise predicted without a label, from the nearest original's, at the same noised images.

    The nearest original of an unlearned model is the one it began as; an original's own row shows the distance between trainings, the
    oracle's what leaving out the forgotten images does.
    """

    paper = "arXiv:2312.12807"
    modality = ("vision",)
    tasks = ("diffuse",)
    level = Threat.T0
    direction = "lower"
    side = "diagnostic"
    bounds = (0.0, sys.float_info.max)

    split: str = "test"

    def supports(self, scenario: Scenario) -> str | None:
        """The scenario must have the split."""
        known = self.split in scenario.splits
        return super().supports(scenario) or (None if known else f"needs a split {self.split!r}, not one of {scenario.splits}")

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The unconditional predictions."""
        return (self._need(),)

    def _need(self) -> Need:
        return Need(what="unconditional", split=self.split)

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The squared change of each row, from the original that is nearest over all rows.

        Raises:
            NotMeasurable: there is no other original.
            ValueError: an original's evidence lacks a row.
        """
        if not audit.originals:
            raise NotMeasurable("there is no other original to compare with")
        rows, own = evidence.ids[self.split], evidence.array(self._need()).astype(np.float64)
        changes = [((own - self._of(original.evidence, rows)) ** 2).mean(axis=1) for original in audit.originals]
        return evidence.by_row(self.split, min(changes, key=lambda change: float(change.mean())))

    def _of(self, evidence: Evidence, rows: tuple[str, ...]) -> Floats:
        """An original's predictions of these rows, in this order."""
        place = {row: index for index, row in enumerate(evidence.ids[self.split])}
        missing = [row for row in rows if row not in place]
        if missing:
            raise ValueError(f"an original's evidence lacks {len(missing)} rows of {self.split!r}, the first is {missing[0]!r}")
        return evidence.array(self._need())[[place[row] for row in rows]]
