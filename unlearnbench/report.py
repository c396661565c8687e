"""The leaderboard of a folder of records: read, chosen, sorted, and written beside them. Imports no torch.

Reads files only, so that a table needs neither models nor a GPU. How a board looks is in `formats` and `picture`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unlearnbench import continual
from unlearnbench.api import UserError
from unlearnbench.files import write_json
from unlearnbench.formats import FORMATS, as_csv, as_json, latex, markdown, name
from unlearnbench.records import Record, read_records
from unlearnbench.tables import Board, Row, boards


def load(folder: Path, *, scenario: str | None = None) -> list[Board]:
    """The boards of a folder of records; where the folder names the records of its latest run, those alone.

    Raises:
        UserError: no such folder, no records, no such scenario, or two records of one row and seed.
    """
    return boards(_chosen(read_records(folder), scenario))


def _chosen(records: Sequence[Record], scenario: str | None) -> list[Record]:
    known = sorted({record.trial.scenario for record in records})
    if scenario is not None and scenario not in known:
        raise UserError(f"--scenario is {scenario!r}; the records speak of: {', '.join(known)}")
    return [record for record in records if scenario in (None, record.trial.scenario)]


def leaderboard(folder: Path, *, scenario: str | None = None, sort: str | None = None, fmt: str = "table") -> str:
    """The leaderboard of a folder of records, as text.

    Args:
        folder: holds records, perhaps in sub-folders.
        scenario: shows this scenario alone.
        sort: a column's name, such as `probability` or `relearning:probability`: methods stand in its order, nearest to the oracles
            first, for a utility score best first. A board without that column stays as it is.
        fmt: table, markdown, csv, latex or json.

    Raises:
        UserError: unknown folder, scenario, column or format.
    """
    if fmt not in FORMATS:
        raise UserError(f"--format is {fmt!r}; allowed: {', '.join(FORMATS)}")
    found = load(folder, scenario=scenario)
    if sort is not None:
        known = list(dict.fromkeys(name(column) for board in found for column in board.columns))
        if sort not in known:
            raise UserError(f"--sort is {sort!r}; the columns are: {', '.join(known)}")
        found = [_sorted(board, sort) for board in found]
    return FORMATS[fmt](found)


def write_all(folder: Path) -> list[Path]:
    """Write leaderboard.md, .csv, .tex, .json and .png beside the records, and return their paths.

    Where requests came in sequence, also continual.csv and continual.png.
    """
    from unlearnbench.picture import draw

    records = read_records(folder)
    found = boards(records)
    followed = continual.courses(folder, records, found)
    written = []
    for ending, text in (("md", markdown(found)), ("csv", as_csv(found)), ("tex", latex(found))):
        path = folder / f"leaderboard.{ending}"
        path.write_text(text, encoding="utf-8")
        written.append(path)
    write_json(folder / "leaderboard.json", json.loads(as_json(found)))
    written += [folder / "leaderboard.json", draw(found, folder / "leaderboard.png")]
    return [*written, *continual.write(folder, followed)] if followed else written


def _sorted(board: Board, sort: str) -> Board:
    column = next((column for column in board.columns if name(column) == sort), None)
    if column is None:
        return board

    def place(row: Row) -> float:
        score = row.scores[column]
        if score.value is None:
            return math.inf
        if column in board.utility:
            return -score.value if board.facts[column].direction == "higher" else score.value
        return abs(score.value if score.gap is None else score.gap)

    methods = sorted((row for row in board.rows if row.role == "method"), key=place)
    return replace(board, rows=(*(row for row in board.rows if row.role != "method"), *methods))
