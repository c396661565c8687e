"""Accuracy and the probability of the true class, of a classifier on one split.

Both are textbook. On forget, unlearning papers print 1 - accuracy as "unlearning accuracy", on retain and test as they are (for
example SalUn: Fan et al. 2024, arXiv 2310.12508). The label of a row is the one that the scenario trains on: where wrong labels are
to be forgotten, accuracy on forget counts the wrong labels that are still given. The file knows logits and labels, and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlearnbench.api import Audit, Need, Scenario, SplitMetric, Threat
from unlearnbench.evidence import Evidence

Floats = NDArray[np.floating[Any]]


def correct(logits: Floats, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 where the largest logit is the label's, else 0 [n]; of equal logits the first class is taken.

    Args:
        logits: [n, classes].
        labels: true classes [n].

    Raises:
        ValueError: the shapes do not fit, a label is no class, or a logit is not finite.

    >>> correct(np.array([[0.0, 2.0], [3.0, 1.0]]), np.array([1, 1])).tolist()
    [1.0, 0.0]
    """
    _check(logits, labels)
    return np.asarray(logits.argmax(axis=1) == labels, dtype=np.float64)


def true_class_probability(logits: Floats, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Softmax probability of the label's class [n], in float64.

    Args:
        logits: [n, classes].
        labels: true classes [n].

    Raises:
        ValueError: the shapes do not fit, a label is no class, or a logit is not finite.

    >>> true_class_probability(np.log([[1.0, 3.0], [4.0, 1.0]]), np.array([1, 1])).round(4).tolist()
    [0.75, 0.2]
    """
    _check(logits, labels)
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shares[np.arange(len(labels)), labels] / shares.sum(axis=1))


def _check(logits: Floats, labels: NDArray[np.int64]) -> None:
    if logits.ndim != 2 or logits.shape[:1] != labels.shape:
        raise ValueError(f"logits have shape {logits.shape}; allowed: ({len(labels)}, classes), one row for each label")
    if labels.size and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; allowed: 0 to {logits.shape[1] - 1}")
    if not np.isfinite(logits).all():
        raise ValueError("a logit is NaN or infinite")


class _Classified(SplitMetric):
    """What the two have in common: they read the logits of one split."""

    modality = ("vision",)
    bounds = (0.0, 1.0)
    tells_apart = True

    def _need(self) -> Need:
        return Need(what="logits", split=self.split)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The logits of the split."""
        return (self._need(),)


class Accuracy(_Classified):
    """Share of the split's rows that get their label."""

    level = Threat.T1

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """0 or 1 for each row."""
        return evidence.by_row(self.split, correct(evidence.array(self._need()), evidence.labels[self.split]))


class TrueProbability(_Classified):
    """Mean over the split's rows of the softmax probability of their label."""

    level = Threat.T2

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The label's probability for each row."""
        return evidence.by_row(self.split, true_class_probability(evidence.array(self._need()), evidence.labels[self.split]))
