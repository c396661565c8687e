"""Membership by the least likely tokens: a text never seen holds some that surprise the model.

Min-k: Detecting Pretraining Data from Large Language Models. Shi, Ajith, Xia, Huang, Liu, Blevins, Chen, Zettlemoyer. 2023, arXiv
2310.16789. Min-k++: Improved Baseline for Detecting Pre-Training Data from Large Language Models. Zhang, Sun, Yeats, Ouyang, Kuo,
Zhang, Yang, Li. 2024, arXiv 2404.02936. Deviations:

- Only the answer's tokens are scored, given the prompt, and not its end token: the papers score whole texts.
- At least one token counts, where the share of a short answer would be none.
- The default share is 0.4, as in MUSE and open-unlearning; the papers' is 0.2.
- Min-k++'s variance is at least 1e-6 (open-unlearning's floor): where a model is certain it would be 0.

The file knows evidence, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from unlearnbench.api import InferenceAttack, Member, Need, Scenario, Threat
from unlearnbench.evidence import Evidence
from unlearnbench.membership import Scores, Share, min_k_plus_plus_scores, min_k_scores, tokens_of


class MinK(InferenceAttack):
    """Scores an example by the mean of its lowest token log-probabilities."""

    paper = "arXiv 2310.16789"
    modality = ("language",)
    level = Threat.T2

    share: Share = 0.4
    """Of an answer's tokens, the least likely ones that count."""

    def wants(self, split: str, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics."""
        return (tokens_of(split),)

    def score(self, evidence: Evidence, split: str, bank: Sequence[Member]) -> Scores:
        """The score of each row [n], in nats."""
        return min_k_scores(evidence, split, self.share)


class MinKPlusPlus(InferenceAttack):
    """Scores an example by the mean of its lowest token log-probabilities, each standardised under the model's own distribution."""

    paper = "arXiv 2404.02936"
    modality = ("language",)
    level = Threat.T2

    share: Share = 0.4
    """Of an answer's tokens, the lowest ones that count."""

    def wants(self, split: str, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics with mean and variance of the log-probability."""
        return (tokens_of(split, moments=True),)

    def score(self, evidence: Evidence, split: str, bank: Sequence[Member]) -> Scores:
        """The score of each row [n], in standard deviations."""
        return min_k_plus_plus_scores(evidence, split, self.share)
