"""Population attack: how well a logistic regression on the loss tells forget rows from rows that nobody ever saw.

The unlearning-membership test of Towards Unbounded Machine Unlearning (Kurmanji, Triantafillou, Hayes, Triantafillou 2023, arXiv
2302.09880), in the form of the first NeurIPS competition's starting kit: the mean accuracy over ten stratified random splits on the tenth
that was left out. Half is chance, but what is right is the oracle's value: where forget and holdout differ in kind (a class), oracles are
told apart as well. Deviations: both sets are as large as the smaller, drawn at random by identity; the order of the rows is drawn too.

The file knows logits and labels, and no model.
"""

from __future__ import annotations

import numpy as np

from unlearnbench.api import Audit, Metric, Need, NotMeasurable, Scenario, Threat
from unlearnbench.confidence import label_log_probability
from unlearnbench.drawing import drawn_order
from unlearnbench.evidence import Evidence
from unlearnbench.membership_classifiers import logistic_accuracy, logits_of

MIN_ROWS = 6
"""With fewer of either, a tenth of the rows cannot hold one of both."""


class PopulationAttack(Metric):
    """Mean accuracy of a logistic regression on the loss, forget against holdout."""

    paper = "arXiv 2302.09880"
    modality = ("vision",)
    level = Threat.T2
    bounds = (0.0, 1.0)
    direction = "higher"
    side = "forget"
    curve = False
    two_sided = True

    seed: int = 0
    """Of the rows drawn and of the splits."""

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The logits of forget and holdout."""
        return (logits_of("forget"), logits_of("holdout"))

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The mean over the splits.

        Raises:
            NotMeasurable: forget or holdout has too few rows.
        """
        count = min(len(evidence.ids["forget"]), len(evidence.ids["holdout"]))
        if count < MIN_ROWS:
            raise NotMeasurable(f"forget or holdout has {count} rows; the population attack takes {MIN_ROWS} or more of either")
        inside, outside = (self._losses(evidence, split)[:count] for split in ("forget", "holdout"))
        return float(logistic_accuracy(inside[:, None], outside[:, None], seed=self.seed).mean())

    def _losses(self, evidence: Evidence, split: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The cross-entropy of each row, in an order drawn by identity [n]."""
        losses = -label_log_probability(evidence.array(logits_of(split)), evidence.labels[split])
        return losses[drawn_order(evidence.ids[split], self.seed)]
