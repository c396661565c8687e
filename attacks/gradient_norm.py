"""Membership by gradient norm: at what it was trained on, a model is near a minimum.

As in open-unlearning (Dorna et al. 2025, arXiv 2506.12618): the mean over parameter tensors of the L2 norm of the gradient of one
example's loss. Deviation: gradients are taken in evaluation mode, without dropout, where open-unlearning's model is in training mode. It
reads weights, so that its level is T3. The file knows evidence, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unlearnbench.api import InferenceAttack, Member, Need, Scenario, Threat
from unlearnbench.evidence import Evidence
from unlearnbench.membership import Scores


class GradientNorm(InferenceAttack):
    """Scores an example by minus the mean gradient norm of its loss."""

    paper = "arXiv 2506.12618"
    modality = ("language",)
    level = Threat.T3

    def wants(self, split: str, scenario: Scenario) -> tuple[Need, ...]:
        """Gradient norms."""
        return (Need(what="gradient_norm", split=split),)

    def score(self, evidence: Evidence, split: str, bank: Sequence[Member]) -> Scores:
        """Minus the norm of each row [n]."""
        return -evidence.array(Need(what="gradient_norm", split=split))[:, 0].astype(np.float64)
