"""Membership learners: what they find in made-up classifiers, thresholds by counting, and draws that do not depend on order."""

import numpy as np
import pytest

from unlearnbench.api import NotMeasurable
from unlearnbench.evidence import Evidence
from unlearnbench.membership_classifiers import (
    best_threshold,
    feature,
    known_rows,
    logistic_accuracy,
    logistic_says_member,
    logits_of,
    svc_says_member,
    threshold_says_member,
)


def seen(sizes: dict[str, int], shift: dict[str, float], seed: int = 0, classes: int = 3) -> Evidence:
    """A classifier whose label's logit is raised by the split's shift."""
    draw = np.random.default_rng(seed)
    ids = {split: tuple(f"{split}/{i}" for i in range(n)) for split, n in sizes.items()}
    labels = {split: draw.integers(0, classes, n) for split, n in sizes.items()}
    arrays = {}
    for split, n in sizes.items():
        logits = draw.normal(size=(n, classes))
        logits[np.arange(n), labels[split]] += shift[split]
        arrays[logits_of(split)] = logits
    return Evidence(ids=ids, clusters=ids, arrays=arrays, labels=labels)


SIZES = {"forget": 80, "retain": 300, "test": 150}


@pytest.mark.parametrize("says_member", [svc_says_member, logistic_says_member])
def test_forget_rows_go_with_those_they_are_like(says_member: object) -> None:
    assert callable(says_member)
    for forget, low, high in ((8.0, 0.9, 1.0), (0.0, 0.0, 0.25)):
        known = known_rows(seen(SIZES, {"forget": forget, "retain": 8.0, "test": 0.0}), limit=1000, seed=0)
        assert low <= says_member(*known.features("confidence")).mean() <= high


def test_as_many_members_as_others_drawn_by_identity() -> None:
    evidence = seen(SIZES, {"forget": 1.0, "retain": 2.0, "test": 0.0})
    known = known_rows(evidence, limit=1000, seed=0)
    assert [len(part[1]) for part in known] == [150, 150, 80]
    assert [len(part[1]) for part in known_rows(evidence, limit=40, seed=0)] == [40, 40, 80]
    # Another order of the same rows: the same members.
    order = np.random.default_rng(3).permutation(300)
    mixed = Evidence(
        ids={**evidence.ids, "retain": tuple(evidence.ids["retain"][i] for i in order)},
        clusters=evidence.clusters,
        arrays={**evidence.arrays, logits_of("retain"): evidence.arrays[logits_of("retain")][order]},
        labels={**evidence.labels, "retain": evidence.labels["retain"][order]},
    )
    np.testing.assert_array_equal(known_rows(mixed, limit=40, seed=0).members[0], known_rows(evidence, limit=40, seed=0).members[0])
    assert (known_rows(evidence, limit=40, seed=1).members[0] != known_rows(evidence, limit=40, seed=0).members[0]).any()
    with pytest.raises(NotMeasurable, match="retain or test has 1 rows"):
        known_rows(seen({**SIZES, "test": 1}, {"forget": 1.0, "retain": 2.0, "test": 0.0}), limit=10, seed=0)


def test_features_have_a_column_each_but_probabilities() -> None:
    logits, labels = np.log([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]), np.array([1, 1])
    assert feature("confidence", logits, labels).tolist() == [[pytest.approx(0.5)], [pytest.approx(0.3)]]
    assert feature("correctness", logits, labels).tolist() == [[1.0], [0.0]]
    assert feature("probability", logits, labels)[1].tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert feature("entropy", logits, labels).shape == feature("modified_entropy", logits, labels).shape == (2, 1)
    assert feature("modified_entropy", logits, labels)[0, 0] < feature("modified_entropy", logits, labels)[1, 0]


def test_best_threshold_by_counting() -> None:
    draw = np.random.default_rng(4)
    for _ in range(20):
        members, others = np.round(draw.normal(1, 1, 9), 1), np.round(draw.normal(0, 1, 14), 1)
        found = best_threshold(members, others)

        def rate(t: float, members: np.ndarray = members, others: np.ndarray = others) -> float:
            return float(np.mean(members >= t) + np.mean(others < t))

        assert rate(found) == pytest.approx(max(rate(t) for t in np.concatenate([members, others])))
    assert best_threshold(np.array([3.0, 1.0]), np.array([3.0, 1.0])) == 3.0  # all are as good: the first member's


def test_thresholds_are_those_of_the_class() -> None:
    members = np.array([0.9, 0.8, 0.4, 0.3]), np.array([0, 0, 1, 1])
    others = np.array([0.7, 0.6, 0.2, 0.1, 0.05]), np.array([0, 0, 1, 1, 1])
    asked = np.array([0.75, 0.85, 0.25, 0.35, 0.35, 0.25]), np.array([0, 0, 1, 1, 2, 2])
    # Of the unknown class 2 the threshold is that of all rows: 0.3, which takes all members and spares three of five others.
    assert threshold_says_member(members, others, asked).tolist() == [False, True, False, True, True, False]


def test_population_attack_is_at_chance_on_rows_alike_and_not_on_others() -> None:
    draw = np.random.default_rng(5)
    same = logistic_accuracy(draw.normal(size=(300, 1)), draw.normal(size=(300, 1)), seed=0)
    apart = logistic_accuracy(draw.normal(size=(300, 1)), draw.normal(3, 1, size=(300, 1)), seed=0)
    assert (len(same), abs(same.mean() - 0.5) < 0.08) == (10, True)
    assert apart.mean() > 0.88  # the normal distribution at 1.5
    assert (logistic_accuracy(*draw.normal(size=(2, 40, 1)), seed=0) >= 0).all()
