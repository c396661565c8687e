"""Seeded draws of rows by their identity: the same rows are drawn from a split in whatever order it stands, for every model.

Knows identities and labels; no model and no metric.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


def drawn_order(ids: Sequence[str], seed: int) -> Positions:
    """Positions of the rows in a pseudo-random order that depends on their identities and the seed alone [n].

    Args:
        ids: identity of each row, unique.
        seed: of the draw.

    >>> ids = ["a", "b", "c", "d"]
    >>> [ids[i] for i in drawn_order(ids, 0)] == [ids[::-1][i] for i in drawn_order(ids[::-1], 0)]
    True
    """
    keys = [hashlib.sha256(f"{seed}/{row}".encode()).hexdigest() for row in ids]
    return np.array(sorted(range(len(ids)), key=keys.__getitem__), dtype=np.int64)


def halves(ids: Sequence[str], labels: NDArray[Any], seed: int) -> tuple[Positions, Positions]:
    """Positions of two halves of the rows, each with as many of every class; of an odd number the first half has one more.

    Args:
        ids: identity of each row, unique.
        labels: class of each row [n].
        seed: of the draw.

    >>> first, second = halves(["a", "b", "c", "d", "e"], np.array([0, 1, 0, 1, 1]), seed=0)
    >>> sorted([*first.tolist(), *second.tolist()]), len(first)
    ([0, 1, 2, 3, 4], 3)
    """
    order = drawn_order(ids, seed)
    first: list[int] = []
    second: list[int] = []
    for label in np.unique(labels):
        rows = [int(i) for i in order if labels[i] == label]
        middle = (len(rows) + 1) // 2
        first += rows[:middle]
        second += rows[middle:]
    return np.array(first, dtype=np.int64), np.array(second, dtype=np.int64)
