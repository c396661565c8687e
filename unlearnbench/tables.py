"""From records to boards: what one table shows, with every interval, gap and tie worked out. Reads records only; no torch.

A board is one request at one step. Its columns are the headline scores (also at the strongest stage of each attack) and the utility
scores; its rows the anchors, the sanity and reference rows, and the methods. How a board looks is in `report` and `picture`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unlearnbench.intervals import Interval, mean_interval, prediction_interval, tied
from unlearnbench.records import Cell, Record

MIN_ORACLES, MIN_ORIGINALS = 4, 2
"""Fewer than this many oracles or originals claim no ties."""
UTILITY_GATE = 0.8
"""A method keeps its rank only with this share of the oracles' utility."""
HELD_OUT = "oracle (held out)"
ROLE_ORDER = ("original", "oracle", "held-out", "reference", "sanity", "method")

Column = tuple[str, str | None]
"""A metric's label and the attack at whose strongest stage it is read, if any."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One cell of a board: the mean over seeds, or why there is none."""

    value: float | None = None
    interval: Interval | None = None
    """95 % interval of the mean."""
    gap: float | None = None
    """Value minus the mean of the oracles."""
    gap_interval: Interval | None = None
    """Where one more oracle of the pool's spread would fall, seen from the value."""
    tie: bool | None = None
    """None where no tie is claimed."""
    anchored: float | None = None
    """The value on the scale where the oracles are 0 and the originals 1."""
    seeds: int = 0
    reason: str | None = None
    """Why the value is missing, or what part of it is."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a board."""

    label: str
    role: str
    scores: dict[Column, Score]
    worst: float | None = None
    """The largest anchored headline score: 0 is the oracle, 1 the original."""
    kept: float | None = None
    """Utility as a share of the standard oracles', the smallest over the utility columns."""
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Board:
    """One table."""

    suite: str
    scenario: str
    request: str
    description: str
    step: int
    signal: bool
    headline: tuple[Column, ...]
    utility: tuple[Column, ...]
    rows: tuple[Row, ...]
    facts: dict[Column, Cell]
    """One cell of each column, for its direction, bounds and level."""
    oracles: int
    originals: int

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns, forgetting first."""
        return (*self.headline, *self.utility)

    @property
    def claims_ties(self) -> bool:
        """Whether there are anchors enough to call a method tied with the oracle."""
        return self.signal and self.oracles >= MIN_ORACLES and self.originals >= MIN_ORIGINALS

    @property
    def title(self) -> str:
        """The heading."""
        step = f", step {self.step + 1}" if self.step or "sequence" in self.request else ""
        return f"{self.scenario} / {self.request}{step}"


def boards(records: Sequence[Record]) -> list[Board]:
    """One board per scenario, request and step, in the order of their names."""
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.trial.scenario, record.trial.request, record.trial.step), []).append(record)
    return [_board(groups[key]) for key in sorted(groups)]


def _board(records: list[Record]) -> Board:
    first = records[0].trial
    anchors = {
        role: [record for record in records if record.trial.role == role and record.trial.native is None] for role in ("original", "oracle")
    }
    facts = _facts(records)
    headline = tuple(column for column, cell in facts.items() if cell.headline and cell.side == "forget")
    utility = tuple(column for column, cell in facts.items() if cell.side == "utility" and column[1] is None)
    board = Board(
        suite=first.suite,
        scenario=first.scenario,
        request=first.request,
        description=first.request_description,
        step=first.step,
        signal=first.signal,
        headline=headline,
        utility=utility,
        rows=(),
        facts=facts,
        oracles=len(anchors["oracle"]),
        originals=len(anchors["original"]),
    )
    by_key = {record.key: record for record in records}
    rows = []
    for label, group in _by_label(records).items():
        # A native method is judged beside its own anchors: each record names the ones it belongs to.
        own = {role: [by_key[key] for key in group[0].anchors.get(role, ()) if key in by_key] or anchors[role] for role in anchors}
        rows.append(_row(board, label, group, own["original"], own["oracle"], anchors["oracle"]))
    if len(anchors["oracle"]) > 2:
        *others, last = sorted(anchors["oracle"], key=lambda record: record.trial.seed)
        rows.append(_row(board, HELD_OUT, [last], anchors["original"], others, others))
    return Board(**{**vars(board), "rows": tuple(_ranked(board, rows))})


def _by_label(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.trial.seed):
        groups.setdefault(record.trial.label, []).append(record)
    return groups


def _facts(records: Iterable[Record]) -> dict[Column, Cell]:
    """The columns there are: every metric at no attack, and at the strongest stage of each."""
    found: dict[Column, Cell] = {}
    for record in records:
        for cell in record.cells:
            if cell.attack is None or cell.final:
                found.setdefault((cell.metric, cell.attack), cell)
    return dict(sorted(found.items(), key=lambda item: (item[0][1] or "", item[1].level)))


# ------------------------------------------------------------------------------------------------------------------------ scores


def _row(
    board: Board,
    label: str,
    records: Sequence[Record],
    originals: Sequence[Record],
    oracles: Sequence[Record],
    standard: Sequence[Record],
) -> Row:
    role = "held-out" if label == HELD_OUT else records[0].trial.role
    scores = {column: score(column, records, originals, oracles, board.claims_ties) for column in board.columns}
    anchored = [scores[column].anchored for column in board.headline]
    shares = []
    for column in board.utility:
        mean = _mean(_values(column, standard))
        value = scores[column].value
        if mean and value is not None and board.facts[column].direction == "higher":
            shares.append(value / mean)
    known = [value for value in anchored if value is not None]
    # A worst case over fewer scores than the others have would flatter whoever has a missing one.
    worst = max(known) if board.signal and known and len(known) == len(anchored) else None
    return Row(label=label, role=role, scores=scores, worst=worst, kept=min(shares, default=None))


def score(column: Column, records: Sequence[Record], originals: Sequence[Record], oracles: Sequence[Record], ties: bool) -> Score:
    """One cell: the mean over the records' seeds against the anchors.

    Args:
        column: what is read.
        records: the row's records, one per seed.
        originals: records of the originals.
        oracles: records of the pool that the row is judged against.
        ties: whether ties may be claimed.
    """
    reasons = sorted({reason for record in records if (reason := _why_missing(column, record)) is not None})
    cells = [cell for record in records if (cell := cell_of(column, record)) is not None and cell.value is not None]
    if not cells:
        return Score(reason="; ".join(reasons) or "not measured")
    value = _mean([cell.value for cell in cells if cell.value is not None])
    assert value is not None  # there is a cell with a value
    note = f"{len(records) - len(cells)} of {len(records)} seeds missing: {'; '.join(reasons)}" if len(cells) < len(records) else None
    pool = _values(column, oracles)
    gap = gap_interval = None
    if len(pool) >= 2:
        gap, gap_interval = value - float(np.mean(pool)), prediction_interval(value, pool)
    return Score(
        value=value,
        interval=_within(_interval(cells), cells[0].bounds),
        gap=gap,
        gap_interval=gap_interval,
        tie=tied(gap_interval) if ties and gap_interval is not None else None,
        anchored=_anchored(value, _values(column, originals), pool) if cells[0].side == "forget" else None,
        seeds=len(cells),
        reason=note,
    )


def cell_of(column: Column, record: Record) -> Cell | None:
    """The record's cell of a column."""
    metric, attack = column
    for cell in record.cells:
        if cell.metric == metric and cell.attack == attack and (attack is None or cell.final):
            return cell
    return None


