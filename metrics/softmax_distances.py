"""Distances of what a classifier says of the forget set: to what oracles say, and to what a model says that learned nothing.

`activation_distance`: Zero-shot Machine Unlearning. Chundawat, Tarun, Mandal, Kankanhalli. 2023, arXiv 2201.05629. Deviation: the mean over
the oracles.

`zrf`, the zero retrain forgetting score: Can Bad Teaching Induce Forgetting? Chundawat, Tarun, Mandal, Kankanhalli. 2023, arXiv 2205.08096.
It is 1 - JS(model, untrained model): 1 for a model that answers as if it had learned nothing. What is right is the oracle's value, which
generalises. Deviations: JS is the Jensen-Shannon divergence in bits (the released code has the arguments of the divergences reversed and
also takes the mean over classes, which is nearer to 1); the mean over several untrained models.

The file knows logits, and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from unlearnbench.api import Audit, Bank, Metric, Need, NotMeasurable, Scenario, Threat
from unlearnbench.confidence import activation_distance, jensen_shannon, probabilities
from unlearnbench.evidence import Evidence
from unlearnbench.populations import array_on

LOGITS = Need(what="logits", split="forget")


class ActivationDistance(Metric):
    """Mean Euclidean distance of the softmax on forget rows to the oracles'."""

    paper = "arXiv 2201.05629"
    modality = ("vision",)
    level = Threat.T0
    bounds = (0.0, float(np.sqrt(2)))
    direction = "higher"
    side = "forget"

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The logits of forget."""
        return (LOGITS,)

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The mean over the oracles, for each row.

        Raises:
            NotMeasurable: there is no oracle.
            ValueError: an oracle's evidence lacks a row.
        """
        if not audit.oracles:
            raise NotMeasurable("there is no oracle to compare with")
        rows, ours = evidence.ids["forget"], probabilities(evidence.array(LOGITS))
        theirs = [probabilities(array_on(oracle.evidence, LOGITS, rows, "an oracle")) for oracle in audit.oracles]
        return evidence.by_row("forget", np.mean([activation_distance(ours, other) for other in theirs], axis=0))


class ZRF(Metric):
    """Zero retrain forgetting: 1 minus the Jensen-Shannon divergence of the softmax on forget rows from untrained models'."""

    paper = "arXiv 2205.08096"
    modality = ("vision",)
    level = Threat.T0
    bounds = (0.0, 1.0)
    direction = "lower"
    side = "forget"
    two_sided = True

    n: Annotated[int, Field(ge=1)] = 2
    """Untrained models."""

    @property
    def banks(self) -> tuple[Bank, ...]:
        """The untrained models."""
        return (Bank(role="untrained", n=self.n),)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The logits of forget."""
        return (LOGITS,)

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The mean over the untrained models, for each row.

        Raises:
            NotMeasurable: there is no untrained model.
            ValueError: an untrained model's evidence lacks a row.
        """
        untrained = [member.evidence for member in audit.bank if member.role == "untrained"]
        if not untrained:
            raise NotMeasurable("there is no untrained model to compare with")
        rows, ours = evidence.ids["forget"], probabilities(evidence.array(LOGITS))
        theirs = [probabilities(array_on(other, LOGITS, rows, "an untrained model")) for other in untrained]
        return evidence.by_row("forget", 1 - np.mean([jensen_shannon(ours, other) for other in theirs], axis=0))
