"""open-unlearning's metrics out of evidence, in the nesting of its result files.

The formulas are those of `answers` and `token_scores`; what this evaluation does otherwise is composed here:

- 1e-10 is added to every denominator.
- Exact memorisation, extraction strength and the lowest tokens leave out an answer's last token, whatever it is. Of an answer of one
  token they are None, 0 and 0. Extraction strength is 1 / T, not 0, where nothing matches.
- Membership scores are higher for non-members, and the area under the ROC curve counts a holdout row as positive.
- The variance in min-k++ is at least 1e-6, its share of tokens 0.4, as that of min-k.

A group is a dictionary with "agg_value" and "value_by_index", whose keys are row numbers as strings. The file knows no data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unlearnbench import token_scores
from unlearnbench.api import Need
from unlearnbench.evidence import Evidence, Tokens

Group = dict[str, Any]
Floats = NDArray[np.float64]
Kind = Literal["answer", "paraphrased_answer", "perturbed_answer"]
TINY, SHARE, LEAST_VARIANCE, DEFAULT_AUC = 1e-10, 0.4, 1e-6, 0.5


def grouped(rows: Sequence[Mapping[str, Any]], value: float | None) -> Group:
    """A group out of its rows and its aggregate."""
    return {"agg_value": value, "value_by_index": {str(i): dict(row) for i, row in enumerate(rows)}}


def column(group: Group, name: str) -> Floats:
    """One number, or one list of numbers, per row of a group."""
    return np.array([row[name] for row in group["value_by_index"].values()], dtype=np.float64)


def _scored(values: Sequence[float | None]) -> Group:
    """A group of scores, its aggregate the mean of those that there are."""
    there = [value for value in values if value is not None]
    return grouped([{"score": value} for value in values], float(np.mean(there)) if there else float("nan"))


# ------------------------------------------------------------------------------------------------------- answers and their odds


def probability(evidence: Evidence, split: str, answer: Kind = "answer") -> Group:
    """Probability and mean loss of each row's answer, or of each of its answers; the aggregate is the mean of means."""
    losses = np.stack([tokens.nll() for tokens in evidence.tokens(Need(what="tokens", split=split, answer=answer))], axis=1)
    probs = np.exp(-losses)
    single = losses.shape[1] == 1
    rows = [
        {"prob": float(p[0]), "avg_loss": float(loss[0])} if single else {"prob": p.tolist(), "avg_loss": loss.tolist()}
        for p, loss in zip(probs, losses, strict=True)
    ]
    return grouped(rows, float(probs.mean(axis=1).mean()))


def probability_with_options(correct: Group, wrong: Group) -> Group:
    """Share of the right answer's probability among all options'."""
    right = column(correct, "prob")
    shares = right / (right + column(wrong, "prob").sum(axis=1) + TINY)
    return grouped([{"prob": float(share)} for share in shares], float(shares.mean()))


def truth_ratio(correct: Group, wrong: Group, aggregate: Callable[[Floats], Floats]) -> Group:
    """Probability of the wrong answers (geometric mean) over the right one's."""
    ratios = np.exp(-column(wrong, "avg_loss").mean(axis=1)) / (np.exp(-column(correct, "avg_loss")) + TINY)
    return grouped([{"score": float(ratio)} for ratio in ratios], float(aggregate(ratios).mean()))


def closer_to_1_better(ratios: Floats) -> Floats:
    """Of the forget set: best where truth and lies are equally likely."""
    return np.minimum(ratios, 1 / (ratios + TINY))


def true_better(ratios: Floats) -> Floats:
    """Of everything else: best where lies are impossible."""
    return np.maximum(0.0, 1 - ratios)


def model_utility(groups: Sequence[Group]) -> Group:
    """Harmonic mean of aggregates."""
    from scipy.stats import hmean

    return {"agg_value": float(hmean([group["agg_value"] for group in groups]))}