def _why_missing(column: Column, record: Record) -> str | None:
    if record.status != "done":
        return f"{record.status}: {record.reason}"
    cell = cell_of(column, record)
    if cell is None:
        return "not measured"
    if cell.value is None:
        return f"{'N/A' if cell.status == 'na' else cell.status}: {cell.reason}"
    return None


def _values(column: Column, records: Iterable[Record]) -> list[float]:
    cells = [cell_of(column, record) for record in records]
    return [cell.value for cell in cells if cell is not None and cell.value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _anchored(value: float, originals: Sequence[float], oracles: Sequence[float]) -> float | None:
    original, oracle = _mean(originals), _mean(oracles)
    if original is None or oracle is None or math.isclose(original, oracle, abs_tol=1e-12):
        return None
    return (value - oracle) / (original - oracle)


def _interval(cells: Sequence[Cell]) -> Interval | None:
    """The interval of the mean over seeds; None where a single number per seed gives none."""
    clusters = [cell.clusters for cell in cells]
    kept = [item for item in clusters if item is not None]
    if len(kept) == len(cells) and len({(item.digest, item.counts) for item in kept}) == 1 and len(kept[0].means) > 1:
        counts = np.asarray(kept[0].counts)
        # Intervals depend on cluster sums alone, so each item may stand at its cluster's mean.
        values = np.stack([np.repeat(item.means, counts) for item in kept])
        return mean_interval(values, np.repeat(np.arange(len(counts)), counts).tolist())
    bounds = [cell.interval for cell in cells if cell.interval is not None]
    if len(bounds) == len(cells):
        # Seeds share their items: the mean of the ends is right for full correlation, and wide otherwise.
        return Interval(float(np.mean([low for low, _ in bounds])), float(np.mean([high for _, high in bounds])), "items")
    return None


def _within(interval: Interval | None, bounds: tuple[float, float]) -> Interval | None:
    if interval is None:
        return None
    return Interval(max(interval.low, bounds[0]), min(interval.high, bounds[1]), interval.covers)


# ------------------------------------------------------------------------------------------------------------------------- ranks


def _ranked(board: Board, rows: Sequence[Row]) -> list[Row]:
    """Anchors and marked rows first, then the methods: those that keep the utility before those that do not, by worst case."""

    def place(row: Row) -> tuple[float, ...]:
        lost = row.kept is not None and row.kept < UTILITY_GATE
        worst = math.inf if row.worst is None else row.worst
        return (ROLE_ORDER.index(row.role), float(row.role == "method" and lost), worst if row.role == "method" else 0.0)

    ordered = sorted(rows, key=place)
    ranks = iter(range(1, len(ordered) + 1))
    ranked = []
    for row in ordered:
        scored = row.role == "method" and row.worst is not None and (row.kept is None or row.kept >= UTILITY_GATE)
        ranked.append(Row(**{**vars(row), "rank": next(ranks) if scored and board.signal else None}))
    return ranked
