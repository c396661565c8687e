"""Blind baseline: how well forget is told from holdout by somebody who never sees the model.

Blind Baselines Beat Membership Inference Attacks for Foundation Models. Das, Zhang, Tramer. 2024, arXiv 2406.16201. Where the two splits
differ in kind, every membership score tells them apart for that reason too; so this stands beside them, and a board says where it is above
one half beyond its interval. A logistic regression on words of the answers and their length, or on coarse pixels and the label, is fitted
to some clusters and ranks the rows of others. Deviations:

- No detector is made for a data set (the dates, names or n-grams of the paper); the features are the same for all, so that what they find
  is a lower bound: half does not prove that the splits are alike.
- Folds are of whole clusters: an author's name, which all his rows share, is no difference in kind.
- The AUC is the mean over folds. Scores of different folds are not alike: pooled, their AUC is below one half where nothing differs.

The file knows texts and pixels, and no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unlearnbench import stats
from unlearnbench.api import Audit, Estimate, Metric, Need, NotMeasurable, Scenario, Threat
from unlearnbench.drawing import drawn_order
from unlearnbench.evidence import Evidence
from unlearnbench.membership import text_of

Doubles = NDArray[np.float64]
Folds = NDArray[np.int64]

SPLITS = ("forget", "holdout")
WORDS = 2**14
"""Columns that words are hashed to."""
LEAST = 3
"""Folds, and so clusters of either split, at least: with two each learns from the other, and both find the same."""


class BlindBaseline(Metric):
    """AUC of a classifier of raw rows, forget against holdout, cross-validated."""

    paper = "arXiv 2406.16201"
    tasks = ("generate", "classify", "diffuse")
    level = Threat.T0
    bounds = (0.0, 1.0)
    direction = "higher"
    side = "diagnostic"
    curve = False

    folds: Annotated[int, Field(ge=LEAST)] = 10
    """Parts; no more than either split has clusters."""
    seed: int = 0
    """Of the parts."""

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Answers as texts, or coarse pixels."""
        return tuple(text_of(split) if scenario.task == "generate" else _pixels_of(split) for split in SPLITS)

    def measure(self, evidence: Evidence, audit: Audit) -> Estimate:
        """The AUC, 0.5 where nothing is found.

        Raises:
            NotMeasurable: a split lies in too few clusters to learn from some and judge on others.
        """
        fewest, where = min((len(set(evidence.clusters[split])), split) for split in SPLITS)
        if fewest < LEAST:
            raise NotMeasurable(f"the rows of {where!r} lie in {fewest} cluster(s); a blind baseline needs {LEAST} or more")
        # In an order of their own, so that every model's evidence gives the same sums.
        order = {split: drawn_order(evidence.ids[split], self.seed) for split in SPLITS}
        clusters = [[evidence.clusters[split][i] for i in order[split]] for split in SPLITS]
        folds = np.concatenate([folds_of(several, min(self.folds, fewest), self.seed) for several in clusters])
        texts = [evidence.references[text_of(split)] for split in SPLITS if text_of(split) in evidence.references]
        if texts:
            features = text_features([several[i] for split, several in zip(SPLITS, texts, strict=True) for i in order[split]])
        else:
            rows = [(evidence.array(_pixels_of(split))[order[split]], evidence.labels[split][order[split]]) for split in SPLITS]
            features = image_features(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))
        members = np.repeat([True, False], [len(order[split]) for split in SPLITS])
        covers = "items" if all(len(set(several)) == len(several) for several in clusters) else "clusters"
        return estimated(fold_aucs(features, members, folds), fewest, covers)


def folds_of(clusters: Sequence[str], count: int, seed: int) -> Folds:
    """The fold of each row [n], whole clusters together and as many clusters in each as can be.

    >>> folds_of(["a", "a", "b", "c"], 2, seed=0).tolist()
    [0, 0, 1, 0]
    """
    names = sorted(set(clusters))
    fold = {names[place]: number % count for number, place in enumerate(drawn_order(names, seed))}
    return np.array([fold[name] for name in clusters], dtype=np.int64)


def text_features(texts: Sequence[str]) -> Any:
    """Which words a text has, hashed, in rows of length 1, and how far its log-length is from the mean; sparse [n, WORDS + 1]."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(n_features=WORDS, binary=True).transform(texts)
    lengths = np.log1p([len(text) for text in texts])
    return hstack([words, csr_matrix(_standardised(lengths[:, None]))], format="csr")


def image_features(pixels: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> Doubles:
    """Pixels and indicators of the labels, each standardised, in rows of length 1 on average [n, pixels + classes]."""
    indicators = labels[:, None] == np.unique(labels)
    columns = _standardised(np.concatenate([pixels, indicators], axis=1).astype(np.float64))
    return np.asarray(columns / np.sqrt(columns.shape[1]))


def fold_aucs(features: Any, members: NDArray[np.bool_], folds: Folds) -> Doubles:
    """AUC on the rows of each fold of a logistic regression on the other folds [folds].

    Args:
        features: [n, width], sparse or not.
        members: which rows are to rank high [n].
        folds: the fold of each row [n], with members and others in each.
    """
    from sklearn.linear_model import LogisticRegression

    areas = []
    for fold in np.unique(folds):
        inside = folds == fold
        learner = LogisticRegression(class_weight="balanced", max_iter=1000).fit(features[~inside], members[~inside])
        # Rows that only rounding tells apart are tied.
        scores = np.round(learner.decision_function(features[inside]), 9)
        areas.append(stats.auc(scores[members[inside]], scores[~members[inside]]))
    return np.array(areas)


def estimated(areas: Doubles, pairs: int, covers: str) -> Estimate:
    """The mean of the folds' AUCs with its 95 % interval, which allows for what folds have in common.

    Of two folds each learns from the other. Where nothing differs, what a linear learner finds in fold k is the sum over the other folds l
    of products d_k d_l: any two of K folds share a term, so that they correlate with 1 / (K - 1). The mean then has twice the variance of
    one of independent folds, and their sample variance expects (K - 2) / (K - 1) of it. (Nadeau and Bengio 2003 take 1 / K.) Where the
    folds agree that they tell all apart, the far end is that of `stats.auc_interval`.

    Args:
        areas: AUC of each fold [K], K >= 3.
        pairs: disjoint pairs of clusters, one of either split.
        covers: what varies.

    >>> found = estimated(np.array([0.5, 0.6, 0.7]), 3, "items")  # 0.6, t with 2 degrees of freedom, sqrt(2 * 2 / (3 * 1)) * 0.1
    >>> round(float(found), 3), [round(end, 3) for end in found.interval]
    (0.6, [0.103, 1.0])
    """
    from scipy.special import stdtrit

    area, count = float(areas.mean()), len(areas)
    if area in (0.0, 1.0):
        far = 0.025 ** (1 / pairs)
        return Estimate(area, (far, 1.0) if area else (0.0, 1 - far), covers)
    half = float(stdtrit(count - 1, 0.975)) * float(areas.std(ddof=1)) * math.sqrt(2 * (count - 1) / (count * (count - 2)))
    return Estimate(area, (max(0.0, area - half), min(1.0, area + half)), covers)


def _standardised(columns: Doubles) -> Doubles:
    """With mean 0 and standard deviation 1 [n, width]; a column without spread is 0."""
    spread = columns.std(axis=0)
    return np.asarray((columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _pixels_of(split: str) -> Need:
    return Need(what="pixels", split=split)
