"""Membership by loss: what the model fits better was in its training set.

Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting. Yeom, Giacomelli, Fredrikson, Jha. 2018, arXiv 1709.01604.
The score is minus the loss: the mean log-probability per answer token, end token included, the log-probability of the label, or for a
denoising model minus the squared error of the predicted noise, averaged over timesteps and pixels. No threshold is chosen; the core
compares the scores of members and non-members. The file knows evidence, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unlearnbench.api import InferenceAttack, Member, Need, Scenario, Threat
from unlearnbench.confidence import label_log_probability
from unlearnbench.evidence import Evidence


class LossAttack(InferenceAttack):
    """Scores an example by minus its loss."""

    paper = "arXiv 1709.01604"
    level = Threat.T2
    tasks = ("generate", "classify", "diffuse")

    def wants(self, split: str, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics for language, logits of classifiers, losses of denoising models."""
        match scenario.task:
            case "generate":
                return (Need(what="tokens", split=split),)
            case "classify":
                return (Need(what="logits", split=split),)
            case "diffuse":
                return (Need(what="denoising_loss", split=split),)

    def score(self, evidence: Evidence, split: str, bank: Sequence[Member]) -> NDArray[np.float64]:
        """Minus the loss of each row [n], in nats or squared units of noise.

        Raises:
            ValueError: a loss is NaN.
        """
        denoising = Need(what="denoising_loss", split=split)
        if denoising in evidence.arrays:
            scores = -evidence.array(denoising)[:, 0].astype(np.float64)
        elif split in evidence.labels:  # only classifiers have labels
            scores = label_log_probability(evidence.array(Need(what="logits", split=split)), evidence.labels[split])
        else:
            scores = -np.asarray(evidence.tokens(Need(what="tokens", split=split))[0].nll(), dtype=np.float64)
        if np.isnan(scores).any():
            raise ValueError(f"the loss of {int(np.isnan(scores).sum())} of {len(scores)} rows of {split!r} is NaN")
        return scores
