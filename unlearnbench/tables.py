"""From records to boards: what one table shows, with every interval, gap and tie worked out. Reads records only; no torch.

A board is one request at one step. Its columns are the headline scores (also at the strongest stage of each attack) and the utility
scores; its rows the anchors, the sanity and reference rows, and the methods. How a board looks is in `report` and `picture`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unlearnbench.api import UserError
from unlearnbench.comparisons import Column, Comparison, compare
from unlearnbench.intervals import Interval, mean_interval, prediction_interval, tied
from unlearnbench.records import Cell, Record

MIN_ORACLES, MIN_ORIGINALS = 4, 2
"""Fewer than this many oracles or originals claim no ties."""
UTILITY_GATE = 0.8
"""A method keeps its rank only with this share of the oracles' utility."""
TOLD_APART = 3.0
"""Originals and oracles are told apart by a score where their means differ by this many standard deviations of the oracles; where they
are not, a value on the scale between them would be noise over noise."""
HELD_OUT = "oracle (held out)"
ROLE_ORDER = ("original", "oracle", "held-out", "reference", "sanity", "method")


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
    """The value on the scale where the oracles are 0 and the originals 1; None where those cannot be told apart. A score that gives the
    forget set away to either side (an AUC) has its distance here."""
    seeds: int = 0
    reason: str | None = None
    """Why the value is missing, or what part of it is."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a board."""

    label: str
    role: str
    scores: dict[Column, Score]
    diagnostics: dict[Column, Score]
    worst: float | None = None
    """The largest anchored score over the columns that judge: 0 is the oracle, 1 the original. None where one of them is missing."""
    kept: float | None = None
    """Utility as a share of the standard oracles', the smallest over the utility columns. None where one of them is missing."""
    seconds: float | None = None
    """Run time of the unlearning call, mean over seeds; of an anchor, of its training. It differs between two runs of the same thing."""
    cost: float | None = None
    """That run time as a share of one retraining's; None for anchors."""
    rank: int | None = None
    barred: str | None = None
    """Why a method has no rank."""


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
    diagnostics: tuple[Column, ...]
    """What is measured of the models as they are and judges nobody."""
    rows: tuple[Row, ...]
    facts: dict[Column, Cell]
    """One cell of each column, for its direction, bounds and level."""
    oracles: int
    originals: int
    blunt: tuple[Column, ...]
    """Headline columns in which originals and oracles cannot be told apart: they judge nobody."""
    absent: dict[Column, str]
    """Headline and utility scores that no row has, and why."""
    comparisons: tuple[Comparison, ...] = ()
    """The best method against every other on the headline scores."""

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
    """One board per suite, scenario, request and step, in the order of their names.

    Raises:
        UserError: two different records claim the same row and seed.
    """
    groups: dict[tuple[str, str, str, int], dict[str, Record]] = {}
    for record in records:
        trial = record.trial
        groups.setdefault((trial.suite, trial.scenario, trial.request, trial.step), {})[record.key] = record
    return [_board(list(groups[key].values())) for key in sorted(groups)]


def _board(records: list[Record]) -> Board:
    first = records[0].trial
    standard = [record for record in records if record.trial.native is None and record.status == "done"]
    originals, oracles = (
        sorted((r for r in standard if r.trial.role == role), key=lambda r: r.trial.seed) for role in ("original", "oracle")
    )
    facts, absent = _facts(records)
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
        diagnostics=tuple(column for column in facts if column[1] is None and column not in (*headline, *utility)),
        rows=(),
        facts=facts,
        oracles=len(oracles),
        originals=len(originals),
        blunt=tuple(column for column in headline if not _told_apart(column, originals, oracles)),
        absent=absent,
    )
    by_key = {record.key: record for record in standard}
    by_key |= {record.key: record for record in records if record.trial.native is not None and record.status == "done"}
    rows = []
    groups = _by_label(records)
    for label, group in groups.items():
        # A native method is judged beside its own anchors: each record names the ones it belongs to; a skipped one names none.
        named = {role: [by_key[key] for key in keys if key in by_key] for role, keys in group[0].anchors.items()}
        rows.append(_row(board, label, group, named.get("original", []), named.get("oracle", []), oracles))
    if len(oracles) > 2:
        *others, last = oracles
        rows.append(_row(board, HELD_OUT, [last], originals, others, others))
    ranked = _ranked(rows)
    methods = {row.label: groups[row.label] for row in ranked if row.role == "method"}
    best = next((row.label for row in ranked if row.rank == 1), None)
    return replace(board, rows=tuple(ranked), comparisons=compare(headline, best, methods) if best is not None else ())


