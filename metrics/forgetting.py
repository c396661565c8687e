"""Forgetting and its aggregates on a scale from the original to the oracle.

`forgetting` is the mean of extraction strength and paraphrase probability, 0 at the originals and 1 at the oracles.

The memorisation and privacy scores stand in for those of open-unlearning (Dorna et al. 2025, arXiv 2506.12618): harmonic means of
1 - (extraction strength, exact memorisation, paraphrase probability, truth ratio), and of 1 - |AUC - AUC_retain| / AUC_retain over
four membership attacks. As published these reward a model that forgets more than one that never knew (36 of 150 published models are
above the retrained one), and one part at 0 hides all others (99 of 150 have privacy 0). Deviations:

- Every part is anchored at both ends: 1 at the oracles, 0 at the originals and as far beyond the oracles, in between in proportion.
- Arithmetic means.
- A part on which the originals do not know more than the oracles makes the score N/A, and is named.
- Extraction strength has no floor of 1/T; min-k and min-k++ leave out the end token.

The file knows which numbers are read of the evidence of a model and its anchors, and no model.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import numpy as np

from unlearnbench.anchoring import agreement, pooled, way_to_oracle
from unlearnbench.answers import answer_probability, log_truth_ratio, prob_mean
from unlearnbench.api import Audit, Metric, Need, Scenario, Threat
from unlearnbench.evidence import Evidence
from unlearnbench.membership import (
    Scores,
    Share,
    forget_auc,
    loss_scores,
    min_k_plus_plus_scores,
    min_k_scores,
    text_of,
    tokens_of,
    zlib_scores,
)
from unlearnbench.token_scores import exact_memorization, extraction_strength

ANSWER = tokens_of("forget")
PARAPHRASE = Need(what="tokens", split="forget", answer="paraphrased_answer")
PERTURBED = Need(what="tokens", split="forget", answer="perturbed_answer")


def _strength(evidence: Evidence) -> float:
    """Mean extraction strength of the answers, end token left out."""
    (tokens,) = evidence.tokens(ANSWER)
    return float(np.mean([extraction_strength(tokens.hit[row][:-1]) for row in tokens.rows()]))


def _paraphrase(evidence: Evidence) -> float:
    """Mean probability of the paraphrased answers."""
    return float(answer_probability(evidence.nll(PARAPHRASE)[0]).mean())


class _Anchored(Metric):
    """What the three have in common: numbers of the forget set, high where it is known, set against both anchors' means."""

    modality = ("language",)
    level = Threat.T0
    direction = "lower"
    side = "forget"

    @abstractmethod
    def _known(self, evidence: Evidence) -> dict[str, float]:
        """The numbers by name."""

    def _beside_anchors(self, evidence: Evidence, audit: Audit) -> list[tuple[str, float, float, float]]:
        """Name of each number, the model's, the originals', the oracles'.

        Raises:
            NotMeasurable: there is no original or no oracle.
        """
        originals, oracles = pooled(audit.originals, self._known, "original"), pooled(audit.oracles, self._known, "oracle")
        return [(name, value, originals[name], oracles[name]) for name, value in self._known(evidence).items()]


class Forgetting(_Anchored):
    """Mean of extraction strength and paraphrase probability on the forget set: 0 at the originals, 1 at the oracles, more beyond."""

    bounds = (-sys.float_info.max, sys.float_info.max)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics of answers and paraphrases."""
        return (ANSWER, PARAPHRASE)

    def _known(self, evidence: Evidence) -> dict[str, float]:
        return {"mean of extraction strength and paraphrase probability": (_strength(evidence) + _paraphrase(evidence)) / 2}

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The share of the way from the originals to the oracles.

        Raises:
            NotMeasurable: there is no original or no oracle, or they are not told apart.
        """
        ((name, value, original, oracle),) = self._beside_anchors(evidence, audit)
        return way_to_oracle(name, value, original, oracle)


class _Score(_Anchored):
    """A mean of agreements with the oracles."""

    paper = "arXiv 2506.12618"
    bounds = (0.0, 1.0)

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The mean over the parts.

        Raises:
            NotMeasurable: there is no original or no oracle, or one part does not tell them apart.
        """
        return float(np.mean([agreement(*part) for part in self._beside_anchors(evidence, audit)]))


class MemorizationScore(_Score):
    """Mean agreement with the oracles in extraction strength, exact memorisation, paraphrase probability and truth ratio."""

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics of answers, paraphrases and perturbed answers."""
        return (ANSWER, PARAPHRASE, PERTURBED)

    def _known(self, evidence: Evidence) -> dict[str, float]:
        (tokens,) = evidence.tokens(ANSWER)
        log_ratio = log_truth_ratio(evidence.nll(PARAPHRASE)[0], evidence.nll(PERTURBED))
        return {
            "extraction strength": _strength(evidence),
            "exact memorisation": float(np.mean([exact_memorization(tokens.hit[row][:-1]) for row in tokens.rows()])),
            "paraphrase probability": _paraphrase(evidence),
            "truth ratio": float(prob_mean(log_ratio).mean()),
        }


class PrivacyScore(_Score):
    """Mean agreement with the oracles in the AUC of four membership attacks: loss, zlib, min-k, min-k++."""

    share: Share = 0.4
    """Of an answer's tokens, the least likely ones that count in min-k and min-k++."""

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics and texts of forget and holdout."""
        return tuple(need for split in ("forget", "holdout") for need in (tokens_of(split, moments=True), text_of(split)))

    def _known(self, evidence: Evidence) -> dict[str, float]:
        attacks: dict[str, Callable[[Evidence, str], Scores]] = {
            "AUC of loss": loss_scores,
            "AUC of zlib": zlib_scores,
            "AUC of min-k": partial(min_k_scores, share=self.share),
            "AUC of min-k++": partial(min_k_plus_plus_scores, share=self.share),
        }
        return {name: forget_auc(evidence, scores) for name, scores in attacks.items()}
