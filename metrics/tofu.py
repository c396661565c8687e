"""Answer probability, ROUGE-L, truth ratio and model utility.

TOFU: A Task of Fictitious Unlearning for LLMs. Maini, Feng, Schwarzschild, Lipton, Kolter. 2024, arXiv 2401.06121. The forms are
those of open-unlearning (2025, arXiv 2506.12618), whose numbers are the ones in circulation. Deviations:

- No 1e-10 in denominators: ratios are taken in log space, where neither an overflow nor a division by zero can happen.
- Probabilities are length-normalised everywhere, also among wrong options, where the paper writes raw likelihoods.
- Model utility covers the splits that the scenario has: in TOFU retain, real authors and world facts; by default retain and general.

The file knows formulas and the evidence they read, and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unlearnbench.api import Audit, Metric, Need, Scenario, SplitMetric, Threat, UserError
from unlearnbench.evidence import Evidence

Floats = NDArray[np.float64]

# ------------------------------------------------------------------------------------------------------------------ formulas


def answer_probability(nll: Floats) -> Floats:
    """Length-normalised probability exp(-nll): the geometric mean of an answer's token probabilities.

    Args:
        nll: mean negative log-likelihood per token, end token included, in nats; any shape.

    Raises:
        ValueError: an entry is NaN.

    >>> answer_probability(np.array([0.0, np.log(4)])).tolist()
    [1.0, 0.25]
    """
    if np.isnan(nll).any():
        raise ValueError(f"{int(np.isnan(nll).sum())} of {nll.size} answers have log-probability NaN")
    return np.exp(-np.asarray(nll, dtype=np.float64))


def option_probability(correct: Floats, wrong: Floats) -> Floats:
    """Probability of the right option among the options: p_c / (p_c + sum_j p_wj), with p = exp(-nll).

    Args:
        correct: nll of the right answer [n].
        wrong: nll of each wrong answer [options, n].

    Raises:
        ValueError: a value is not finite, or there is no wrong option.

    >>> option_probability(np.log([2.0]), np.log([[4.0], [8.0]])).round(4).tolist()  # 0.5 / (0.5 + 0.25 + 0.125)
    [0.5714]
    """
    _check_options(correct, wrong)
    logits = -np.vstack([correct, wrong]).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=0))
    return np.asarray(shares[0] / shares.sum(axis=0))


def true_better(correct: Floats, wrong: Floats) -> Floats:
    """Truth ratio as a score of knowing the truth: max(0, 1 - R), with R = exp(mean_j -nll_wj) / exp(-nll_c).

    R sets the geometric mean of the wrong answers' probabilities against the right one's. 0: a wrong answer is at least as likely.

    Args:
        correct: nll of the right answer in its paraphrased form [n].
        wrong: nll of each perturbed answer [answers, n].

    Raises:
        ValueError: a value is not finite, or there is no wrong answer.

    >>> true_better(np.log([2.0, 8.0]), np.log([[4.0, 2.0], [16.0, 2.0]])).round(4).tolist()  # R = 2 / 8 and 8 / 2
    [0.75, 0.0]
    """
    _check_options(correct, wrong)
    log_ratio = np.asarray(correct, dtype=np.float64) - np.asarray(wrong, dtype=np.float64).mean(axis=0)
    return np.asarray(1.0 - np.exp(np.minimum(log_ratio, 0.0)))


def _check_options(correct: Floats, wrong: Floats) -> None:
    """Raise unless there is at least one wrong answer to every right one and all is finite."""
    if wrong.ndim != 2 or not len(wrong) or wrong.shape[1:] != correct.shape:
        raise ValueError(f"wrong answers have shape {wrong.shape}; allowed: (1 or more, {len(correct)})")
    if not (np.isfinite(correct).all() and np.isfinite(wrong).all()):
        raise ValueError("the log-probability of an answer is not finite, so that a ratio of probabilities is undefined")


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk: slow to import

    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(texts: Sequence[str], references: Sequence[str], variant: Literal["recall", "f1"] = "recall") -> Floats:
    """ROUGE-L of each text [n]: longest common subsequence of stemmed words, by google's rouge-score.

    Recall divides by the reference's words; f1 is the harmonic mean of that and of the share of the text's words. A text or a
    reference without a word of [a-z0-9] scores 0.

    Raises:
        ValueError: the lengths differ.

    >>> rouge_l(["the old harbour at dawn"], ["Harbour of dawn"]).round(4).tolist()
    [0.6667]
    """
    if len(texts) != len(references):
        raise ValueError(f"{len(texts)} texts for {len(references)} references")
    scores = [_scorer().score(reference, text)["rougeL"] for text, reference in zip(texts, references, strict=True)]
    return np.array([score.recall if variant == "recall" else score.fmeasure for score in scores], dtype=np.float64)


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean; 0 as soon as one value is.

    Raises:
        ValueError: no value, or one that is negative or NaN.

    >>> harmonic_mean([1.0, 0.5])
    0.6666666666666666
    """
    if not values or not all(value >= 0 for value in values):
        raise ValueError(f"a harmonic mean takes at least one value, none negative or NaN; got {list(values)}")
    return 0.0 if 0.0 in values else len(values) / sum(1 / value for value in values)


