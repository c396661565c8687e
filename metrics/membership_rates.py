"""How many forget rows a small learner calls members, from rows of retain that are and rows of test that are not.

`svc_efficacy` is the membership efficacy of SalUn (Fan, Liu, Zhang, Wong, Wei, Liu 2024, arXiv 2310.12508) and l1-sparse unlearning (Jia
et al. 2023, arXiv 2304.04934): the share of forget rows that a support-vector classifier calls non-members. Higher is more forgotten, but
the oracle's value is the target: to be farther from a member than rows that were never seen gives a row away as well.
`entropy_membership` is the membership attack of SSD (Foster, Schoepf, Brintrup 2024, arXiv 2308.07707), in the other orientation: the
share called member. `threshold_membership` is that of Song and Mittal 2021, arXiv 2003.10595, with one threshold for each class.

Deviations, in all three:

- Members and non-members are as many as there are of the fewer, and drawn at random by identity. (Published code takes the first rows
  of retain, or all of both.)
- Modified entropy is the right one, see `confidence.modified_entropy`.
- A class of which test has no rows, as the one to be forgotten, has the threshold of all classes.

The file knows logits and labels, and no model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unlearnbench.api import Audit, Metric, Need, Scenario, Threat
from unlearnbench.evidence import Evidence
from unlearnbench.membership_classifiers import (
    SCALARS,
    SPLITS,
    Feature,
    Known,
    Scalar,
    known_rows,
    logistic_says_member,
    logits_of,
    svc_says_member,
    threshold_says_member,
)


class _Rate(Metric):
    """What the three have in common: a learner fitted to retain and test, asked about forget."""

    modality = ("vision",)
    level = Threat.T2
    bounds = (0.0, 1.0)
    curve = False
    side = "forget"
    two_sided = True

    limit: Annotated[int, Field(ge=10)] = 2000
    """Most rows of either kind that the learner is fitted to."""
    seed: int = 0
    """Of the draw of these rows."""

    def supports(self, scenario: Scenario) -> str | None:
        """The scenario must be a classifier's, with a split of known members and one of known non-members."""
        missing = [split for split in SPLITS if split not in scenario.splits]
        return super().supports(scenario) or (f"needs a split {missing[0]!r}, not one of {scenario.splits}" if missing else None)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The logits of forget, retain and test."""
        return tuple(map(logits_of, SPLITS))

    @abstractmethod
    def _found(self, known: Known) -> NDArray[Any]:
        """1 for each row asked about that counts, else 0."""

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """0 or 1 for each row of forget.

        Raises:
            NotMeasurable: there are too few rows of retain or test.
        """
        return evidence.by_row("forget", np.asarray(self._found(known_rows(evidence, limit=self.limit, seed=self.seed)), dtype=np.float64))


class SVCEfficacy(_Rate):
    """Share of the forget rows that a support-vector classifier calls non-members."""

    paper = "arXiv 2310.12508"
    direction = "lower"
    headline = True

    feature: Feature = "confidence"
    """What it sees of a row; the papers' reported one is the confidence, the probability of the label."""

    def _found(self, known: Known) -> NDArray[Any]:
        return ~svc_says_member(*known.features(self.feature))


class EntropyMembership(_Rate):
    """Share of the forget rows that a logistic regression on the entropy of the softmax calls members."""

    paper = "arXiv 2308.07707"
    direction = "higher"

    def _found(self, known: Known) -> NDArray[Any]:
        return logistic_says_member(*known.features("entropy"))


class ThresholdMembership(_Rate):
    """Share of the forget rows that are called members by the best threshold of their class."""

    paper = "arXiv 2003.10595"
    direction = "higher"

    feature: Scalar = "modified_entropy"
    """What has a threshold; entropies are taken with a minus, so that more is more like a member."""

    def _found(self, known: Known) -> NDArray[Any]:
        sign = -1.0 if "entropy" in self.feature else 1.0

        def values(logits: NDArray[Any], labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
            return sign * SCALARS[self.feature](logits, labels), labels

        return threshold_says_member(*(values(*part) for part in known))
