"""Draws by identity: the same rows whatever the order, every class on both sides, another draw for another seed."""

import numpy as np

from unlearnbench.drawing import drawn_order, halves

IDS = [f"image/{i}" for i in range(200)]
LABELS = np.array([i % 7 for i in range(200)])


def test_order_depends_on_identity_and_seed_alone() -> None:
    order = drawn_order(IDS, 3)
    assert sorted(order.tolist()) == list(range(200))
    mixed = np.random.default_rng(0).permutation(200)
    again = drawn_order([IDS[i] for i in mixed], 3)
    assert [IDS[mixed[i]] for i in again] == [IDS[i] for i in order]
    assert drawn_order(IDS, 4).tolist() != order.tolist()
    assert abs(np.corrcoef(order, np.arange(200))[0, 1]) < 0.25  # no trace of the given order


def test_halves_have_every_class() -> None:
    first, second = halves(IDS, LABELS, 0)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(200))
    for label in range(7):
        ours, theirs = (LABELS[part] == label for part in (first, second))
        assert ours.sum() - theirs.sum() in (0, 1)
    mixed = np.random.default_rng(1).permutation(200)
    again = halves([IDS[i] for i in mixed], LABELS[mixed], 0)
    assert {IDS[mixed[i]] for i in again[0]} == {IDS[i] for i in first}
    assert set(halves(IDS, LABELS, 1)[0].tolist()) != set(first.tolist())
