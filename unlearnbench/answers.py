"""What answers say of knowledge: probabilities, shares among options, truth ratios, ROUGE-L.

TOFU: A Task of Fictitious Unlearning for LLMs. Maini, Feng, Schwarzschild, Lipton, Kolter. 2024, arXiv 2401.06121; with the two other
truth ratios of open-unlearning (Dorna et al. 2025, arXiv 2506.12618). Deviations:

- No 1e-10 in denominators: ratios are taken in log space, where neither an overflow nor a division by zero can happen.
- Probabilities are length-normalised everywhere, also among wrong options, where the paper writes raw likelihoods.
- The wrong answers of a truth ratio are averaged geometrically (mean of their losses), as in all code in circulation; the paper
  writes an arithmetic mean.

The file knows numbers and texts; which answers they belong to, and which splits are read, is the metrics' matter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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


# -------------------------------------------------------------------------------------------------------------- truth ratio


def log_truth_ratio(correct: Floats, wrong: Floats) -> Floats:
    """Natural logarithm of R = exp(mean_j -nll_wj) / exp(-nll_c), the wrong answers' probability against the right one's [n].

    Below 0 the truth is likelier than the lies. Rank tests may use it in place of R: they see the order alone.

    Args:
        correct: nll of the right answer in its paraphrased form [n].
        wrong: nll of each perturbed answer [answers, n].

    Raises:
        ValueError: a value is not finite, or there is no wrong answer.

    >>> log_truth_ratio(np.log([2.0]), np.log([[4.0], [16.0]])).round(4).tolist()  # log(2 / 8)
    [-1.3863]
    """
    _check_options(correct, wrong)
    return np.asarray(np.asarray(correct, dtype=np.float64) - np.asarray(wrong, dtype=np.float64).mean(axis=0))


def true_better(log_ratio: Floats) -> Floats:
    """Truth ratio as a score of knowing the truth: max(0, 1 - R). 0: a wrong answer is at least as likely.

    Args:
        log_ratio: log R, of any shape; see `log_truth_ratio`.

    >>> true_better(np.log([0.25, 4.0])).round(4).tolist()
    [0.75, 0.0]
    """
    return np.asarray(0.0 - np.expm1(np.minimum(log_ratio, 0.0)))  # -0.0 would print its sign


def closer_to_1(log_ratio: Floats) -> Floats:
    """Truth ratio as a score of knowing nothing: min(R, 1 / R). 1: truth and lies are equally likely; small: one of them is preferred.

    A model that prefers lies scores as low as one that knows the truth: so a model that was pushed too far is told from an ignorant one.

    Args:
        log_ratio: log R, of any shape; see `log_truth_ratio`.

    >>> closer_to_1(np.log([0.25, 4.0])).round(4).tolist()
    [0.25, 0.25]
    """
    return np.exp(-np.abs(log_ratio))


def prob_mean(log_ratio: Floats) -> Floats:
    """Truth ratio as a share: p_c / (p_c + p_w) = 1 / (1 + R), with p_w the geometric mean of the wrong answers' probabilities.

    Args:
        log_ratio: log R, of any shape; see `log_truth_ratio`.

    >>> prob_mean(np.log([0.25, 4.0])).round(4).tolist()
    [0.8, 0.2]
    """
    return np.exp(-np.logaddexp(0.0, log_ratio))


def _check_options(correct: Floats, wrong: Floats) -> None:
    """Raise unless there is at least one wrong answer to every right one and all is finite."""
    if wrong.ndim != 2 or not len(wrong) or wrong.shape[1:] != correct.shape:
        raise ValueError(f"wrong answers have shape {wrong.shape}; allowed: (1 or more, {len(correct)})")
    if not (np.isfinite(correct).all() and np.isfinite(wrong).all()):
        raise ValueError("the log-probability of an answer is not finite, so that a ratio of probabilities is undefined")


# --------------------------------------------------------------------------------------------------------------------- texts


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


def ngram_entropy(text: str) -> float:
    """Fluency as variety: mean of the entropies of a text's pairs and triples of words, weighted 2/3 and 4/3, in bits.

    A text that repeats itself has little of it, and so has a short one. Locating and Editing Factual Associations in GPT (Meng, Bau,
    Andonian, Belinkov 2022, arXiv 2202.05262), as RWKU uses it; there words are those of nltk's tokeniser, here runs of letters and
    digits and single other marks.

    >>> round(ngram_entropy("a b a b a b"), 4)  # 5 pairs in shares 3/5 and 2/5, 4 triples in shares 1/2
    0.9903
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    """Entropy of the shares of runs of n words, in bits; 0 where there is none."""
    counts = np.array(list(Counter(zip(*(words[i:] for i in range(n)), strict=False)).values()), dtype=np.float64)
    shares = counts / counts.sum()
    return float((shares * np.log2(1 / shares)).sum())
