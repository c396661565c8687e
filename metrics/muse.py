"""MUSE's three scores of forgetting: verbatim memory, knowledge memory, and how a membership attack sees the forget set.

MUSE: Machine Unlearning Six-Way Evaluation for Language Models. Shi, Lee, Huang, Malladi, Zhao, Holtzman, Liu, Zettlemoyer, Smith,
Zhang. 2024, arXiv 2407.06460. Deviations:

- Values lie between 0 and 1, where MUSE multiplies by 100; PrivLeak alone is in percent, as published.
- Verbatim and knowledge memory are the ROUGE-L f1 of generations, with stemmed words as in open-unlearning, where MUSE does not stem.
  Lengths, stop strings and reference texts are the split's: a scenario decides them.
- PrivLeak's AUC counts a min-k score of at least one token, leaves out the last token of each passage, and stands against the mean of the
  oracles at hand, not against a published constant; without oracle it is not measured. A denominator of 0 is not measured either, where
  open-unlearning adds 1e-10.

The file knows generations and token statistics, and no model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from unlearnbench.anchoring import pooled
from unlearnbench.answers import rouge_l
from unlearnbench.api import Audit, Metric, Need, NotMeasurable, Scenario, Side, SplitMetric, Threat
from unlearnbench.evidence import Evidence
from unlearnbench.membership import Share, forget_auc, min_k_scores, tokens_of


class _Continuation(SplitMetric):
    """What the two memories have in common: the ROUGE-L f1 of generations."""

    paper = "arXiv 2407.06460"
    modality = ("language",)
    level = Threat.T1
    bounds = (0.0, 1.0)
    curve = False
    tells_apart = True

    @property
    def side(self) -> Side:
        """By the split's name: of a retain or general split it speaks of utility, else of forgetting; "holdout" is a diagnostic."""
        if self.split == "holdout":
            return "diagnostic"
        return "utility" if "retain" in self.split or self.split == "general" else "forget"

    def _need(self) -> Need:
        return Need(what="generation", split=self.split)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Generations."""
        return (self._need(),)

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The ROUGE-L f1 of each row."""
        return evidence.by_row(self.split, rouge_l(*evidence.generations(self._need()), variant="f1"))


class VerbMem(_Continuation):
    """Verbatim memory: mean ROUGE-L f1 between the continuation of a passage and the passage itself; in `muse` on split "verbmem"."""


class KnowMem(_Continuation):
    """Knowledge memory: mean ROUGE-L f1 of answers to questions about passages; in `muse` on splits "knowmem" and "retain_knowmem"."""


def privleak(auc: float, oracle: float) -> float:
    """How far the AUC of unseen against forgotten passages departs from the oracles': ((1 - auc) - (1 - oracle)) / (1 - oracle), in %.

    Below 0 the forget set still looks like training data, down to -100; above 0 it looks less like it than what was never seen.

    Args:
        auc: probability that a forgotten passage scores more like a member than an unseen one.
        oracle: the same of models that never saw the forget set.

    Raises:
        NotMeasurable: the oracles take every forgotten passage for a member, so that there is nothing to divide by.

    >>> round(privleak(0.99, 0.48), 4)
    -98.0769
    """
    if oracle >= 1:
        raise NotMeasurable("the oracles' AUC is 1, where PrivLeak divides by 0")
    return 100 * (oracle - auc) / (1 - oracle)


class PrivLeak(Metric):
    """Relative departure of the min-k membership AUC of forget against holdout from the oracles', in percent."""

    paper = "arXiv 2407.06460"
    modality = ("language",)
    level = Threat.T0
    direction = "lower"
    side = "forget"
    bounds = (-100.0, sys.float_info.max)

    share: Share = 0.4
    """Of a passage's tokens, the least likely ones that count."""

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics of forget and holdout."""
        return (tokens_of("forget"), tokens_of("holdout"))

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The departure; the oracles' AUC is their mean.

        Raises:
            NotMeasurable: there is no oracle, a split has no rows, or the oracles' AUC is 1.
        """
        oracle = pooled(audit.oracles, self._auc, "oracle")
        return privleak(self._auc(evidence)["AUC"], oracle["AUC"])

    def _auc(self, evidence: Evidence) -> dict[str, float]:
        return {"AUC": forget_auc(evidence, lambda seen, split: min_k_scores(seen, split, self.share))}