def _by_label(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, dict[int, Record]] = {}
    for record in sorted(records, key=lambda record: record.trial.seed):
        trial = record.trial
        twin = groups.setdefault(trial.label, {}).setdefault(trial.seed, record)
        if twin is not record:
            raise UserError(
                f"{twin.filename} and {record.filename} both are {trial.label} on {trial.scenario}/{trial.request}, seed {trial.seed}; "
                "one of them is stale: remove it, or run the suite again into this folder, which then names its records"
            )
    return {label: list(group.values()) for label, group in groups.items()}


def _facts(records: Iterable[Record]) -> tuple[dict[Column, Cell], dict[Column, str]]:
    """The columns there are, every metric at no attack and at the strongest stage of each; and those without any value, with the reason."""
    found: dict[Column, Cell] = {}
    reasons: dict[Column, str] = {}
    for record in records:
        for cell in record.cells:
            column = (cell.metric, cell.attack)
            if cell.value is not None and (cell.attack is None or cell.final):
                found.setdefault(column, cell)
            elif cell.value is None and cell.side != "diagnostic" and (cell.headline or cell.attack is None):
                reasons.setdefault(column, _because(cell))
    ordered = sorted(found.items(), key=lambda item: (item[0][1] or "", item[1].level))
    return dict(ordered), {column: reason for column, reason in reasons.items() if column not in found}


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
    # The pool is not judged against itself.
    ties = board.claims_ties and role != "oracle"
    scores = {column: score(column, records, originals, oracles, ties) for column in board.columns}
    diagnostics = {column: score(column, records, originals, oracles, ties) for column in board.diagnostics}
    judging = [column for column in board.headline if _told_apart(column, originals, oracles)] if board.signal else []
    anchored = [scores[column].anchored for column in judging]
    shares = [_share(board, column, scores[column], standard) for column in board.utility if _keeps(board, column, standard)]
    lacking = [column for column in judging if scores[column].anchored is None]
    # A worst case over fewer scores than the others have would flatter whoever has a missing one; so would utility.
    worst = None if lacking else max((value for value in anchored if value is not None), default=None)
    kept = None if None in shares else min((share for share in shares if share is not None), default=None)
    barred = None
    if role == "method":
        if not board.signal:
            barred = "no signal"
        elif all(record.status != "done" for record in records):
            barred = "; ".join(sorted({f"{record.status}: {record.reason}" for record in records}))
        elif not judging:
            barred = "no score that tells original and oracle apart"
        elif worst is None:
            barred = f"{len(lacking)} of {len(judging)} forget scores missing"
        elif None in shares:
            barred = "a utility score is missing"
        elif kept is not None and kept < UTILITY_GATE:
            barred = f"keeps {kept:.2f} of the utility, less than {UTILITY_GATE:g}"
    seconds = _mean([found for record in records if (found := record.volatile.get("seconds", {}).get("model")) is not None])
    cost = _mean([found for record in records if (found := record.volatile.get("share_of_retraining")) is not None])
    shown = Row(label=label, role=role, scores=scores, diagnostics=diagnostics)
    return replace(shown, worst=worst, kept=kept, seconds=seconds, cost=cost, barred=barred)


