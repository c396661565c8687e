"""Boards as text and files: terminal table, Markdown, CSV, LaTeX, JSON, and the committed pages of a suite. Imports no torch.

A cell shows the mean over seeds with half its 95 % interval, and under it the gap to the oracles, `≈` marking a tie with them. A dash is
a missing value, its reason in a note below the table.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from unlearnbench.api import UserError
from unlearnbench.files import write_json
from unlearnbench.records import Record, read_records
from unlearnbench.tables import UTILITY_GATE, Board, Column, Row, Score, boards

MANIFEST = "suite.json"
Format = Literal["table", "markdown", "csv", "latex", "json"]


def load(folder: Path, *, scenario: str | None = None) -> list[Board]:
    """The boards of a folder of records; where the folder names the records of its latest run, those alone.

    Raises:
        UserError: no such folder, no records, or no such scenario.
    """
    records = read_records(folder)
    manifests = list(folder.rglob(MANIFEST))
    if manifests:
        named = {name for path in manifests for name in json.loads(path.read_text(encoding="utf-8"))["records"]}
        records = [record for record in records if record.filename in named]
    return boards(_chosen(records, scenario))


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
        sort: a column's name, such as `probability` or `relearning:probability`; methods are then in its order.
        fmt: table, markdown, csv, latex or json.

    Raises:
        UserError: unknown folder, scenario, column or format.
    """
    formats: dict[str, Callable[[Sequence[Board]], str]] = {
        "table": _terminal,
        "markdown": markdown,
        "csv": as_csv,
        "latex": latex,
        "json": as_json,
    }
    if fmt not in formats:
        raise UserError(f"--format is {fmt!r}; allowed: {', '.join(formats)}")
    found = load(folder, scenario=scenario)
    if sort is not None:
        found = [_sorted(board, sort) for board in found]
    return formats[fmt](found)


def write_all(folder: Path) -> list[Path]:
    """Write leaderboard.md, .csv, .tex, .json and .png beside the records, and return their paths."""
    from unlearnbench.picture import draw

    found = load(folder)
    written = []
    for name, text in (("md", markdown(found)), ("csv", as_csv(found)), ("tex", latex(found))):
        path = folder / f"leaderboard.{name}"
        path.write_text(text, encoding="utf-8")
        written.append(path)
    write_json(folder / "leaderboard.json", json.loads(as_json(found)))
    return [*written, folder / "leaderboard.json", draw(found, folder / "leaderboard.png")]


def _sorted(board: Board, sort: str) -> Board:
    columns = {name(column): column for column in board.columns}
    if sort not in columns:
        raise UserError(f"--sort is {sort!r}; the columns of {board.title} are: {', '.join(columns)}")
    column = columns[sort]

    def place(row: Row) -> tuple[bool, float]:
        value = row.scores[column].value
        return (value is None, 0.0 if value is None else value)

    methods = sorted((row for row in board.rows if row.role == "method"), key=place)
    return Board(**{**vars(board), "rows": (*(row for row in board.rows if row.role != "method"), *methods)})


# ------------------------------------------------------------------------------------------------------------------------- cells


def name(column: Column) -> str:
    """A column's name: the metric, after the attack's label and a colon at an attack's strongest stage."""
    metric, attack = column
    return metric if attack is None else f"{attack}:{metric}"


def value_text(score: Score) -> str:
    """`0.31 ±0.05`, or a dash.

    >>> value_text(Score(value=0.3139)), value_text(Score(reason="N/A"))
    ('0.31', '–')
    """
    if score.value is None:
        return "–"
    if score.interval is None:
        return f"{score.value:.2f}"
    return f"{score.value:.2f} ±{(score.interval.high - score.interval.low) / 2:.2f}"


