"""How sure a classifier is of a row, and whether it is right: what membership attacks on classifiers are made of.

Knows logits and labels, row by row, in float64; no evidence and no model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Labels = NDArray[np.int64]


def log_probabilities(logits: Floats) -> Doubles:
    """Log-softmax over classes [n, classes].

    Args:
        logits: [n, classes].

    >>> log_probabilities(np.log([[1.0, 3.0]])).round(4).tolist()
    [[-1.3863, -0.2877]]
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def probabilities(logits: Floats) -> Doubles:
    """Softmax over classes [n, classes].

    >>> probabilities(np.log([[1.0, 3.0]])).round(4).tolist()
    [[0.25, 0.75]]
    """
    return np.exp(log_probabilities(logits))


def correct(logits: Floats, labels: Labels) -> Doubles:
    """1 where the largest logit is the label's, else 0 [n]; of equal logits the first class is taken.

    Args:
        logits: [n, classes].
        labels: true classes [n].

    Raises:
        ValueError: the shapes do not fit, a label is no class, or a logit is not finite.

    >>> correct(np.array([[0.0, 2.0], [3.0, 1.0]]), np.array([1, 1])).tolist()
    [1.0, 0.0]
    """
    _check(logits, labels)
    return np.asarray(logits.argmax(axis=1) == labels, dtype=np.float64)


def true_class_probability(logits: Floats, labels: Labels) -> Doubles:
    """Softmax probability of the label's class [n]: what membership papers call the confidence.

    Args:
        logits: [n, classes].
        labels: true classes [n].

    Raises:
        ValueError: the shapes do not fit, a label is no class, or a logit is not finite.

    >>> true_class_probability(np.log([[1.0, 3.0], [4.0, 1.0]]), np.array([1, 1])).round(4).tolist()
    [0.75, 0.2]
    """
    _check(logits, labels)
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shares[np.arange(len(labels)), labels] / shares.sum(axis=1))


def label_log_probability(logits: Floats, labels: Labels) -> Doubles:
    """Log-softmax at the label, minus the cross-entropy [n], in nats.

    Args:
        logits: [n, classes].
        labels: true classes [n].

    >>> label_log_probability(np.log([[1.0, 3.0]]), np.array([0])).round(4).tolist()  # log 1/4
    [-1.3863]
    """
    return np.asarray(log_probabilities(logits)[np.arange(len(labels)), labels])


def entropy(logits: Floats) -> Doubles:
    """Entropy of the softmax [n], in nats: - sum_j p_j log p_j.

    >>> entropy(np.array([[0.0, 0.0], [800.0, 0.0]])).round(4).tolist()  # log 2, and none
    [0.6931, 0.0]
    """
    logs = log_probabilities(logits)
    return np.asarray(-(np.exp(logs) * logs).sum(axis=1)) + 0.0


def modified_entropy(logits: Floats, labels: Labels) -> Doubles:
    """Entropy that knows the label [n], in nats: - (1 - p_y) log p_y - sum_{j != y} p_j log(1 - p_j).

    0 for a certain right answer and large for a certain wrong one. Song and Mittal 2021, arXiv 2003.10595. The code of several
    unlearning papers has it wrong in two ways: it takes the columns of all labels of the batch in every row, and log p_j where log(1 -
    p_j) belongs. Logarithms are exact: 1 - p_j is summed from the other classes, so that nothing has to be clipped.

    Args:
        logits: [n, classes], 2 classes or more.
        labels: true classes [n].

    Raises:
        ValueError: the shapes do not fit, a label is no class, or a logit is not finite.

    >>> modified_entropy(np.log([[1.0, 3.0], [1.0, 3.0]]), np.array([1, 0])).round(4).tolist()  # -2/4 log 3/4, -6/4 log 1/4
    [0.1438, 2.0794]
    """
    _check(logits, labels)
    logs = log_probabilities(logits)
    rest = _log_others(logs)
    rows = np.arange(len(labels))
    terms = np.exp(logs) * rest
    terms[rows, labels] = np.exp(rest[rows, labels]) * logs[rows, labels]
    return np.asarray(-terms.sum(axis=1)) + 0.0


def margins(logits: Floats, labels: Labels) -> Doubles:
    """Log-odds of the label [n]: z_y - logsumexp of the other logits, which is log p_y / (1 - p_y).

    Args:
        logits: [n, classes], 2 classes or more.
        labels: true classes [n].

    Raises:
        ValueError: the shapes do not fit, a label is no class, or a logit is not finite.

    >>> margins(np.log([[1.0, 3.0], [2.0, 2.0]]), np.array([1, 0])).round(4).tolist()  # log 3, log 1
    [1.0986, 0.0]
    """
    _check(logits, labels)
    wide, rows = logits.astype(np.float64), np.arange(len(labels))
    others = wide.copy()
    others[rows, labels] = -np.inf
    top = others.max(axis=1)
    return np.asarray(wide[rows, labels] - top - np.log(np.exp(others - top[:, None]).sum(axis=1)))


def jensen_shannon(p: Doubles, q: Doubles) -> Doubles:
    """Jensen-Shannon divergence of each row in bits [n], in [0, 1]: mean of KL(p || m) and KL(q || m) with m = (p + q) / 2.

    Args:
        p: probabilities [n, classes].
        q: probabilities [n, classes].

    >>> jensen_shannon(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.5]])).tolist()
    [1.0, 0.0]
    """
    from scipy.special import rel_entr

    middle = (p + q) / 2
    nats = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / 2
    return np.asarray(np.clip(nats / np.log(2), 0.0, 1.0))


def activation_distance(p: Doubles, q: Doubles) -> Doubles:
    """Euclidean distance of each row's probabilities [n], in [0, sqrt(2)].

    Zero-shot Machine Unlearning. Chundawat, Tarun, Mandal, Kankanhalli. 2023, arXiv 2201.05629.

    Args:
        p: probabilities [n, classes].
        q: probabilities [n, classes].

    >>> activation_distance(np.array([[1.0, 0.0]]), np.array([[0.4, 0.6]])).round(4).tolist()  # 0.6 sqrt(2)
    [0.8485]
    """
    return np.asarray(np.linalg.norm(p - q, axis=1))


def _log_others(logs: Doubles) -> Doubles:
    """log(1 - p_j) of every class [n, classes], out of log-probabilities."""
    top = logs.argmax(axis=1)
    rows = np.arange(len(logs))
    shares = np.exp(logs)
    # 1 - p loses everything where p is nearly 1, which only the largest can be: there the others are summed instead.
    found = np.log1p(-np.where(shares < 0.9, shares, 0.0))
    others = logs.copy()
    others[rows, top] = -np.inf
    second = others.max(axis=1)
    summed = second + np.log(np.exp(others - second[:, None]).sum(axis=1))
    found[rows, top] = summed
    return np.asarray(found)


def _check(logits: Floats, labels: Labels) -> None:
    if logits.ndim != 2 or logits.shape[:1] != labels.shape:
        raise ValueError(f"logits have shape {logits.shape}; allowed: ({len(labels)}, classes), one row for each label")
    if labels.size and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; allowed: 0 to {logits.shape[1] - 1}")
    if not np.isfinite(logits).all():
        raise ValueError("a logit is NaN or infinite")
