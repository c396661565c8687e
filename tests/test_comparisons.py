"""The paired comparisons: against scipy's paired t test, adjusted over the board, and refused where rows do not match."""

from __future__ import annotations

import numpy as np
import pytest
from by_hand import anchors, beside, cell, record
from scipy import stats as scipy_stats

from unlearnbench.comparisons import Comparison, compare
from unlearnbench.records import Clusters, Record
from unlearnbench.tables import boards

ROUGE, PROBABILITY = ("rouge", None), ("probability", None)
OURS, THEIRS = [0.1, 0.3, 0.2, 0.4], [0.3, 0.4, 0.5, 0.45]


def one(ours: list[Record], theirs: list[Record]) -> Comparison:
    (found,) = compare([ROUGE], "ours", {"ours": ours, "theirs": theirs})
    return found


def test_one_seed_is_the_paired_t_test_over_clusters() -> None:
    found = one([record("ours", 0, {"rouge": OURS})], [record("theirs", 0, {"rouge": THEIRS})])
    test = scipy_stats.ttest_rel(OURS, THEIRS)
    assert found.difference == pytest.approx(np.mean(OURS) - np.mean(THEIRS))
    assert found.p == pytest.approx(test.pvalue)
    assert found.interval is not None
    assert found.interval[:2] == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.interval.covers == "clusters"
    assert (found.first, found.second, found.column, found.seeds, found.reason) == ("ours", "theirs", ROUGE, 1, None)
    assert found.adjusted == pytest.approx(test.pvalue)


def test_only_the_seeds_of_both_are_compared() -> None:
    ours = [record("ours", seed, {"rouge": [value + 0.1 * seed for value in OURS]}) for seed in (0, 1, 3)]
    theirs = [record("theirs", seed, {"rouge": THEIRS}) for seed in (1, 2, 0)]
    theirs.append(record("theirs", 3, {"rouge": "failed: NaN"}))
    found = one(ours, theirs)
    assert found.seeds == 2
    assert found.difference == pytest.approx(np.mean(OURS) + 0.05 - np.mean(THEIRS))


def test_p_values_are_adjusted_over_all_comparisons_of_the_board() -> None:
    groups = {
        "ours": [record("ours", 0, {"rouge": OURS, "probability": 0.5})],
        "theirs": [record("theirs", 0, {"rouge": THEIRS, "probability": 0.6})],
        "far": [record("far", 0, {"rouge": [0.8, 0.95, 0.9, 1.0], "probability": 0.7})],
    }
    found = compare([ROUGE, PROBABILITY], "ours", groups)
    assert [(item.second, item.column) for item in found] == [
        (label, column) for label in ("theirs", "far") for column in (ROUGE, PROBABILITY)
    ]
    near, far = found[0], found[2]
    assert near.p is not None
    assert far.p is not None
    assert far.p < near.p
    assert far.adjusted == pytest.approx(2 * far.p)
    assert near.adjusted == pytest.approx(near.p)
    assert [(item.p, item.adjusted, item.reason) for item in found[1::2]] == [(None, None, "no values per row")] * 2


def with_clusters(**changes: object) -> Record:
    made = cell("rouge", OURS)
    assert made.clusters is not None
    return record("theirs", 0, {"rouge": made.model_copy(update={"clusters": made.clusters.model_copy(update=changes)})})


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (record("theirs", 1, {"rouge": THEIRS}), "no seed for which both have values"),
        (record("theirs", 0, {"rouge": "na: no text"}), "no seed for which both have values"),
        (record("theirs", 0, status="failed", reason="x"), "no seed for which both have values"),
        (record("theirs", 0, {"rouge": 0.5}), "no values per row"),
        (with_clusters(digest=7), "not scored on the same rows"),
        (with_clusters(counts=(2, 2, 2, 3)), "not scored on the same rows"),
    ],
)
def test_what_does_not_match_is_not_compared(theirs: Record, reason: str) -> None:
    found = one([record("ours", 0, {"rouge": OURS})], [theirs])
    assert found.reason == reason
    assert (found.difference, found.p, found.adjusted, found.interval) == (None, None, None, None)


def test_one_cluster_is_too_few() -> None:
    clusters = Clusters(digest=1, means=(0.5,), counts=(4,))
    alone = {"rouge": cell("rouge", 0.5, clusters=clusters)}
    assert one([record("ours", 0, alone)], [record("theirs", 0, alone)]).reason == "1 cluster of rows; at least 2 are needed"


def test_a_board_compares_the_best_method_on_forget_scores_alone() -> None:
    values = {"npo": 0.0, "worse": 0.3, "barred": -0.1}
    rows = [
        record(label, 0, {"probability": [0.2 + shift, 0.3 + 2 * shift], "model_utility": 0.1 if label == "barred" else 1.0})
        for label, shift in values.items()
    ]
    (board,) = boards(beside(anchors(), *rows, record("collapsed", 0, {"probability": [0.0, 0.1], "model_utility": 1.0})))
    assert [(item.first, item.second, item.column) for item in board.comparisons] == [
        ("npo", "worse", PROBABILITY),
        ("npo", "barred", PROBABILITY),
    ]
    assert board.comparisons[0].difference == pytest.approx(-0.45)
