"""Answer probability, ROUGE-L and truth ratios of one split.

TOFU: A Task of Fictitious Unlearning for LLMs. Maini, Feng, Schwarzschild, Lipton, Kolter. 2024, arXiv 2401.06121. The forms are
those of open-unlearning (Dorna et al. 2025, arXiv 2506.12618), whose numbers are the ones in circulation; deviations are those of the
formulas, which `unlearnbench.answers` names. The file knows which answers each formula reads, and no model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unlearnbench.answers import answer_probability, closer_to_1, log_truth_ratio, option_probability, prob_mean, rouge_l, true_better
from unlearnbench.api import Audit, Need, Scenario, SplitMetric, Threat
from unlearnbench.evidence import Evidence

Floats = NDArray[np.float64]


class Probability(SplitMetric):
    """Mean over rows of exp(-mean token nll) of the reference answer, or of its paraphrase."""

    paper = "arXiv 2401.06121"
    modality = ("language",)
    level = Threat.T2
    bounds = (0.0, 1.0)
    tells_apart = True

    question: Literal["question", "paraphrased_question"] = "question"
    answer: Literal["answer", "paraphrased_answer"] = "answer"

    def _need(self) -> Need:
        return Need(what="tokens", split=self.split, question=self.question, answer=self.answer)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics of the answers."""
        return (self._need(),)

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The answer's probability, for each row."""
        return evidence.by_row(self.split, answer_probability(evidence.nll(self._need())[0]))


class Rouge(SplitMetric):
    """Mean over rows of the ROUGE-L of the generated answer."""

    paper = "arXiv 2401.06121"
    modality = ("language",)
    level = Threat.T1
    bounds = (0.0, 1.0)
    curve = False
    tells_apart = True

    question: Literal["question", "paraphrased_question"] = "question"
    variant: Literal["recall", "f1"] = "recall"

    def _need(self) -> Need:
        return Need(what="generation", split=self.split, question=self.question)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Generated answers."""
        return (self._need(),)

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The ROUGE-L of each row."""
        texts, references = evidence.generations(self._need())
        return evidence.by_row(self.split, rouge_l(texts, references, self.variant))


class _AgainstWrong(SplitMetric):
    """What sets the right answer against the perturbed ones."""

    paper = "arXiv 2401.06121"
    modality = ("language",)
    level = Threat.T2
    bounds = (0.0, 1.0)
    tells_apart = False

    question: Literal["question", "paraphrased_question"] = "question"
    answer: Literal["answer", "paraphrased_answer"] = "paraphrased_answer"
    """The form of the right answer: the paraphrase where the wording was taught, the answer itself where there is no paraphrase."""

    def _needs(self) -> tuple[Need, Need]:
        right = Need(what="tokens", split=self.split, question=self.question, answer=self.answer)
        return right, Need(what="tokens", split=self.split, question=self.question, answer="perturbed_answer")

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics of right and perturbed answers."""
        return self._needs()

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The score of each row."""
        right, wrong = (evidence.nll(need) for need in self._needs())
        return evidence.by_row(self.split, self._formula(right[0], wrong))

    @abstractmethod
    def _formula(self, right: Floats, wrong: Floats) -> Floats:
        """Losses of the right answer [n] and of the wrong ones [answers, n] to scores [n]."""


class NormalisedProbability(_AgainstWrong):
    """Mean over rows of the right option's share of the probability: is it the one that the model would pick, and how surely?"""

    answer: Literal["answer", "paraphrased_answer"] = "answer"

    def _formula(self, right: Floats, wrong: Floats) -> Floats:
        return option_probability(right, wrong)


class TruthRatioTrueBetter(_AgainstWrong):
    """Mean over rows of max(0, 1 - R): is the truth, in words never taught, likelier than lies of the same form?"""

    def _formula(self, right: Floats, wrong: Floats) -> Floats:
        return true_better(log_truth_ratio(right, wrong))


class TruthRatioCloserTo1(_AgainstWrong):
    """Mean over rows of min(R, 1 / R): are truth and lies equally likely, as they are to a model that knows nothing?"""

    direction = "lower"

    def _formula(self, right: Floats, wrong: Floats) -> Floats:
        return closer_to_1(log_truth_ratio(right, wrong))


class TruthRatioProbMean(_AgainstWrong):
    """Mean over rows of 1 / (1 + R), the truth's share against a typical lie."""

    paper = "arXiv 2506.12618"

    def _formula(self, right: Floats, wrong: Floats) -> Floats:
        return prob_mean(log_truth_ratio(right, wrong))
