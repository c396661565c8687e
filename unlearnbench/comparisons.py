"""Paired comparisons of the best method with the others, on the rows and seeds that both were scored on. Reads records only; no torch.

Each pair of methods is compared on every headline score by the differences between their values of the same clusters of rows and the
same training seeds, which share what is hard about a row or a seed. The p-values of one board are adjusted together by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unlearnbench.intervals import Interval, paired_difference
from unlearnbench.records import Clusters, Record
from unlearnbench.stats import holm

Column = tuple[str, str | None]
"""A metric's label and the attack at whose strongest stage it is read, if any."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One method against another on one score, or the reason why they cannot be compared."""

    column: Column
    first: str
    second: str
    difference: float | None = None
    """Mean of the first minus mean of the second."""
    interval: Interval | None = None
    """95 % interval of the difference, not adjusted."""
    p: float | None = None
    """Two-sided, of this comparison alone."""
    adjusted: float | None = None
    """By Holm's method, over all comparisons of the board."""
    seeds: int = 0
    reason: str | None = None


def compare(columns: Sequence[Column], first: str, groups: Mapping[str, Sequence[Record]]) -> tuple[Comparison, ...]:
    """Compare one method with all others.

    Args:
        columns: the scores to compare on.
        first: the label of the method that is compared with the others.
        groups: the records of each method by label, one per seed.

    Returns:
        One comparison for each other method and column, method by method.
    """
    found = [_pair(column, first, other, groups[first], groups[other]) for other in groups if other != first for column in columns]
    adjusted = iter(holm([comparison.p for comparison in found if comparison.p is not None]))
    return tuple(comparison if comparison.p is None else replace(comparison, adjusted=next(adjusted)) for comparison in found)


def _pair(column: Column, first: str, second: str, ours: Sequence[Record], theirs: Sequence[Record]) -> Comparison:
    mine, others = _by_seed(column, ours), _by_seed(column, theirs)
    seeds = sorted(mine.keys() & others.keys())
    blank = Comparison(column=column, first=first, second=second, seeds=len(seeds))
    if not seeds:
        return replace(blank, reason="no seed for which both have values")
    pairs = [(mine[seed], others[seed]) for seed in seeds]
    clusters = [item for pair in pairs for item in pair if item is not None]
    if len(clusters) < 2 * len(pairs):
        return replace(blank, reason="no values per row")
    if len({(item.digest, item.counts) for item in clusters}) > 1:
        return replace(blank, reason="not scored on the same rows")
    counts = np.asarray(clusters[0].counts)
    if len(counts) < 2:
        return replace(blank, reason=f"{len(counts)} cluster of rows; at least 2 are needed")
    # A mean over seeds and rows depends on cluster sums alone, so each row may stand at its cluster's mean.
    a, b = (np.stack([np.repeat(item.means, counts) for item in side if item is not None]) for side in zip(*pairs, strict=True))
    test = paired_difference(a, b, np.repeat(np.arange(len(counts)), counts).tolist())
    return replace(blank, difference=test.difference, interval=test.interval, p=test.p)


def _by_seed(column: Column, records: Sequence[Record]) -> dict[int, Clusters | None]:
    """The values by cluster of each seed that has a value; None where the score is one number for all rows."""
    cells = {record.trial.seed: record.cell(*column) for record in records}
    return {seed: cell.clusters for seed, cell in cells.items() if cell is not None and cell.value is not None}
