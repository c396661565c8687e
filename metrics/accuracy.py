"""Accuracy and the probability of the true class, of a classifier on one split.

Both are textbook. On forget, unlearning papers print 1 - accuracy as "unlearning accuracy", on retain and test as they are (for
example SalUn: Fan et al. 2024, arXiv 2310.12508). The label of a row is the one that the scenario trains on: where wrong labels are
to be forgotten, accuracy on forget counts the wrong labels that are still given. For a denoising model a row is a sample of the row's
class and the logits are a fixed judge's: accuracy on forget is the share of samples of the forgotten class that still show it. The file
knows logits and labels, and no model.
"""

from __future__ import annotations

from collections.abc import Mapping

from unlearnbench.api import Audit, Need, Scenario, SplitMetric, Threat
from unlearnbench.confidence import correct, true_class_probability
from unlearnbench.evidence import Evidence


class _Classified(SplitMetric):
    """What the two have in common: they read the logits of one split."""

    modality = ("vision",)
    tasks = ("classify", "diffuse")
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
