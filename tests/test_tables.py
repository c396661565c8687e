"""What a board says: means, gaps, intervals, ties, worst cases and ranks, against numbers worked out by hand or with numpy and scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from by_hand import ORACLES, Value, anchors, beside, cell, record
from scipy import stats as scipy_stats

from unlearnbench.api import UserError
from unlearnbench.records import Record
from unlearnbench.tables import HELD_OUT, Board, Row, boards

PROBABILITY = ("probability", None)
RELEARNED = ("probability", "relearning")
UTILITY = ("model_utility", None)


def board_of(records: Sequence[Record]) -> Board:
    (board,) = boards(records)
    return board


def row_of(board: Board, label: str) -> Row:
    return next(row for row in board.rows if row.label == label)


def method(label: str = "npo", seed: int = 0, probability: Value = 0.5, utility: Value = 1.0, **more: object) -> Record:
    return record(label, seed, {"probability": probability, "model_utility": utility}, **more)


def test_a_score_is_the_mean_over_seeds_with_its_gap_and_prediction_interval() -> None:
    board = board_of(beside(anchors(), method(seed=0, probability=0.5), method(seed=1, probability=0.7)))
    score = row_of(board, "npo").scores[PROBABILITY]
    assert score.value == pytest.approx(0.6)
    assert score.gap == pytest.approx(0.4)
    half = scipy_stats.t.ppf(0.975, 3) * np.std(ORACLES, ddof=1) * math.sqrt(1 + 1 / 4)
    assert score.gap_interval is not None
    assert score.gap_interval[:2] == pytest.approx((0.4 - half, 0.4 + half))
    assert score.gap_interval.covers == "oracles"
    assert score.anchored == pytest.approx(0.5)  # halfway from 0.2 to 1
    assert score.tie is False
    assert score.seeds == 2
    assert score.reason is None
    assert row_of(board, "original").scores[PROBABILITY].anchored == pytest.approx(1)
    assert row_of(board, "oracle").scores[PROBABILITY].anchored == pytest.approx(0)
    assert row_of(board, "npo").scores[UTILITY].anchored is None


def test_the_interval_of_a_mean_comes_from_its_clusters() -> None:
    means = [[0.1, 0.4, 0.7], [0.3, 0.5, 0.4]]
    records = [method(seed=seed, probability=values) for seed, values in enumerate(means)]
    score = row_of(board_of(beside(anchors(), *records)), "npo").scores[PROBABILITY]
    by_cluster = np.mean(means, axis=0)
    half = scipy_stats.t.ppf(0.975, 2) * np.std(by_cluster, ddof=1) / math.sqrt(3)
    assert score.interval is not None
    assert score.interval.covers == "clusters"
    assert score.interval.low == pytest.approx(max(0.0, 0.4 - half))
    assert score.interval.high == pytest.approx(0.4 + half)


def test_from_five_seeds_on_the_interval_covers_seeds() -> None:
    records = [method(seed=seed, probability=[0.1 * seed, 0.5, 0.6]) for seed in range(5)]
    score = row_of(board_of(beside(anchors(), *records)), "npo").scores[PROBABILITY]
    assert score.interval is not None
    assert score.interval.covers == "seeds and clusters"


def test_an_interval_stays_within_the_bounds() -> None:
    score = row_of(board_of(beside(anchors(), method(probability=[0.0, 1.0, 1.0]))), "npo").scores[PROBABILITY]
    assert score.interval is not None
    assert score.interval[:2] == (0.0, 1.0)


def test_ends_given_by_the_cells_are_averaged() -> None:
    cells = [cell("probability", 0.5, interval=(0.2, 0.6)), cell("probability", 0.7, interval=(0.4, 0.8))]
    records = [method(seed=seed, probability=item) for seed, item in enumerate(cells)]
    score = row_of(board_of(beside(anchors(), *records)), "npo").scores[PROBABILITY]
    assert score.interval is not None
    assert score.interval.covers == "items"
    assert score.interval[:2] == pytest.approx((0.3, 0.7))


def test_an_interval_of_the_cells_says_what_it_covers() -> None:
    found = method(probability=cell("probability", 0.5, interval=(0.2, 0.6), covers="clusters"))
    score = row_of(board_of(beside(anchors(), found)), "npo").scores[PROBABILITY]
    assert score.interval is not None
    assert score.interval.covers == "clusters"


@pytest.mark.parametrize(
    "values", [[0.5], [[0.5]], [[0.5, 0.6], 0.6], [[0.5, 0.6], [0.5, 0.6, 0.7]]], ids=["number", "one cluster", "one without", "other rows"]
)
def test_without_common_clusters_there_is_no_interval(values: list[Value]) -> None:
    records = [method(seed=seed, probability=value) for seed, value in enumerate(values)]
    assert row_of(board_of(beside(anchors(), *records)), "npo").scores[PROBABILITY].interval is None


# --------------------------------------------------------------------------------------------------------------------------- ties


@pytest.mark.parametrize(
    ("n_originals", "n_oracles", "signal", "tie"), [(2, 4, True, True), (1, 4, True, None), (2, 3, True, None), (2, 4, False, None)]
)
def test_ties_need_four_oracles_two_originals_and_a_signal(n_originals: int, n_oracles: int, signal: bool, tie: bool | None) -> None:
    originals = [{"probability": 1.0}] * n_originals
    oracles = [{"probability": value} for value in ORACLES[:n_oracles]]
    board = board_of(beside(anchors(originals, oracles, signal=signal), record("npo", 0, {"probability": 0.25}, signal=signal)))
    assert board.claims_ties is (tie is True)
    assert row_of(board, "npo").scores[PROBABILITY].tie is tie


def test_a_failed_anchor_does_not_count() -> None:
    records = beside(anchors(), method())
    broken = records[-2].model_copy(update={"status": "failed", "reason": "no memory", "cells": ()})
    assert broken.trial.role == "oracle"
    board = board_of([*records[:-2], broken, records[-1]])
    assert board.oracles == 3
    assert not board.claims_ties
    score = row_of(board, "oracle").scores[PROBABILITY]
    assert score.value == pytest.approx(0.2)
    assert score.reason == "1 of 4 seeds missing: failed: no memory"
    assert row_of(board, HELD_OUT).scores[PROBABILITY].value == pytest.approx(0.3)


def test_a_tie_is_where_one_more_oracle_could_lie() -> None:
    edge = 0.2 + scipy_stats.t.ppf(0.975, 3) * np.std(ORACLES, ddof=1) * math.sqrt(1.25)
    inside, outside = (method(label, probability=float(value)) for label, value in (("in", edge - 1e-6), ("out", edge + 1e-6)))
    board = board_of(beside(anchors(), inside, outside))
    assert row_of(board, "in").scores[PROBABILITY].tie is True
    assert row_of(board, "out").scores[PROBABILITY].tie is False


def test_the_pool_is_not_judged_against_itself_and_the_held_out_oracle_is_judged_against_the_others() -> None:
    board = board_of(beside(anchors()))
    assert row_of(board, "oracle").scores[PROBABILITY].tie is None
    held_out = row_of(board, HELD_OUT)
    assert held_out.role == "held-out"
    score = held_out.scores[PROBABILITY]
    assert score.value == pytest.approx(ORACLES[3])
    assert score.gap == pytest.approx(ORACLES[3] - np.mean(ORACLES[:3]))
    half = scipy_stats.t.ppf(0.975, 2) * np.std(ORACLES[:3], ddof=1) * math.sqrt(1 + 1 / 3)
    assert score.gap_interval is not None
    assert score.gap_interval.high - score.gap_interval.low == pytest.approx(2 * half)


def test_two_oracles_leave_none_to_hold_out_and_one_gives_no_gap() -> None:
    oracles = [{"probability": 0.1}, {"probability": 0.2}]
    board = board_of(beside(anchors(oracles=oracles), record("npo", 0, {"probability": 0.5})))
    assert HELD_OUT not in [row.label for row in board.rows]
    assert row_of(board, "npo").scores[PROBABILITY].gap == pytest.approx(0.35)
    board = board_of(beside(anchors(oracles=oracles[:1]), record("npo", 0, {"probability": 0.5})))
    score = row_of(board, "npo").scores[PROBABILITY]
    assert (score.gap, score.gap_interval, score.anchored) == (None, None, None)
    assert board.blunt == (PROBABILITY,)


# ---------------------------------------------------------------------------------------------------------------- missing values


def test_missing_cells_have_a_reason_and_no_value() -> None:
    rows = [
        record("na", 0, {"probability": "na: no tokenizer", "model_utility": 1.0}),
        record("failed", 0, {"probability": "failed: NaN", "model_utility": 1.0}),
        record("absent", 0, {"model_utility": 1.0}),
        record("crashed", 0, status="failed", reason="out of memory"),
        record("skipped", 0, status="skipped", reason="for language alone"),
    ]
    board = board_of([*beside(anchors(), *rows[:4]), rows[4]])
    reasons = {"na": "N/A: no tokenizer", "failed": "failed: NaN", "absent": "not measured"}
    reasons |= {"crashed": "failed: out of memory", "skipped": "skipped: for language alone"}
    for label, reason in reasons.items():
        row = row_of(board, label)
        score = row.scores[PROBABILITY]
        assert (score.value, score.gap, score.anchored, score.seeds, score.reason) == (None, None, None, 0, reason)
        assert row.worst is None
        assert row.rank is None
        assert row.barred == (reason if label in ("crashed", "skipped") else "1 of 1 forget scores missing")


def test_a_failed_seed_is_noted_and_the_others_count() -> None:
    board = board_of(beside(anchors(), method(seed=0, probability=0.4), record("npo", 1, status="failed", reason="loss is NaN")))
    score = row_of(board, "npo").scores[PROBABILITY]
    assert score.value == pytest.approx(0.4)
    assert score.seeds == 1
    assert score.reason == "1 of 2 seeds missing: failed: loss is NaN"


def test_the_strongest_stage_is_shown_and_an_attack_that_never_began_says_why() -> None:
    early = cell("relearning:probability", 0.3, step=0, final=False)
    failed_early = cell("relearning:probability", "failed: early", step=0, final=False)
    found = anchors(
        [{"probability": 1.0, "relearning:probability": 1.0}] * 2, [{"probability": v, "relearning:probability": v} for v in ORACLES]
    )
    strong = method("strong").model_copy(update={"cells": (early, failed_early, cell("relearning:probability", 0.6))})
    refused = record("refused", 0, {"relearning:probability": "na: changes no weights"})
    board = board_of(beside(found, strong, refused))
    assert board.headline == (PROBABILITY, RELEARNED)
    assert row_of(board, "strong").scores[RELEARNED].value == pytest.approx(0.6)
    assert row_of(board, "refused").scores[RELEARNED].reason == "N/A: changes no weights"


def test_a_score_that_no_row_has_is_no_column() -> None:
    diagnostic = cell("cka", "failed: no features", side="diagnostic", headline=False)
    more = {"relearning:probability": "na: not for this task", "rouge": "failed: no text", "model_utility": 1.0}
    npo = record("npo", 0, {"probability": 0.3, **more})
    board = board_of(beside(anchors(), npo.model_copy(update={"cells": (*npo.cells, diagnostic)})))
    assert board.columns == (PROBABILITY, UTILITY)
    assert board.absent == {RELEARNED: "N/A: not for this task", ("rouge", None): "failed: no text"}
    assert row_of(board, "npo").rank == 1


# ------------------------------------------------------------------------------------------------------------------ worst and rank


def two_columns() -> list[Record]:
    return anchors(
        [{"probability": 1.0, "relearning:probability": 0.6, "model_utility": 1.0}] * 2,
        [{"probability": v, "relearning:probability": v, "model_utility": 0.8} for v in ORACLES],
    )


def test_worst_is_the_largest_anchored_score_and_kept_the_smallest_share() -> None:
    npo = record("npo", 0, {"probability": 0.4, "relearning:probability": 0.5, "model_utility": 0.72})
    board = board_of(beside(two_columns(), npo))
    row = row_of(board, "npo")
    assert row.scores[PROBABILITY].anchored == pytest.approx(0.25)
    assert row.scores[RELEARNED].anchored == pytest.approx(0.75)
    assert row.worst == pytest.approx(0.75)
    assert row.kept == pytest.approx(0.9)
    assert row_of(board, "original").worst == pytest.approx(1)
    assert row_of(board, "original").kept == pytest.approx(1.25)


@pytest.mark.parametrize(("two_sided", "worst"), [(True, 0.125), (False, -0.125)])
def test_a_score_that_tells_to_both_sides_counts_its_distance(two_sided: bool, worst: float) -> None:
    below = method(probability=cell("probability", 0.1, two_sided=two_sided))
    row = row_of(board_of(beside(anchors(), below)), "npo")
    assert row.worst == pytest.approx(worst)
    assert row.scores[PROBABILITY].gap == pytest.approx(-0.1)


def test_kept_is_the_smallest_share_and_leaves_out_what_is_better_low() -> None:
    full = {"probability": 1.0, "model_utility": 1.0, "accuracy": 0.5, "perplexity": 0.9}
    found = anchors([full] * 2, [{**full, "probability": v} for v in ORACLES])
    npo = record("npo", 0, {"probability": 0.3, "model_utility": 0.9, "accuracy": 0.425, "perplexity": 0.1})
    board = board_of(beside(found, npo))
    assert len(board.utility) == 3
    assert row_of(board, "npo").kept == pytest.approx(0.85)


def test_a_missing_score_bars_from_a_rank() -> None:
    half = record("half", 0, {"probability": 0.2, "model_utility": 1.0})
    useless = record("useless", 0, {"probability": 0.2, "relearning:probability": 0.2, "model_utility": "failed: NaN"})
    board = board_of(beside(two_columns(), half, useless))
    assert row_of(board, "half").worst is None
    assert row_of(board, "half").barred == "1 of 2 forget scores missing"
    assert row_of(board, "useless").kept is None
    assert row_of(board, "useless").worst == pytest.approx(0)
    assert row_of(board, "useless").barred == "a utility score is missing"
    assert [row.rank for row in board.rows] == [None] * len(board.rows)


def test_methods_are_ranked_by_worst_case_behind_the_utility_gate() -> None:
    rows = [
        method("second", probability=0.5),
        method("gone", probability=0.2, utility=0.79),
        method("first", probability=0.3),
        method("edge", probability=0.6, utility=0.8),
        method("lost", probability="failed: NaN"),
        record("collapsed", 0, {"probability": 0.0, "model_utility": 0.0}),
        record("matching", 0, {"probability": 0.2, "model_utility": 1.0}),
    ]
    board = board_of(beside(anchors(), *rows))
    assert [row.label for row in board.rows] == [
        *("original", "oracle", HELD_OUT, "matching", "collapsed"),
        *("first", "second", "edge", "gone", "lost"),
    ]
    assert [row.rank for row in board.rows] == [None] * 5 + [1, 2, 3, None, None]
    assert row_of(board, "gone").barred == "keeps 0.79 of the utility, less than 0.8"
    assert row_of(board, "collapsed").barred is None


def test_without_utility_columns_worst_alone_ranks() -> None:
    board = board_of(
        beside(anchors([{"probability": 1.0}] * 2, [{"probability": v} for v in ORACLES]), record("npo", 0, {"probability": 0.3}))
    )
    assert row_of(board, "npo").kept is None
    assert row_of(board, "npo").rank == 1


def test_a_column_that_cannot_tell_the_anchors_apart_judges_nobody() -> None:
    spread = np.std(ORACLES, ddof=1)
    near, far = 0.2 + 2.99 * spread, 0.2 + 3.01 * spread
    for original, blunt in ((near, (RELEARNED,)), (far, ())):
        found = anchors(
            [{"probability": 1.0, "relearning:probability": float(original)}] * 2,
            [{"probability": v, "relearning:probability": v} for v in ORACLES],
        )
        board = board_of(beside(found, record("npo", 0, {"probability": 0.3, "relearning:probability": 0.9})))
        assert board.blunt == blunt
        row = row_of(board, "npo")
        assert (row.scores[RELEARNED].anchored is None) == bool(blunt)
        assert row.worst == pytest.approx(0.125 if blunt else 0.7 / (original - 0.2))


def test_equal_anchors_tell_nothing_apart() -> None:
    board = board_of(beside(anchors([{"probability": 0.2}] * 2, [{"probability": 0.2}] * 4), record("npo", 0, {"probability": 0.9})))
    assert board.blunt == (PROBABILITY,)
    assert row_of(board, "npo").worst is None
    assert row_of(board, "npo").barred == "no score that tells original and oracle apart"


def test_a_board_without_signal_ranks_and_ties_nothing() -> None:
    board = board_of(beside(anchors(signal=False), method(probability=0.2, signal=False)))
    row = row_of(board, "npo")
    assert (row.rank, row.worst, row.barred) == (None, None, "no signal")
    assert row.scores[PROBABILITY].tie is None
    assert row.scores[PROBABILITY].gap == pytest.approx(0)
    assert board.comparisons == ()


# ----------------------------------------------------------------------------------------------------------------- which records


def test_a_native_row_is_judged_beside_its_own_anchors_and_the_standard_utility() -> None:
    standard = anchors()
    own = [
        record("native-original", 0, {"probability": 0.9, "model_utility": 0.5}, role="original", native="native"),
        *(
            record("native-oracle", 1000 + i, {"probability": 0.4 + v, "model_utility": 0.5}, role="oracle", native="native")
            for i, v in enumerate((0.0, 0.02, 0.04, 0.02))
        ),
    ]
    native = method("native", probability=0.66, utility=0.9)
    board = board_of(beside(standard, method()) + beside(own, native))
    assert (board.originals, board.oracles) == (2, 4)
    row = row_of(board, "native")
    assert row.scores[PROBABILITY].gap == pytest.approx(0.66 - 0.42)
    assert row.scores[PROBABILITY].anchored == pytest.approx(0.24 / 0.48)
    assert row.kept == pytest.approx(0.9)
    assert row_of(board, "npo").scores[PROBABILITY].gap == pytest.approx(0.3)
    assert row_of(board, "native-original").role == "original"


def test_a_native_row_without_its_anchors_is_not_judged_beside_others() -> None:
    lonely = method("native").model_copy(update={"anchors": {"original": ("x",), "oracle": ("y",)}})
    score = row_of(board_of([*beside(anchors()), lonely]), "native").scores[PROBABILITY]
    assert (score.value, score.gap, score.anchored) == (0.5, None, None)


def test_boards_are_parted_by_suite_scenario_request_and_step() -> None:
    places = [
        {"suite": "a", "request": "forget10"},
        {"suite": "a", "request": "forget5"},
        {"suite": "a", "request": "sequence"},
        {"suite": "a", "request": "sequence", "step": 1},
        {"suite": "a", "scenario": "digits"},
        {"suite": "b", "request": "forget10"},
    ]
    records = [item for place in reversed(places) for item in beside(anchors(**place), method(**place))]
    found = boards(records)
    assert [(board.suite, board.title) for board in found] == [
        ("a", "authors / forget10"),
        ("a", "authors / forget5"),
        ("a", "authors / sequence, step 1"),
        ("a", "authors / sequence, step 2"),
        ("a", "digits / forget10"),
        ("b", "authors / forget10"),
    ]
    assert all(len(board.rows) == 4 for board in found)


def test_the_same_record_twice_is_one_and_two_of_a_seed_are_refused() -> None:
    records = beside(anchors(), method())
    assert boards(records + records[-1:]) == boards(records)
    stale = method(hyperparameters={"lr": 2.0})
    with pytest.raises(UserError, match=r"npo-\w+\.json and npo-\w+\.json both are npo on authors/forget10, seed 0; one of them is stale"):
        boards([*records, stale])


def test_a_cell_is_found_by_metric_and_attack() -> None:
    cells = (
        cell("rouge", 0.1),
        cell("relearning:rouge", 0.2, step=0, final=False),
        cell("relearning:rouge", 0.3, step=4, final=True),
        cell("quantised:rouge", "na: no weights"),
    )
    made = record("npo").model_copy(update={"cells": cells})
    assert made.cell("rouge") is cells[0]
    assert made.cell("rouge", "relearning") is cells[2]
    assert made.cell("rouge", "quantised") is cells[3]
    assert made.cell("rouge", "absent") is None
    assert made.cell("absent") is None