def _keeps(board: Board, column: Column, standard: Sequence[Record]) -> bool:
    """Whether a utility column says what share is kept: more is better, and the oracles have some."""
    return board.facts[column].direction == "higher" and bool(_mean(_values(column, standard)))


def _share(board: Board, column: Column, found: Score, standard: Sequence[Record]) -> float | None:
    mean = _mean(_values(column, standard))
    return found.value / mean if mean and found.value is not None else None


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
    cells = [cell for record in records if (cell := record.cell(*column)) is not None and cell.value is not None]
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
        anchored=_anchored(cells[0], value, originals, oracles) if cells[0].side == "forget" else None,
        seeds=len(cells),
        reason=note,
    )


def _why_missing(column: Column, record: Record) -> str | None:
    if record.status != "done":
        return f"{record.status}: {record.reason}"
    cell = record.cell(*column)
    if cell is None:
        return "not measured"
    if cell.value is None:
        return _because(cell)
    return None


def _because(cell: Cell) -> str:
    return f"{'N/A' if cell.status == 'na' else cell.status}: {cell.reason}"


def _values(column: Column, records: Iterable[Record]) -> list[float]:
    cells = [record.cell(*column) for record in records]
    return [cell.value for cell in cells if cell is not None and cell.value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _told_apart(column: Column, originals: Sequence[Record], oracles: Sequence[Record]) -> bool:
    original, pool = _mean(_values(column, originals)), _values(column, oracles)
    if original is None or len(pool) < 2:
        return False
    distance = abs(original - float(np.mean(pool)))
    # Equal oracles have a spread of rounding errors at most, and so has an original that equals them.
    return distance > 1e-9 and distance >= TOLD_APART * float(np.std(pool, ddof=1))


def _anchored(cell: Cell, value: float, originals: Sequence[Record], oracles: Sequence[Record]) -> float | None:
    column = (cell.metric, cell.attack)
    if not _told_apart(column, originals, oracles):
        return None
    original, oracle = np.mean(_values(column, originals)), np.mean(_values(column, oracles))
    share = float((value - oracle) / (original - oracle))
    return abs(share) if cell.two_sided else share


def _interval(cells: Sequence[Cell]) -> Interval | None:
    """The interval of the mean over seeds; None where a single number per seed gives none."""
    clusters = [cell.clusters for cell in cells]
    kept = [item for item in clusters if item is not None]
    if len(kept) == len(cells) and len({(item.digest, item.counts) for item in kept}) == 1 and len(kept[0].means) > 1:
        counts = np.asarray(kept[0].counts)
        # The mean and the mean squares depend on cluster sums alone, so each item may stand at its cluster's mean; what is lost is how
        # items vary in a cluster, which only refines the correction for clusters of different sizes.
        values = np.stack([np.repeat(item.means, counts) for item in kept])
        return mean_interval(values, np.repeat(np.arange(len(counts)), counts).tolist())
    bounds = [cell.interval for cell in cells if cell.interval is not None]
    if len(bounds) == len(cells):
        # Seeds share their items: the mean of the ends is right for full correlation, and wide otherwise.
        covers = cells[0].covers or "items"
        return Interval(float(np.mean([low for low, _ in bounds])), float(np.mean([high for _, high in bounds])), covers)
    return None


def _within(interval: Interval | None, bounds: tuple[float, float]) -> Interval | None:
    if interval is None:
        return None
    return Interval(max(interval.low, bounds[0]), min(interval.high, bounds[1]), interval.covers)


# ------------------------------------------------------------------------------------------------------------------------- ranks


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Anchors and marked rows first, then the methods: those with a rank by worst case, then those without."""

    def place(row: Row) -> tuple[float, ...]:
        worst = row.worst if row.role == "method" and row.worst is not None else math.inf
        return (ROLE_ORDER.index(row.role), float(row.barred is not None), worst)

    ordered = sorted(rows, key=place)
    ranks = iter(range(1, len(ordered) + 1))
    return [replace(row, rank=next(ranks)) if row.role == "method" and row.barred is None else row for row in ordered]
