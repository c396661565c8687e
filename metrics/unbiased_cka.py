"""Unbiased linear CKA: how alike a model's features are to the oracles', or to the originals', on the same inputs.

Similarity of Neural Network Representations Revisited. Kornblith, Norouzi, Lee, Hinton. 2019, arXiv 1905.00414; with the unbiased
estimator HSIC_1 of Song et al. 2012 (JMLR 13), as Nguyen et al. 2021 (arXiv 2010.15327) use it. The biased form tends to 1 when
there are more features than rows (0.976 for independent Gaussians, 50 rows by 2048), the unbiased one to 0; taken as a mean over
batches, as in the code of Are We Truly Forgetting? (Kim et al. 2025, arXiv 2503.06991), the biased one is inflated further.

A diagnostic: one dimension of very large activations shared by two models lifts it to 1, and as a detector of forgetting it is weak
(open-unlearning's meta-evaluation gives AUC 0.65). Read it beside the oracles' agreement with each other. A model whose classifier alone
was edited has 1 to the original. The file knows feature matrices, and no model.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from unlearnbench.api import Audit, Direction, Metric, Need, NotMeasurable, Scenario, Threat
from unlearnbench.evidence import Evidence
from unlearnbench.populations import array_on
from unlearnbench.similarity import MIN_ROWS, unbiased_cka


class UnbiasedCKA(Metric):
    """Mean over the oracles, or the originals, of the unbiased linear CKA between this model's features and theirs."""

    paper = "arXiv 2010.15327"
    level = Threat.T0
    side = "diagnostic"
    bounds = (-1.0, 1.0)

    split: str = "forget"
    layer: int = -1
    reference: Literal["oracle", "original"] = "oracle"
    """Whom the features are compared with."""

    @property
    def direction(self) -> Direction:
        """On forget, nearer to the oracles means less known, and nearer to the originals more; elsewhere nearer means more useful."""
        return "lower" if self.split == "forget" and self.reference == "oracle" else "higher"

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
        """The mean over the oracles or the originals.

        Raises:
            NotMeasurable: the split has fewer than 4 rows, or an original is compared with itself, the only one.
            ValueError: see `unbiased_cka`; or there is no oracle, or another's evidence lacks a row.
        """
        pool = audit.oracles if self.reference == "oracle" else audit.originals
        if not pool:
            if self.reference == "original":
                raise NotMeasurable("there is no other original to compare with")
            raise ValueError("there is no oracle to compare with")
        features, rows = evidence.array(self._need()), evidence.ids[self.split]
        if len(rows) < MIN_ROWS:
            raise NotMeasurable(f"{self.split} has {len(rows)} rows; unbiased CKA takes {MIN_ROWS} or more")
        whose = f"an {self.reference}"
        return float(np.mean([unbiased_cka(features, array_on(member.evidence, self._need(), rows, whose)) for member in pool]))
