"""Membership by loss against models that never saw the example: what is easy for everybody proves nothing.

Extracting Training Data from Large Language Models. Carlini, Tramer, Wallace, Jagielski, Herbert-Voss, Lee, Roberts, Brown, Song,
Erlingsson, Oprea, Raffel. 2021, arXiv 2012.07805, which compares with a second model; the difference of log-likelihoods is that of
Membership Inference Attacks From First Principles (Carlini et al. 2022, arXiv 2112.03570) without its variance. Deviations: the mean
over several references instead of one; they are oracles, trained by the scenario's recipe without the forget set, and have seen the
rows of "holdout" as little as the model under test has. The file knows evidence, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unlearnbench.api import Bank, InferenceAttack, Member, Need, NotMeasurable, Scenario, Threat
from unlearnbench.evidence import Evidence
from unlearnbench.membership import Scores, loss_scores, tokens_of


class ReferenceAttack(InferenceAttack):
    """Scores an example by the references' mean loss minus the model's."""

    paper = "arXiv 2012.07805"
    modality = ("language",)
    level = Threat.T2
    banks = (Bank(role="oracle", n=2),)

    def wants(self, split: str, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics."""
        return (tokens_of(split),)

    def score(self, evidence: Evidence, split: str, bank: Sequence[Member]) -> Scores:
        """The score of each row [n], in nats.

        Raises:
            NotMeasurable: there is no reference.
            ValueError: a reference's evidence lacks a row.
        """
        if not bank:
            raise NotMeasurable("there is no reference model to compare with")
        references = [member.evidence.by_row(split, loss_scores(member.evidence, split)) for member in bank]
        missing = [row for row in evidence.ids[split] if not all(row in reference for reference in references)]
        if missing:
            raise ValueError(f"a reference's evidence lacks {len(missing)} rows of {split!r}, the first is {missing[0]!r}")
        easy = np.mean([[reference[row] for row in evidence.ids[split]] for reference in references], axis=0)
        return np.asarray(loss_scores(evidence, split) - easy)
