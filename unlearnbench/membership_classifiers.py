"""Membership attacks on a classifier that need no other model: a small learner is fitted to rows that are known to be in or out.

Rows of "retain" are known members, rows of "test" known non-members; what the learner says of "forget" is the finding. The features
are those of Song and Mittal 2021, arXiv 2003.10595. Knows logits, labels and learners; no model and no plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlearnbench.api import Need, NotMeasurable
from unlearnbench.confidence import Floats, Labels, correct, entropy, modified_entropy, probabilities, true_class_probability
from unlearnbench.drawing import drawn_order
from unlearnbench.evidence import Evidence

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]
Scalar = Literal["confidence", "correctness", "entropy", "modified_entropy"]
Feature = Literal["confidence", "correctness", "entropy", "modified_entropy", "probability"]

KNOWN_IN, KNOWN_OUT = "retain", "test"
SPLITS = ("forget", KNOWN_IN, KNOWN_OUT)
MIN_ROWS = 2
"""Rows of either kind that a learner is fitted to at least."""

SCALARS: Mapping[Scalar, Callable[[Floats, Labels], Doubles]] = {
    "confidence": true_class_probability,
    "correctness": correct,
    "entropy": lambda logits, labels: entropy(logits),
    "modified_entropy": modified_entropy,
}
"""Features with one number per row."""


def feature(name: Feature, logits: Floats, labels: Labels) -> Doubles:
    """A feature of each row [n, 1], or [n, classes] for all probabilities.

    >>> feature("probability", np.log([[1.0, 3.0]]), np.array([1])).round(2).tolist()
    [[0.25, 0.75]]
    """
    return probabilities(logits) if name == "probability" else SCALARS[name](logits, labels)[:, None]


class Known(NamedTuple):
    """Logits and labels of rows that are known to be members, of as many that are known not to be, and of the rows asked about."""

    members: tuple[Floats, Labels]
    others: tuple[Floats, Labels]
    asked: tuple[Floats, Labels]

    def features(self, name: Feature) -> tuple[Doubles, Doubles, Doubles]:
        """One feature of the three."""
        return feature(name, *self.members), feature(name, *self.others), feature(name, *self.asked)


def logits_of(split: str) -> Need:
    """The need of a split's logits."""
    return Need(what="logits", split=split)


def known_rows(evidence: Evidence, *, limit: int, seed: int) -> Known:
    """As many rows of "retain" as of "test", at most `limit` of either, drawn by identity; and all of "forget" in its order.

    Raises:
        NotMeasurable: there are too few rows to fit anything.
    """
    count = min(len(evidence.ids[KNOWN_IN]), len(evidence.ids[KNOWN_OUT]), limit)
    if count < MIN_ROWS:
        raise NotMeasurable(f"{KNOWN_IN} or {KNOWN_OUT} has {count} rows; a membership learner is fitted to {MIN_ROWS} or more of either")

    def drawn(split: str) -> tuple[Floats, Labels]:
        order = drawn_order(evidence.ids[split], seed)[:count]
        return evidence.array(logits_of(split))[order], evidence.labels[split][order]

    return Known(drawn(KNOWN_IN), drawn(KNOWN_OUT), (evidence.array(logits_of("forget")), evidence.labels["forget"]))


# ----------------------------------------------------------------------------------------------------------------------- learners


def svc_says_member(members: Doubles, others: Doubles, asked: Doubles) -> Flags:
    """What a support-vector classifier (C 3, RBF kernel, gamma 1 / width) says of each row asked about [q].

    Args:
        members: features of known members [n, width].
        others: features of known non-members [m, width].
        asked: features [q, width].
    """
    from sklearn.svm import SVC

    learner = SVC(C=3, gamma="auto", kernel="rbf")
    learner.fit(*_stacked(members, others))
    return np.asarray(learner.predict(asked), dtype=bool)


def logistic_says_member(members: Doubles, others: Doubles, asked: Doubles) -> Flags:
    """What a logistic regression (C 1, classes weighted to equal weight) says of each row asked about [q]; arguments as above."""
    from sklearn.linear_model import LogisticRegression

    learner = LogisticRegression(class_weight="balanced")
    learner.fit(*_stacked(members, others))
    return np.asarray(learner.predict(asked), dtype=bool)


def logistic_accuracy(members: Doubles, others: Doubles, *, seed: int, repeats: int = 10) -> Doubles:
    """Accuracy of a logistic regression on a tenth of the rows that it was not fitted to [repeats], by stratified random splits.

    Args:
        members: features [n, width]; called 1.
        others: features [m, width]; called 0, and first in the order.
        seed: of the splits.
        repeats: number of splits.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

    rows, marks = np.concatenate([others, members]), np.repeat([0, 1], [len(others), len(members)])
    splits = StratifiedShuffleSplit(n_splits=repeats, random_state=seed)
    return np.asarray(cross_val_score(LogisticRegression(), rows, marks, cv=splits, scoring="accuracy"), dtype=np.float64)


def best_threshold(members: Doubles, others: Doubles) -> float:
    """The value from which on a row is best called a member: largest mean of the two rates of right calls.

    Of equally good ones it is the first, members before others in their order.

    Args:
        members: values of known members [n], at least one.
        others: values of known non-members [m], at least one.

    >>> best_threshold(np.array([0.9, 0.7, 0.2]), np.array([0.3, 0.1]))
    0.7
    """
    values = np.concatenate([members, others])
    caught = 1 - np.searchsorted(np.sort(members), values, "left") / len(members)
    spared = np.searchsorted(np.sort(others), values, "left") / len(others)
    # Rates are multiples of 1 / n and 1 / m: what is equal but for the last digit is equal.
    return float(values[int(np.argmax(np.round(caught + spared, 12)))])


def threshold_says_member(members: tuple[Doubles, Labels], others: tuple[Doubles, Labels], asked: tuple[Doubles, Labels]) -> Flags:
    """Call a row a member from its class's threshold up [q]; of a class without rows on both sides, from the threshold of all classes.

    Args:
        members: values [n] of known members, and their classes.
        others: values [m] of known non-members, and their classes.
        asked: values [q] and classes.
    """
    pooled = best_threshold(members[0], others[0])
    thresholds = np.full(len(asked[0]), pooled)
    for label in np.unique(asked[1]):
        ours, theirs = members[0][members[1] == label], others[0][others[1] == label]
        if len(ours) and len(theirs):
            thresholds[asked[1] == label] = best_threshold(ours, theirs)
    return np.asarray(asked[0] >= thresholds)


def _stacked(members: Doubles, others: Doubles) -> tuple[Doubles, NDArray[Any]]:
    return np.concatenate([members, others]), np.repeat([1, 0], [len(members), len(others)])