def gap_text(score: Score) -> str:
    """`+0.13`, `≈ -0.01` for a tie, empty where there is no gap.

    >>> gap_text(Score(value=0.5, gap=0.126, tie=False)), gap_text(Score(value=0.5, gap=-0.011, tie=True))
    ('+0.13', '≈ -0.01')
    """
    if score.gap is None:
        return ""
    return f"{'≈ ' if score.tie else ''}{score.gap:+.2f}"


def _rank(row: Row) -> str:
    return str(row.rank) if row.rank is not None else ""


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _marked(row: Row) -> str:
    marks = {"reference": " (reference)", "sanity": " (sanity)"}
    return f"{row.label}{marks.get(row.role, '')}"


def _heads(board: Board) -> list[str]:
    arrows = {"higher": "↑", "lower": "↓"}
    forget = [f"{name(column)} {board.facts[column].level}" for column in board.headline]
    return [
        "rank",
        "row",
        "worst",
        "kept",
        *forget,
        *(f"{name(column)} {arrows[board.facts[column].direction]}" for column in board.utility),
    ]


def notes(board: Board) -> list[str]:
    """What stands under a table: how to read it, and why values are missing."""
    lines = []
    if not board.signal:
        lines.append(f"No signal: {board.description}. Original and oracle cannot be told apart here, so nothing is ranked or tied.")
    elif not board.claims_ties:
        lines.append(f"{board.oracles} oracles and {board.originals} originals are too few to claim ties.")
    covers = sorted({cell.interval.covers for row in board.rows for cell in row.scores.values() if cell.interval is not None})
    lines.append(
        f"Anchors: {board.originals} originals, {board.oracles} oracles. ± is half a 95 % interval over {' or '.join(covers) or '-'}; "
        "below it the gap to the oracles, ≈ where one more oracle could lie there."
    )
    if board.signal:
        lines.append(
            f"worst: the largest forget score, oracle 0 and original 1. kept: utility as a share of the oracles'; below {UTILITY_GATE:g} "
            "there is no rank."
        )
    missing: dict[str, list[str]] = {}
    for row in board.rows:
        for column, cell in row.scores.items():
            if cell.reason is not None:
                missing.setdefault(cell.reason, []).append(f"{row.label} {name(column)}")
    lines += [f"– {', '.join(places[:4])}{' …' if len(places) > 4 else ''}: {reason}" for reason, places in missing.items()]
    return lines


# ----------------------------------------------------------------------------------------------------------------------- formats


def _terminal(found: Sequence[Board]) -> str:
    from rich.console import Console
    from rich.table import Table

    text = io.StringIO()
    widest = max(24 + 15 * (len(board.columns) + 2) for board in found)
    console = Console(file=text, width=max(100, widest), color_system=None)
    for board in found:
        table = Table(title=f"{board.title}: {board.description}", title_justify="left", show_lines=False, pad_edge=False)
        for number, head in enumerate(_heads(board)):
            table.add_column(head.replace(":", ":\n"), justify="left" if number == 1 else "right", overflow="fold")
        role = None
        for row in board.rows:
            if role is not None and (role == "method") != (row.role == "method"):
                table.add_section()
            role = row.role
            cells = [f"{value_text(row.scores[column])}\n{gap_text(row.scores[column])}".strip() for column in board.columns]
            table.add_row(_rank(row), _marked(row), _share(row.worst), _share(row.kept), *cells)
        console.print(table)
        for line in notes(board):
            console.print(line, highlight=False)
        console.print()
    return text.getvalue().rstrip() + "\n"


def markdown(found: Sequence[Board]) -> str:
    """Boards as Markdown tables."""
    parts = [f"# {found[0].suite}", "", "Generated from the records in this folder; do not edit.", ""]
    for board in found:
        heads = _heads(board)
        parts += [f"## {board.title}", "", f"{board.description[:1].upper()}{board.description[1:]}.", ""]
        parts += [f"| {' | '.join(heads)} |", f"|{'|'.join('---' if head == 'row' else '---:' for head in heads)}|"]
        for row in board.rows:
            cells = [f"{value_text(row.scores[c])}<br>{gap_text(row.scores[c])}".removesuffix("<br>") for c in board.columns]
            parts.append(f"| {' | '.join([_rank(row), _marked(row), _share(row.worst), _share(row.kept), *cells])} |")
        parts += ["", *(f"- {line}" for line in notes(board)), ""]
    return "\n".join(parts)


