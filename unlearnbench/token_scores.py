"""Scores of one text from its tokens' statistics under teacher forcing: what is remembered, and what was in the training set.

- Extraction strength: after Carlini et al. 2021 (arXiv 2012.07805), in the form of open-unlearning (Dorna et al. 2025, arXiv
  2506.12618), but 0 and not 1/T where nothing matches. Exact memorisation: Tirumala et al. 2022 (arXiv 2205.10770).
- Min-k: Detecting Pretraining Data from Large Language Models. Shi et al. 2023, arXiv 2310.16789.
- Min-k++: Zhang et al. 2024, arXiv 2404.02936.
- Zlib: Extracting Training Data from Large Language Models. Carlini et al. 2021, arXiv 2012.07805.

Higher means more remembered, or more like a member. Each function takes the arrays of one row; whether its end token is among them is
the caller's choice. The file knows arrays, and no model.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Hits = NDArray[np.bool_]


def extraction_strength(hits: Hits) -> float:
    """Share of the answer that the model completes by itself when given the rest: length of the longest all-hit suffix over T.

    An answer of one token is all or nothing, 0 or 1: on data with one-word answers read it as the accuracy that it is.

    Args:
        hits: whether the arg-max is the answer's token, for its T tokens [T], without the end token.

    Raises:
        ValueError: T is 0.

    >>> extraction_strength(np.array([True, False, True, True]))
    0.5
    """
    _check(hits)
    misses = np.flatnonzero(~hits)
    known_from = int(misses[-1]) + 1 if misses.size else 0
    return (hits.size - known_from) / hits.size


def exact_memorization(hits: Hits) -> float:
    """Share of the answer's tokens that are the model's arg-max, each given the true tokens before it.

    Args:
        hits: as for `extraction_strength` [T].

    Raises:
        ValueError: T is 0.

    >>> exact_memorization(np.array([True, False, True, True]))
    0.75
    """
    _check(hits)
    return float(hits.mean())


def min_k(logprob: Floats, share: float) -> float:
    """Mean of the lowest log-probabilities: of max(1, floor(share x T)) tokens. A text unseen holds some very unlikely ones.

    Args:
        logprob: log-probability of each token [T], in nats.
        share: of the tokens that count, in (0, 1].

    Raises:
        ValueError: T is 0, or the share is out of range.

    >>> min_k(np.array([-1.0, -8.0, -0.5, -4.0]), 0.5)
    -6.0
    """
    _check(logprob)
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; allowed: above 0 and at most 1")
    count = max(1, int(share * logprob.size))
    return float(np.sort(logprob.astype(np.float64))[:count].mean())


def min_k_plus_plus(logprob: Floats, mean: Floats, variance: Floats, share: float) -> float:
    """Min-k of standardised log-probabilities (log p - mean) / sqrt(variance): is the token a mode of the model's distribution there?

    Args:
        logprob: log-probability of each token [T], in nats.
        mean: of log p under the model's own distribution at each position [T].
        variance: of the same [T], above 0. A distribution on one token has none: the caller chooses a floor.
        share: of the tokens that count, in (0, 1].

    Raises:
        ValueError: T is 0, a variance is not above 0, or the share is out of range.

    >>> min_k_plus_plus(np.array([-1.0, -8.0]), np.array([-2.0, -2.0]), np.array([4.0, 9.0]), 0.5)
    -2.0
    """
    if not (variance > 0).all():
        raise ValueError(f"the lowest variance is {float(np.min(variance))}; allowed: above 0")
    wide = [array.astype(np.float64) for array in (logprob, mean, variance)]
    return min_k((wide[0] - wide[1]) / np.sqrt(wide[2]), share)


def zlib_score(nll: float, text: str) -> float:
    """Minus the loss per byte of the compressed text: a text that is repetitive is likely without having been seen.

    Args:
        nll: mean negative log-likelihood per token, in nats.
        text: what was scored; compressed as UTF-8 by zlib at its default level.

    >>> zlib_score(2.0, "to be or not to be") == -2.0 / len(zlib.compress(b"to be or not to be"))
    True
    """
    return -nll / len(zlib.compress(text.encode("utf-8")))


def _check(tokens: NDArray[Any]) -> None:
    if not tokens.size:
        raise ValueError("an answer has no token besides the end token")