# ------------------------------------------------------------------------------------------------------------------- plugins


def _nll(evidence: Evidence, need: Need) -> Floats:
    """Mean nll of each answer [answers, rows]."""
    return np.stack([np.asarray(tokens.nll(), dtype=np.float64) for tokens in evidence.tokens(need)])


class Probability(SplitMetric):
    """Mean over rows of exp(-mean token nll) of the reference answer."""

    paper = "arXiv 2401.06121"
    modality = ("language",)
    level = Threat.T2
    bounds = (0.0, 1.0)
    tells_apart = True

    question: Literal["question", "paraphrased_question"] = "question"

    def _need(self) -> Need:
        return Need(what="tokens", split=self.split, question=self.question)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics of the answers."""
        return (self._need(),)

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The answer's probability, for each row."""
        return evidence.by_row(self.split, answer_probability(_nll(evidence, self._need())[0]))


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


class TruthRatioTrueBetter(SplitMetric):
    """Mean over rows of max(0, 1 - R): is the truth, in words never taught, likelier than lies of the same form?"""

    paper = "arXiv 2401.06121"
    modality = ("language",)
    level = Threat.T2
    bounds = (0.0, 1.0)
    tells_apart = False

    question: Literal["question", "paraphrased_question"] = "question"

    def _needs(self) -> tuple[Need, Need]:
        return (
            Need(what="tokens", split=self.split, question=self.question, answer="paraphrased_answer"),
            Need(what="tokens", split=self.split, question=self.question, answer="perturbed_answer"),
        )

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics of paraphrased and perturbed answers."""
        return self._needs()

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The score of each row."""
        paraphrased, perturbed = (_nll(evidence, need) for need in self._needs())
        return evidence.by_row(self.split, true_better(paraphrased[0], perturbed))


class ModelUtility(Metric):
    """Harmonic mean of probability, ROUGE-L recall and truth ratio of every split, each a mean over the split's rows.

    On retain, whose answers were taught with their wording, the probability is the answer's own and the truth ratio takes the
    paraphrase. On any other split, knowledge that has one right answer among options, the probability is the right option's share
    and the truth ratio takes the answer itself, which has no paraphrase; so TOFU does with real authors and world facts.
    """

    paper = "arXiv 2401.06121"
    modality = ("language",)
    level = Threat.T2
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

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The harmonic mean of three numbers of each split."""
        parts: list[float] = []
        for split in self.splits:
            generation, answer, right, wrong = self._needs(split)
            own, lies = _nll(evidence, answer)[0], _nll(evidence, wrong)
            probability = answer_probability(own) if split == "retain" else option_probability(own, lies)
            scores = (probability, rouge_l(*evidence.generations(generation)), true_better(_nll(evidence, right)[0], lies))
            parts += [float(score.mean()) for score in scores]
        return harmonic_mean(parts)