def latex(found: Sequence[Board]) -> str:
    """Boards as LaTeX tables for the booktabs package."""
    escapes = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "±": r"$\pm$", "≈": r"$\approx$", "–": "--"})
    arrows = str.maketrans({"↑": r"$\uparrow$", "↓": r"$\downarrow$", "…": r"\dots"})

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(escapes).translate(arrows) for cell in cells) + r" \\"

    parts = []
    for board in found:
        parts += [r"\begin{table}", rf"\caption{{{board.title} ({board.description})}}".translate(escapes)]
        parts += [rf"\begin{{tabular}}{{rl{'r' * (2 + len(board.columns))}}}", r"\toprule", line(_heads(board)), r"\midrule"]
        for row in board.rows:
            cells = [
                f"{value_text(row.scores[c])} {f'({gap_text(row.scores[c])})' if gap_text(row.scores[c]) else ''}" for c in board.columns
            ]
            parts.append(line([_rank(row), _marked(row), _share(row.worst), _share(row.kept), *(cell.strip() for cell in cells)]))
        parts += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in notes(board)), r"\end{table}", ""]
    return "\n".join(parts)


FIELDS = ("suite", "scenario", "request", "step", "row", "role", "rank", "column", "level", "side", "direction", "value", "low", "high")
MORE_FIELDS = ("covers", "gap", "gap_low", "gap_high", "tie", "anchored", "seeds", "reason")


def as_csv(found: Sequence[Board]) -> str:
    """Boards as one long table: a line per row and column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, (*FIELDS, *MORE_FIELDS), lineterminator="\n")
    writer.writeheader()
    for board in found:
        writer.writerows(_flat(board, row, column) for row in board.rows for column in board.columns)
    return text.getvalue()


def as_json(found: Sequence[Board]) -> str:
    """Boards as JSON: every cell with everything that is known of it."""
    plain = [
        {
            **{
                key: getattr(board, key)
                for key in ("suite", "scenario", "request", "description", "step", "signal", "oracles", "originals")
            },
            "claims_ties": board.claims_ties,
            "notes": notes(board),
            "rows": [
                {
                    **{key: getattr(row, key) for key in ("label", "role", "rank", "worst", "kept")},
                    "scores": {name(column): _plain(row.scores[column]) for column in board.columns},
                }
                for row in board.rows
            ],
        }
        for board in found
    ]
    return json.dumps(plain, indent=1, ensure_ascii=False)


def _plain(score: Score) -> dict[str, Any]:
    plain = asdict(score)
    for key in ("interval", "gap_interval"):
        found = getattr(score, key)
        plain[key] = None if found is None else found._asdict()
    return plain


def _flat(board: Board, row: Row, column: Column) -> dict[str, Any]:
    score, fact = row.scores[column], board.facts[column]
    mean, gap = score.interval, score.gap_interval
    plain: dict[str, Any] = {key: getattr(board, key) for key in ("suite", "scenario", "request", "step")}
    plain |= {"row": row.label, "role": row.role, "rank": row.rank, "column": name(column)}
    plain |= {"level": fact.level, "side": fact.side, "direction": fact.direction, "value": score.value}
    if mean is not None:
        plain |= {"low": mean.low, "high": mean.high, "covers": mean.covers}
    if gap is not None:
        plain |= {"gap": score.gap, "gap_low": gap.low, "gap_high": gap.high, "tie": score.tie}
    return {**plain, "anchored": score.anchored, "seeds": score.seeds, "reason": score.reason}
