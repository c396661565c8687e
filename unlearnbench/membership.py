"""Membership scores of the rows of a split, read off its evidence: by the loss, its lowest tokens, or against compressed length.

Both the membership attacks and the metrics that compare areas under their ROC curves (PrivLeak, the privacy score) stand on these.
Higher means more like a member. The formulas are in `token_scores`; the file knows which tokens of a row they are given: all for the
loss and zlib, all but the end token, which is no part of the text, for the lowest tokens. (A passage without end token loses its last.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unlearnbench import stats
from unlearnbench.api import Need, NotMeasurable
from unlearnbench.evidence import Evidence
from unlearnbench.token_scores import min_k, min_k_plus_plus, zlib_score

Scores = NDArray[np.float64]
Share = Annotated[float, Field(gt=0, le=1)]
"""A share of the tokens of a text."""

VARIANCE_FLOOR = 1e-6
"""A position where the model puts all on one token has no variance; the floor in circulation (open-unlearning's and Min-k++'s)."""


def tokens_of(split: str, *, moments: bool = False) -> Need:
    """The need of token statistics of a split's answers."""
    return Need(what="tokens", split=split, moments=moments)


def text_of(split: str) -> Need:
    """The need of a split's answers as texts."""
    return Need(what="text", split=split)


def loss_scores(evidence: Evidence, split: str) -> Scores:
    """Minus the mean nll per token of each row [n], end token included; reads `tokens_of(split)`."""
    return np.asarray(-evidence.nll(tokens_of(split))[0])


def zlib_scores(evidence: Evidence, split: str) -> Scores:
    """Minus the mean nll per token over the compressed length of the answer [n]; reads `tokens_of(split)` and `text_of(split)`.

    Raises:
        ValueError: there is not one text to each row of token statistics.
    """
    losses, texts = evidence.nll(tokens_of(split))[0], evidence.references[text_of(split)]
    return np.array([zlib_score(float(nll), text) for nll, text in zip(losses, texts, strict=True)])


def min_k_scores(evidence: Evidence, split: str, share: float) -> Scores:
    """Mean of the lowest log-probabilities of each row [n]; reads `tokens_of(split)`.

    Raises:
        ValueError: a row has no token besides the end token.
    """
    (tokens,) = evidence.tokens(tokens_of(split))
    return np.array([min_k(tokens.logprob[row][:-1], share) for row in tokens.rows()])


def min_k_plus_plus_scores(evidence: Evidence, split: str, share: float) -> Scores:
    """The same of standardised log-probabilities [n]; reads `tokens_of(split, moments=True)`.

    Raises:
        ValueError: a row has no token besides the end token, or the evidence has no moments.
    """
    (tokens,) = evidence.tokens(tokens_of(split, moments=True))
    if tokens.mean is None or tokens.variance is None:
        raise ValueError(f"the token statistics of {split!r} have no moments")
    mean, variance = tokens.mean, np.maximum(tokens.variance, VARIANCE_FLOOR)
    rows = [slice(row.start, row.stop - 1) for row in tokens.rows()]
    return np.array([min_k_plus_plus(tokens.logprob[row], mean[row], variance[row], share) for row in rows])


def forget_auc(evidence: Evidence, scores: Callable[[Evidence, str], Scores]) -> float:
    """Probability that a row of "forget" scores above one of "holdout": 1 if forget is surely told to be a member, 0.5 by chance.

    Raises:
        NotMeasurable: one of the two splits has no rows.
        ValueError: a score is NaN.
    """
    empty = [split for split in ("forget", "holdout") if not evidence.ids.get(split)]
    if empty:
        raise NotMeasurable(f"split {empty[0]!r} has no rows to compare")
    return stats.auc(scores(evidence, "forget"), scores(evidence, "holdout"))