def forget_quality(group: Group, retain: Floats | None) -> Group:
    """The p value of the Kolmogorov-Smirnov test between two models' truth ratios; None without the retain model's."""
    from scipy.stats import ks_2samp

    return {"agg_value": None if retain is None else float(ks_2samp(column(group, "score"), retain).pvalue)}


# -------------------------------------------------------------------------------------------------------------------------- texts


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk: slow to import

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def rouge(shown: Sequence[str], expected: Sequence[str], generated: Sequence[str], headline: str) -> Group:
    """ROUGE of generations against what was expected, with all texts.

    Args:
        shown: prompts, as the results show them.
        expected: references.
        generated: generations.
        headline: which of rouge1_recall, rougeL_f1 and rougeL_recall is averaged.
    """
    rows = []
    for prompt, reference, text in zip(shown, expected, generated, strict=True):
        found = _scorer().score(reference, text)
        rows.append(
            {
                "rouge1_recall": found["rouge1"].recall,
                "rougeL_f1": found["rougeL"].fmeasure,
                "rougeL_recall": found["rougeL"].recall,
                "input": prompt,
                "ground_truth": reference,
                "generation": text,
            }
        )
    return grouped(rows, float(np.mean([row[headline] for row in rows])))


# ------------------------------------------------------------------------------------------------------------------------- tokens


def _short(tokens: Tokens, array: NDArray[Any]) -> list[NDArray[Any]]:
    """A statistic of each row's tokens but for the last."""
    return [array[row][:-1] for row in tokens.rows()]


def exact_memorization(tokens: Tokens) -> Group:
    """Share of tokens that are the arg-max, in the single precision that it is printed in."""
    hits = _short(tokens, tokens.hit)
    return _scored([float(np.float32(token_scores.exact_memorization(row))) if row.size else None for row in hits])


def extraction_strength(tokens: Tokens) -> Group:
    """1 - k / T with k the start of the longest matching end, at most T - 1."""

    def strength(hits: NDArray[np.bool_]) -> float:
        if not hits.size:
            return 0.0
        start = round(hits.size * (1 - token_scores.extraction_strength(hits)))
        return 1 - min(start, hits.size - 1) / hits.size

    return _scored([strength(row) for row in _short(tokens, tokens.hit)])


def lowest(tokens: Tokens) -> list[float]:
    """Min-k of each row, higher for non-members."""
    return [-token_scores.min_k(row, SHARE) if row.size else 0.0 for row in _short(tokens, tokens.logprob)]


def lowest_standardised(tokens: Tokens) -> list[float]:
    """Min-k++ of each row, higher for non-members."""
    if tokens.mean is None or tokens.variance is None:
        raise ValueError("min-k++ reads the moments of token statistics")
    arrays = (tokens.logprob, tokens.mean, np.maximum(tokens.variance, LEAST_VARIANCE))
    rows = zip(*(_short(tokens, array) for array in arrays), strict=True)
    return [-token_scores.min_k_plus_plus(logprob, mean, variance, SHARE) if logprob.size else 0.0 for logprob, mean, variance in rows]


def compressed(tokens: Tokens, texts: Sequence[str]) -> list[float]:
    """Loss over compressed length of each row."""
    return [-token_scores.zlib_score(float(loss), text) for loss, text in zip(tokens.nll(), texts, strict=True)]


def membership(forget: Sequence[float], holdout: Sequence[float]) -> Group:
    """Scores of members and non-members, and the area under the ROC curve: 1 where the forget rows look like members."""
    auc = area(forget, holdout)
    return {
        "forget": _scored([float(score) for score in forget]),
        "holdout": _scored([float(score) for score in holdout]),
        "auc": auc,
        "agg_value": auc,
    }


def area(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """Area under the ROC curve with holdout rows as positives."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([0] * len(forget) + [1] * len(holdout), [*forget, *holdout]))


def privleak(auc: float, retain: float | None) -> Group:
    """Relative difference of 1 - area from the retain model's, in per cent; against 0.5 without a retain model."""
    score, base = 1 - auc, 1 - (DEFAULT_AUC if retain is None else retain)
    return {"agg_value": (score - base) / (base + TINY) * 100}
