"""Model utility as in TOFU, and the share of the oracles' utility that is kept.

TOFU: A Task of Fictitious Unlearning for LLMs. Maini, Feng, Schwarzschild, Lipton, Kolter. 2024, arXiv 2401.06121, in the form of
open-unlearning (Dorna et al. 2025, arXiv 2506.12618). Deviations of model utility: those of the formulas, which
`unlearnbench.answers` names; and it covers the splits that the scenario has, in TOFU retain, real authors and world facts, by default
retain and general.

The utility score stands in for open-unlearning's harmonic mean of model utility and fluency. Deviations:

- Every part is divided by the oracles' and counts as 1 at most: a model is not rewarded for what no oracle has.
- Arithmetic mean of the shares: one part at 0 does not hide all others.
- A part of which the oracles have nothing (the entropy of one-word answers) is left out: none of it can be lost.
- Fluency is the n-gram entropy of the answers on these splits, not a classifier's verdict on answers to forget questions: a refusal
  there is short, and no loss of language.

The file knows which answers each formula reads, and no model.
"""

from __future__ import annotations

import numpy as np

from unlearnbench.anchoring import kept, pooled
from unlearnbench.answers import answer_probability, log_truth_ratio, ngram_entropy, option_probability, rouge_l, true_better
from unlearnbench.api import Audit, Metric, Need, NotMeasurable, Scenario, Threat, UserError
from unlearnbench.evidence import Evidence
from unlearnbench.stats import harmonic_mean


class _UtilityParts(Metric):
    """What the two have in common: which answers of each split are read.

    On retain, whose answers were taught with their wording, the probability is the answer's own and the truth ratio takes the
    paraphrase. On any other split, knowledge that has one right answer among options, the probability is the right option's share
    and the truth ratio takes the answer itself, which has no paraphrase; so TOFU does with real authors and world facts.
    """

    modality = ("language",)
    direction = "higher"
    side = "utility"
    bounds = (0.0, 1.0)
    curve = False

    splits: tuple[str, ...] = ("retain", "general")

    def __post_init__(self) -> None:
        """Check the splits."""
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise UserError(f"splits is {list(self.splits)}; allowed: one split or more, each once")

    def supports(self, scenario: Scenario) -> str | None:
        """The scenario must be of language and have all splits."""
        missing = [split for split in self.splits if split not in scenario.splits]
        return super().supports(scenario) or (f"needs splits {missing}, not among {scenario.splits}" if missing else None)

    def _needs(self, split: str) -> tuple[Need, Need, Need, Need]:
        """Of one split: generation, answer, the right answer of the truth ratio, the wrong ones."""
        answer = Need(what="tokens", split=split)
        right = Need(what="tokens", split=split, answer="paraphrased_answer") if split == "retain" else answer
        wrong = Need(what="tokens", split=split, answer="perturbed_answer")
        return Need(what="generation", split=split), answer, right, wrong

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Generations and token statistics of all splits."""
        return tuple(dict.fromkeys(need for split in self.splits for need in self._needs(split)))

    def _parts(self, evidence: Evidence, split: str) -> dict[str, float]:
        """The three numbers of one split, by name."""
        generation, answer, right, wrong = self._needs(split)
        own, lies = evidence.nll(answer)[0], evidence.nll(wrong)
        scores = {
            f"probability on {split}": answer_probability(own) if split == "retain" else option_probability(own, lies),
            f"ROUGE-L on {split}": rouge_l(*evidence.generations(generation)),
            f"truth ratio on {split}": true_better(log_truth_ratio(evidence.nll(right)[0], lies)),
        }
        return {name: float(score.mean()) for name, score in scores.items()}


class ModelUtility(_UtilityParts):
    """Harmonic mean of probability, ROUGE-L recall and truth ratio of every split, each a mean over the split's rows."""

    paper = "arXiv 2401.06121"
    level = Threat.T2

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The harmonic mean of three numbers of each split."""
        return harmonic_mean([part for split in self.splits for part in self._parts(evidence, split).values()])


class UtilityScore(_UtilityParts):
    """Mean share of the oracles' utility that is kept: probability, ROUGE-L, truth ratio and n-gram entropy of every split."""

    paper = "arXiv 2506.12618"
    level = Threat.T0

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The mean of four shares of each split, each at most 1.

        Raises:
            NotMeasurable: there is no oracle, or the oracles have nothing of any part.
        """
        oracle = pooled(audit.oracles, self._useful, "oracle")
        shares = [kept(name, value, oracle[name]) for name, value in self._useful(evidence).items() if oracle[name] > 0]
        if not shares:
            raise NotMeasurable("the oracles have no utility of which a share could be kept")
        return float(np.mean(shares))

    def _useful(self, evidence: Evidence) -> dict[str, float]:
        """All numbers of all splits, by name."""
        found: dict[str, float] = {}
        for split in self.splits:
            texts, _ = evidence.generations(self._needs(split)[0])
            entropy = float(np.mean([ngram_entropy(text) for text in texts]))
            found |= {**self._parts(evidence, split), f"n-gram entropy on {split}": entropy}
        return found
