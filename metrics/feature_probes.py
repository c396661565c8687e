"""What is still in the features: classes told apart by a learner on top of the penultimate layer, whatever the classifier says.

`knn_transfer`: the nearest-neighbour transfer of Are We Truly Forgetting? (Kim, Cha, Kim, Moon 2025, arXiv 2503.06991): the accuracy of 5
nearest neighbours by cosine. `linear_probe`: a logistic regression, which recovers what was hidden by an edit of the last layer alone.

Deviations: penultimate features (the released code takes logits, since its loader keeps the classifier); halves with as many rows of
every class, drawn by identity (there 80 to 20, by class as it falls). Besides a split of its own a learner may be given others to fit to
(`beside`): forget rows of one class are told from nothing else without. In the linear probe features are standardised by the fitted rows.

The file knows feature matrices and labels, and no model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unlearnbench.api import Audit, Need, NotMeasurable, Scenario, SplitMetric, Threat
from unlearnbench.drawing import halves
from unlearnbench.evidence import Evidence
from unlearnbench.similarity import knn_classes

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]

PENULTIMATE = -1
"""`Need.layer` of what enters the last layer."""


def probed(features: Floats, labels: Labels, queries: Floats) -> Labels:
    """Classes that a logistic regression on standardised features gives the queries [q].

    Args:
        features: of the rows to fit to [n, width].
        labels: their classes [n].
        queries: features [q, width].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learner = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return np.asarray(learner.fit(features.astype(np.float64), labels).predict(queries.astype(np.float64)), dtype=np.int64)


class _Probe(SplitMetric):
    """What the two have in common: fitted to one half of the rows, judged on the other half of a split."""

    modality = ("vision",)
    level = Threat.T3
    bounds = (0.0, 1.0)
    tells_apart = True
    curve = False

    beside: tuple[str, ...] = ("test",)
    """Further splits, a half of which the learner is fitted to."""
    seed: int = 0
    """Of the halves."""

    @property
    def headline(self) -> bool:
        """No: an oracle's features tell classes that it never saw, so that the two anchors may be alike."""
        return False

    def supports(self, scenario: Scenario) -> str | None:
        """The scenario must have the splits."""
        missing = [split for split in self._splits() if split not in scenario.splits]
        return super().supports(scenario) or (f"needs a split {missing[0]!r}, not one of {scenario.splits}" if missing else None)

    def _splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.split, *self.beside)))

    def _need(self, split: str) -> Need:
        return Need(what="features", split=split, layer=PENULTIMATE)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The penultimate features of the splits."""
        return tuple(map(self._need, self._splits()))

    @abstractmethod
    def _classes(self, features: Floats, labels: Labels, queries: Floats) -> Labels:
        """Class of each query."""

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """0 or 1 for each row of the split's second half.

        Raises:
            NotMeasurable: there are too few rows.
        """
        fitted: dict[str, tuple[Floats, int]] = {}
        for split in self._splits():
            first, second = halves(evidence.ids[split], evidence.labels[split], self.seed)
            ids, features, labels = evidence.ids[split], evidence.array(self._need(split)), evidence.labels[split]
            fitted.update((ids[i], (features[i], int(labels[i]))) for i in first)
            if split == self.split:
                judged = [ids[i] for i in second]
                queries, truth = features[second], labels[second]
        # In one order whatever the rows' order is, and without what is judged, should another split hold it too.
        rows = sorted(fitted.keys() - set(judged))
        known = np.array([fitted[row][1] for row in rows], dtype=np.int64)
        if not judged or len(np.unique(known)) < 2:
            raise NotMeasurable(
                f"{len(judged)} rows to judge and {len(np.unique(known))} classes to fit to; a probe takes 1 row and 2 classes"
            )
        found = self._classes(np.stack([fitted[row][0] for row in rows]), known, queries)
        return {row: float(hit) for row, hit in zip(judged, found == truth, strict=True)}


class KNNTransfer(_Probe):
    """Accuracy of nearest neighbours by cosine in the penultimate features."""

    paper = "arXiv 2503.06991"

    k: Annotated[int, Field(ge=1)] = 5
    """Neighbours that vote; all there are, if they are fewer."""

    def _classes(self, features: Floats, labels: Labels, queries: Floats) -> Labels:
        return knn_classes(queries, features, labels, min(self.k, len(features)))


class LinearProbe(_Probe):
    """Accuracy of a logistic regression on the penultimate features."""

    def _classes(self, features: Floats, labels: Labels, queries: Floats) -> Labels:
        return probed(features, labels, queries)
