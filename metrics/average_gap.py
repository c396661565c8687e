"""Average gap: how far a model is from retraining in forgetting, in use and in membership, in one number.

The "Avg. Gap" of SalUn (Fan et al. 2024, arXiv 2310.12508) and l1-sparse unlearning (Jia et al. 2023, arXiv 2304.04934): the mean of the
distances, to the mean of the oracles, of unlearning accuracy (1 - accuracy on forget), retain accuracy, test accuracy, and membership
efficacy by confidence. Shares here, per cent there. The oracles' own rows say how far one oracle is from the others: that is the
distance at which nothing is left to improve. Deviations: see `membership_rates` for the membership efficacy.

The file knows four numbers of a model, off its logits.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from unlearnbench.anchoring import pooled
from unlearnbench.api import Audit, Metric, Need, Scenario, Threat
from unlearnbench.confidence import correct
from unlearnbench.evidence import Evidence
from unlearnbench.membership_classifiers import SPLITS, known_rows, logits_of, svc_says_member


def average_gap(value: dict[str, float], oracle: dict[str, float]) -> float:
    """Mean distance of numbers by name.

    >>> average_gap({"UA": 0.5, "TA": 0.75}, {"UA": 1.0, "TA": 1.0})
    0.375
    """
    return float(np.mean([abs(value[name] - oracle[name]) for name in oracle]))


class AverageGap(Metric):
    """Mean over unlearning, retain and test accuracy and membership efficacy of the distance to the oracles' mean."""

    paper = "arXiv 2310.12508"
    modality = ("vision",)
    level = Threat.T0
    bounds = (0.0, 1.0)
    direction = "higher"
    side = "forget"
    headline = True

    limit: Annotated[int, Field(ge=10)] = 2000
    """Most rows of either kind that the membership learner is fitted to."""
    seed: int = 0
    """Of the draw of these rows."""

    def supports(self, scenario: Scenario) -> str | None:
        """The scenario must be a classifier's, with retain and test."""
        missing = [split for split in SPLITS if split not in scenario.splits]
        return super().supports(scenario) or (f"needs a split {missing[0]!r}, not one of {scenario.splits}" if missing else None)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The logits of forget, retain and test."""
        return tuple(map(logits_of, SPLITS))

    def _parts(self, evidence: Evidence) -> dict[str, float]:
        accuracy = {split: float(correct(evidence.array(logits_of(split)), evidence.labels[split]).mean()) for split in SPLITS}
        members = svc_says_member(*known_rows(evidence, limit=self.limit, seed=self.seed).features("confidence"))
        return {
            "unlearning accuracy": 1 - accuracy["forget"],
            "retain accuracy": accuracy["retain"],
            "test accuracy": accuracy["test"],
            "membership efficacy": 1 - float(members.mean()),
        }

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The mean distance.

        Raises:
            NotMeasurable: there is no oracle, or too few rows of retain or test.
        """
        return average_gap(self._parts(evidence), pooled(audit.oracles, self._parts, "oracle"))
