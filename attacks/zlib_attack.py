"""Membership by loss against compressibility: a repetitive text is likely without having been seen.

Extracting Training Data from Large Language Models. Carlini, Tramer, Wallace, Jagielski, Herbert-Voss, Lee, Roberts, Brown, Song,
Erlingsson, Oprea, Raffel. 2021, arXiv 2012.07805. Deviations: the score is minus the loss over the compressed length, whose order is
that of the paper's ratio (length over loss) and which is finite at a loss of 0; only the answer is scored and compressed, given the
prompt; and length is counted in bytes, not bits. The file knows evidence, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from unlearnbench.api import InferenceAttack, Member, Need, Scenario, Threat
from unlearnbench.evidence import Evidence
from unlearnbench.membership import Scores, text_of, tokens_of, zlib_scores


class ZlibAttack(InferenceAttack):
    """Scores an example by minus its loss over the length of the answer as zlib compresses it."""

    paper = "arXiv 2012.07805"
    modality = ("language",)
    level = Threat.T2

    def wants(self, split: str, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics and the answers' texts."""
        return (tokens_of(split), text_of(split))

    def score(self, evidence: Evidence, split: str, bank: Sequence[Member]) -> Scores:
        """The score of each row [n], in nats per byte."""
        return zlib_scores(evidence, split)
