"""Gated activation redirection as pure functions: steering vectors, the redirection, which clusters act, and where the gate opens.

Knows tensors and scores alone: no model, no text, no embedder. Formulas and rules are those of GUARD-IT (arXiv:2605.12765), read in its
published code; its gate compares strictly (`>`), its calibration does not (`>=`).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VectorMethod = Literal["orthogonal", "diff_means", "orth_diff_means"]
Scaling = Literal["activation_norm", "unit", "none"]
Selection = Literal["threshold", "weighted_threshold", "best", "soft", "ratio", "dissimilar_threshold"]

EPS = 1e-6
"""Added to every norm that is divided by when a steering vector is made."""
LEAST_NORM = 1e-8
"""The least norm that a redirected state is divided by."""


class Rates(NamedTuple):
    """What a threshold lets through.

    recall: share of the forget scores; false_positives: share of the retain scores.
    """

    recall: float
    false_positives: float


def mean_over_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """The mean state of each document [B, d], padding left out; in float32 or better.

    Args:
        states: [B, T, d].
        mask: 1 on a document's tokens, at least one, and 0 on padding [B, T].

    >>> mean_over_tokens(torch.tensor([[[2.0], [4.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[3.]])
    """
    exact = states.to(torch.promote_types(states.dtype, torch.float32))
    held = mask.to(exact.dtype)[:, :, None]
    return (exact * held).sum(1) / held.sum(1)


def steering_vectors(
    forget_means: Tensor,
    forget_norms: Tensor,
    retain_mean: Tensor,
    retain_norm: float,
    *,
    method: VectorMethod = "orthogonal",
    scaling: Scaling = "activation_norm",
) -> Tensor:
    """One direction per cluster, from what activations of its documents have and retained ones lack.

    With f a cluster's mean, r the retain mean, off(x) = x - (x.r) / (|r|^2 + EPS) r: orthogonal off(f), diff_means f - r,
    orth_diff_means off(f - r). Scaled by 1 / (|s| + EPS) for "unit", and further to the mean of the two norms for "activation_norm".

    Args:
        forget_means: mean activation of each cluster [K, d], any float type; computed in it.
        forget_norms: mean norm of the activations of each cluster's documents [K].
        retain_mean: mean activation of the retained documents [d].
        retain_norm: mean norm of their activations.
        method: how the direction is made.
        scaling: how long it is.

    Returns:
        [K, d].

    >>> steering_vectors(torch.tensor([[3.0, 4.0]]), torch.tensor([5.0]), torch.tensor([0.0, 1.0]), 1.0).round(decimals=4)
    tensor([[3., 0.]])
    """
    directions: Tensor = forget_means if method == "orthogonal" else forget_means - retain_mean
    if method != "diff_means":
        share = (directions @ retain_mean) / (retain_mean @ retain_mean + EPS)
        directions = directions - share[:, None] * retain_mean
    if scaling == "none":
        return directions
    unit: Tensor = directions / (directions.norm(dim=1, keepdim=True) + EPS)
    if scaling == "unit":
        return unit
    length: Tensor = (forget_norms + retain_norm)[:, None] / 2 / (unit.norm(dim=1, keepdim=True) + EPS)
    return unit * length


def redirect(hidden: Tensor, shift: Tensor) -> Tensor:
    """Hidden states moved away from a direction, each of the length it had: (h - s) |h| / max(|h - s|, LEAST_NORM).

    Computed in float32 or better and returned in the type of `hidden`.

    Args:
        hidden: states [..., d].
        shift: strength times steering vector, broadcastable to them.

    >>> redirect(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]))
    tensor([0., 5.])
    """
    exact = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    moved = exact - shift.to(exact.dtype)
    length: Tensor = exact.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp(min=LEAST_NORM)
    return (moved * length).to(hidden.dtype)


def cluster_weights(
    similarities: Tensor,
    thresholds: Tensor | float,
    mode: Selection = "threshold",
    *,
    retain_similarity: float = 1.0,
    most: int = 3,
    fallback: int = 3,
) -> Tensor:
    """How much each cluster's vector counts for one text; they sum to 1, or are all 0 where the gate stays shut.

    threshold: the clusters above their thresholds alike; weighted_threshold: those in proportion to their similarity; best: the most
    similar one, always; soft: all in proportion to their similarity, negative ones 0; ratio: the most similar one, if its similarity is
    more than its threshold times the one to retained texts; dissimilar_threshold: the `most` least similar of the clusters not above
    their thresholds alike, or the `fallback` least similar of all; never shut.

    Args:
        similarities: cosine of the text to each cluster's centroid [K].
        thresholds: one, or one per cluster [K].
        mode: the rule.
        retain_similarity: cosine of the text to the centroid of retained texts, for "ratio".
        most: for "dissimilar_threshold".
        fallback: for "dissimilar_threshold".

    Returns:
        [K].

    >>> cluster_weights(torch.tensor([0.7, 0.6, 0.55]), 0.55)
    tensor([0.5000, 0.5000, 0.0000])
    """
    limits = torch.as_tensor(thresholds, dtype=similarities.dtype, device=similarities.device).expand_as(similarities)
    best = int(similarities.argmax())
    if mode in ("best", "ratio"):
        shut = mode == "ratio" and not similarities[best] / max(retain_similarity, EPS) > limits[best]
        chosen = torch.zeros_like(similarities)
        chosen[best] = 0.0 if shut else 1.0
    elif mode == "dissimilar_threshold":
        order = similarities.argsort(stable=True)
        below = order[(similarities <= limits)[order]]
        chosen = torch.zeros_like(similarities)
        chosen[below[:most] if len(below) else order[:fallback]] = 1.0
    else:
        held = similarities.clamp(min=0) if mode == "soft" else torch.where(similarities > limits, similarities, 0.0)
        chosen = (similarities > limits).to(similarities.dtype) if mode == "threshold" else held
    total = chosen.sum()
    return chosen / total if total > LEAST_NORM else torch.zeros_like(chosen)


def gate_scores(
    similarities: NDArray[np.floating[Any]], retain_similarities: NDArray[np.floating[Any]], mode: Selection
) -> NDArray[np.float64]:
    """What the gate compares with its threshold, of texts with similarities [N, K] and [N]: the best similarity, as a ratio for "ratio".

    >>> gate_scores(np.array([[0.2, 0.6]]), np.array([0.5]), "ratio")
    array([1.2])
    """
    best: NDArray[np.float64] = similarities.max(axis=1).astype(np.float64)
    return best if mode != "ratio" else np.divide(best, np.maximum(retain_similarities, EPS))


def rates(forget: NDArray[np.floating[Any]], retain: NDArray[np.floating[Any]], threshold: float) -> Rates:
    """Recall on forget scores and false positives on retain scores, those equal to the threshold included."""
    return Rates(float((forget >= threshold).mean()), float((retain >= threshold).mean()))


def youden_threshold(
    forget: NDArray[np.floating[Any]], retain: NDArray[np.floating[Any]], *, weight: float = 1.0, steps: int = 200
) -> float:
    """The least of `steps` thresholds, evenly spaced over all scores, that maximises recall - weight * false positives.

    Args:
        forget: gate scores of texts to forget, at least one.
        retain: gate scores of texts to keep, at least one.
        weight: how much a false positive counts; 1 gives Youden's index.
        steps: number of thresholds tried.

    >>> youden_threshold(np.array([0.8, 1.0]), np.array([0.0, 0.5]), steps=11)
    0.6000000000000001
    """
    both = np.concatenate([forget, retain])
    tried = np.linspace(both.min(), both.max(), steps)
    gains = [rate.recall - weight * rate.false_positives for rate in (rates(forget, retain, float(threshold)) for threshold in tried)]
    return float(tried[int(np.argmax(gains))])


def quantile_threshold(retain: NDArray[np.floating[Any]], false_positives: float = 0.05) -> float:
    """The quantile of the retain scores that about the share `false_positives` of them exceeds, interpolated linearly.

    >>> quantile_threshold(np.array([0.0, 0.5, 1.0]), 0.25)
    0.75
    """
    return float(np.quantile(retain, 1.0 - false_positives))
