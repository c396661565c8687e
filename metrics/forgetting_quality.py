"""Forgetting quality: how little a threshold on one number tells unlearned models from retrained ones.

Are we making progress in unlearning? Findings from the first NeurIPS unlearning competition. Triantafillou, Kairouz, Pedregosa, Hayes,
Kurmanji, Zhao, Dumoulin, Jacques Junior, Mitliagkas, Wan, Sun Hosoya, Escalera, Dziugaite, P. Triantafillou, Guyon. 2024, arXiv
2406.09073. For each forget example epsilon is the largest that a threshold attack on margins proves, over models of two banks; the score is
2 / 2^n for an epsilon in bin n of width 0.5, and the quality its mean over examples. `population_forgetting_quality` has one model of each
kind and compares rows instead: 2^-epsilon, of margins and of entropies, as in Unlearning Comparator (Lee et al. 2025, arXiv 2508.12730).

Deviations:

- Attacks are all single thresholds in both directions (the competition has further attacks, which only raise epsilon).
- How rates of 0 are treated, the number of bins and their width are recalled, not read: an attack of which one rate alone is 0 proves
  nothing, one that is never wrong proves everything.
- A finite number of models has a floor, as a threshold that fits the noise proves something: the oracles' own rows have it.
- The population form takes the larger of the two bounds (the released code takes the smaller), all thresholds instead of a grid, and the
  mean over the oracles.
- Not multiplied by the ratio of accuracies, which stand beside it.

The file knows margins and entropies, and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unlearnbench.api import Audit, Bank, Metric, Need, NotMeasurable, Scenario, Threat
from unlearnbench.confidence import entropy
from unlearnbench.distributions import forgetting_score, largest_epsilon
from unlearnbench.evidence import Evidence
from unlearnbench.populations import label_margins, values_of

Delta = Annotated[float, Field(ge=0, lt=1)]

LOGITS = Need(what="logits", split="forget")


class _OnForget(Metric):
    """What the two have in common: they read the logits of forget."""

    modality = ("vision",)
    level = Threat.T0
    bounds = (0.0, 1.0)
    direction = "lower"
    side = "forget"

    delta: Delta = 1e-5
    """The probability with which anything may be told."""

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The logits of forget."""
        return (LOGITS,)


class ForgettingQuality(_OnForget):
    """Mean over forget rows of the competition's score, from margins of unlearned models and of oracles."""

    paper = "arXiv 2406.09073"
    headline = True

    n: Annotated[int, Field(ge=20)] = 100
    """Models a side."""

    @property
    def banks(self) -> tuple[Bank, ...]:
        """As many unlearned models as oracles."""
        return (Bank(role="unlearned", n=self.n), Bank(role="oracle", n=self.n))

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The score of each row.

        Raises:
            NotMeasurable: a bank has fewer models than asked for.
            ValueError: a member's evidence lacks a row.
        """
        rows = evidence.ids["forget"]
        unlearned, oracles = (values_of(audit.bank, role, self.n, "forget", rows, label_margins) for role in ("unlearned", "oracle"))
        epsilons = np.array([largest_epsilon(ours, theirs, self.delta) for ours, theirs in zip(unlearned.T, oracles.T, strict=True)])
        return evidence.by_row("forget", forgetting_score(epsilons))


class PopulationForgettingQuality(_OnForget):
    """2^-epsilon of the best threshold on margins or entropies that tells this model's forget rows from an oracle's."""

    paper = "arXiv 2508.12730"

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The mean over the oracles.

        Raises:
            NotMeasurable: there is no oracle.
        """
        if not audit.oracles:
            raise NotMeasurable("there is no oracle to compare with")
        ours = self._values(evidence)
        found = []
        for oracle in audit.oracles:
            theirs = self._values(oracle.evidence)
            found.append(2.0 ** -max(largest_epsilon(one, other, self.delta) for one, other in zip(ours, theirs, strict=True)))
        return float(np.mean(found))

    @staticmethod
    def _values(evidence: Evidence) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return label_margins(evidence, "forget"), entropy(evidence.array(LOGITS))
