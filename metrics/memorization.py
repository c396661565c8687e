"""Extraction strength and exact memorisation: how much of an answer the model's own next-token guesses reproduce.

Extraction strength: after Carlini et al. 2021 (arXiv 2012.07805), in the form of open-unlearning
(Dorna et al. 2025, arXiv 2506.12618). Exact memorisation: Tirumala et al. 2022 (arXiv 2205.10770). Deviations:

- open-unlearning gives 1/T to an answer of which nothing matches; here it is 0, the length of the matching suffix over T.
- The end token, which is the last token of every row's evidence, is left out of both: it is not part of what is remembered.

The file knows arg-max hits under teacher forcing, and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from unlearnbench.api import Audit, Need, Scenario, SplitMetric, Threat
from unlearnbench.evidence import Evidence
from unlearnbench.token_scores import Hits, exact_memorization, extraction_strength


class _Hits(SplitMetric):
    """What the two have in common: one function of each row's hits."""

    modality = ("language",)
    level = Threat.T2
    bounds = (0.0, 1.0)

    question: Literal["question", "paraphrased_question"] = "question"

    def _need(self) -> Need:
        return Need(what="tokens", split=self.split, question=self.question)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics of the answers."""
        return (self._need(),)

    def _by_row(self, evidence: Evidence, formula: Callable[[Hits], float]) -> Mapping[str, float]:
        """The formula's value of each row, end token left out."""
        (tokens,) = evidence.tokens(self._need())
        return evidence.by_row(self.split, [formula(tokens.hit[row][:-1]) for row in tokens.rows()])


class ExtractionStrength(_Hits):
    """Mean over rows of the share of the answer that the model completes by itself."""

    paper = "arXiv 2506.12618"
    tells_apart = True

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The extraction strength of each row."""
        return self._by_row(evidence, extraction_strength)


class ExactMemorization(_Hits):
    """Mean over rows of the share of answer tokens that are the model's arg-max."""

    paper = "arXiv 2205.10770"
    tells_apart = False

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The exact memorisation of each row."""
        return self._by_row(evidence, exact_memorization)
