"""Boards as text: terminal table, Markdown, CSV, LaTeX and JSON. Knows how a cell is written and no file. Imports no torch.

A cell shows the mean over seeds with the longer arm of its 95 % interval, and under it the gap to the oracles, `≈` marking a tie with
them. A dash is a missing value, its reason in a note below the table.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from unlearnbench.comparisons import Column, Comparison
from unlearnbench.tables import TOLD_APART, UTILITY_GATE, Board, Row, Score

WORD = 12
"""Words of a column's head share a line up to this width."""
LABEL = 30
"""Longer labels of rows are broken after a comma or bracket."""
BLIND: Column = ("blind_baseline", None)
"""The diagnostic that says whether membership can be told from the rows alone."""
ARROWS = {"higher": "↑", "lower": "↓"}
MARKS = {"reference": " (reference)", "sanity": " (sanity)"}


# ------------------------------------------------------------------------------------------------------------------------- cells


def name(column: Column) -> str:
    """A column's name: the metric, after the attack's label and a colon at an attack's strongest stage.

    >>> name(("rouge", None)), name(("rouge", "relearning"))
    ('rouge', 'relearning:rouge')
    """
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
    return f"{score.value:.2f} ±{max(score.interval.high - score.value, score.value - score.interval.low):.2f}"


def gap_text(score: Score) -> str:
    """`+0.13`, `≈ -0.01` for a tie, empty where there is no gap.

    >>> gap_text(Score(value=0.5, gap=0.126, tie=False)), gap_text(Score(value=0.5, gap=-0.011, tie=True))
    ('+0.13', '≈ -0.01')
    """
    if score.gap is None:
        return ""
    return f"{'≈ ' if score.tie else ''}{_signed(score.gap)}"


def _signed(number: float) -> str:
    """Two decimals with a sign, without one for what is rounded to 0."""
    text = f"{number:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def p_text(p: float) -> str:
    """A p-value to two decimals, or the bound it is below.

    >>> p_text(0.0312), p_text(0.0004), p_text(0.0049)
    ('p 0.03', 'p <0.001', 'p 0.005')
    """
    if p < 0.001:
        return "p <0.001"
    return f"p {p:.3f}" if p < 0.01 else f"p {p:.2f}"


def _front(row: Row) -> list[str]:
    """The cells before the scores: rank, label, worst case, utility kept, run time."""
    rank = "" if row.rank is None else str(row.rank)
    return [
        rank,
        f"{row.label}{MARKS.get(row.role, '')}",
        *("–" if share is None else f"{share:.2f}".replace("-0.00", "0.00") for share in (row.worst, row.kept)),
        "–" if row.seconds is None else f"{row.seconds:.2g}" if row.seconds < 10 else f"{row.seconds:.0f}",
    ]


FRONT = ("rank", "row", "worst", "kept", "seconds")


def _kind(board: Board, column: Column) -> str:
    """What stands beside a column's name: the level of a forget score, the direction of a utility score."""
    fact = board.facts[column]
    return fact.level if column in board.headline else ARROWS[fact.direction]


def notes(board: Board) -> list[str]:
    """What stands under a table: how to read it, and why values are missing."""
    lines = []
    anchors = f"{_count(board.originals, 'original')} and {_count(board.oracles, 'oracle')}"
    if not board.signal:
        lines.append("No signal: original and oracle cannot be told apart on this request, so nothing is ranked or tied.")
    elif not board.claims_ties:
        lines.append(f"{anchors} are too few to claim ties.")
    covers = sorted({score.interval.covers for row in board.rows for score in row.scores.values() if score.interval is not None})
    over = f"± is the longer arm of a 95 % interval over {' or '.join(covers)}; " if covers else ""
    tie = ", ≈ where one more oracle could lie there" if board.claims_ties else ""
    lines.append(f"Anchors: {anchors}. {over}below a value is its gap to the oracles{tie}.")
    if board.signal:
        lines.append(
            f"worst: the largest forget score, oracle 0 and original 1. kept: utility as a share of the oracles'; below {UTILITY_GATE:g} "
            "there is no rank."
        )
        if board.blunt:
            lines.append(
                f"{', '.join(map(name, board.blunt))}: originals and oracles are less than {TOLD_APART:g} of the oracles' standard "
                "deviations apart, so this is no part of worst."
            )
        lines += [f"No rank: {row.label}, {row.barred}." for row in board.rows if row.barred and _has_values(row)]
    blind = board.facts.get(BLIND)
    if blind is not None and blind.interval is not None and blind.interval[0] > 0.5:
        low, high = blind.interval
        lines.append(
            f"forget and holdout differ in kind: {name(BLIND)}, which sees no model, tells them apart with an AUC of {blind.value:.2f} "
            f"({low:.2f} to {high:.2f}). So do membership scores, whatever was forgotten: only their gap to the oracles counts."
        )
    costs = [f"{row.label} {row.cost:.2g}" for row in board.rows if row.cost is not None and row.role == "method"]
    if costs:
        lines.append(
            f"seconds: run time of the unlearning call, of anchors of a training. As a share of one retraining: {', '.join(costs)}."
        )
    lines += [f"{name(column)} is not shown: {reason}" for column, reason in board.absent.items()]
    missing: dict[str, list[str]] = {}
    for row in board.rows:
        reasons: dict[str, list[str]] = {}
        for column, score in row.scores.items():
            if score.reason is not None:
                reasons.setdefault(score.reason, []).append(f"{row.label} {name(column)}")
        for reason, places in reasons.items():
            missing.setdefault(reason, []).extend([row.label] if len(places) == len(row.scores) else places)
    return lines + [f"Missing: {_some(places)}: {reason}" for reason, places in missing.items()]


def _some(places: Sequence[str]) -> str:
    """The first few of many.

    >>> _some("abcdef")
    'a, b, c, d and 2 more'
    """
    return f"{', '.join(places[:4])}{f' and {len(places) - 4} more' if len(places) > 4 else ''}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _has_values(row: Row) -> bool:
    return any(score.value is not None for score in row.scores.values())


# ------------------------------------------------------------------------------------------------------------------ terminal


def terminal(found: Sequence[Board]) -> str:
    """Boards as tables for a terminal; no word is broken, and a table is as wide as its cells."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    text = io.StringIO()
    console = Console(file=text, width=1000, color_system=None, highlight=False)
    for board in found:
        heads = [[label] for label in FRONT] + [_head(board, column) for column in board.columns]
        height = max(map(len, heads))
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for head in heads:
            # As Text: brackets in labels are no markup.
            table.add_column(
                Text("\n".join([""] * (height - len(head)) + head)), justify="left" if head == ["row"] else "right", no_wrap=True
            )
        for role, group in itertools.groupby(board.rows, key=lambda row: row.role == "method"):
            if role:
                table.add_section()
            for row in group:
                cells = [f"{value_text(row.scores[column])}\n{gap_text(row.scores[column])}".strip() for column in board.columns]
                rank, label, *shares = _front(row)
                table.add_row(*map(Text, (rank, _broken(label), *shares, *cells)))
        width = max(80, console.measure(table).maximum)
        console.print(f"{board.suite}: {board.title}, {board.description}", markup=False, width=width)
        console.print(table)
        for line in notes(board):
            console.print(line, markup=False, width=width)
        console.print()
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines()) + "\n"


def _head(board: Board, column: Column) -> list[str]:
    """A column's head in lines: the attack, the words of the metric, and its kind."""
    metric, attack = column
    return [*([] if attack is None else [f"{attack}:"]), *_packed(metric.split("_"), "_", WORD), _kind(board, column)]


def _broken(label: str) -> str:
    """A row's label in lines of at most `LABEL` letters where commas, brackets and spaces allow it.

    >>> _broken("npo[beta=0.1,lr=1e-05,epochs=10]").splitlines()
    ['npo[beta=0.1,lr=1e-05,', 'epochs=10]']
    """
    words = label.replace(",", ", ").replace("[", "[ ").replace(" (", " ( ").split(" ")
    joined = ["".join(words[:1]), *(f" {word}" if word == "(" else word for word in words[1:])]
    return label if len(label) <= LABEL else "\n".join(_packed(joined, "", LABEL))


def _packed(words: Iterable[str], between: str, width: int) -> list[str]:
    """Words in as few lines as the width allows; a word that is longer has a line of its own."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(between) + len(word) <= width:
            lines[-1] += f"{between}{word}"
        else:
            lines.append(word)
    return lines


# --------------------------------------------------------------------------------------------------------------------- pages


def markdown(found: Sequence[Board]) -> str:
    """Boards as Markdown tables, each with the comparisons of its best method."""
    parts: list[str] = []
    for suite, group in itertools.groupby(found, key=lambda board: board.suite):
        parts += [f"# {suite}", "", "Generated from the records in this folder; do not edit.", ""]
        for board in group:
            parts += [f"## {board.title}", "", f"{board.description[:1].upper()}{board.description[1:]}.", ""]
            parts += [*markdown_table(board), "", *(f"- {line}" for line in notes(board)), "", *_also(board), *_compared(board)]
    return "\n".join(parts)


def markdown_table(board: Board) -> list[str]:
    """The lines of one board's Markdown table."""
    heads = [*FRONT, *(f"{name(column)} {_kind(board, column)}" for column in board.columns)]
    return _pipes(heads, [[*_front(row), *(_both(row.scores[column]) for column in board.columns)] for row in board.rows])


def _also(board: Board) -> list[str]:
    """The diagnostics of a board: a line for each row that has any."""
    rows = [row for row in board.rows if any(score.value is not None for score in row.diagnostics.values())]
    if not rows:
        return []
    heads = ["row", *(f"{name(column)} {board.facts[column].level}" for column in board.diagnostics)]
    lines = [[_front(row)[1], *(_both(row.diagnostics[column]) for column in board.diagnostics)] for row in rows]
    return ["Also measured, and part of no rank:", "", *_pipes(heads, lines), ""]


def _pipes(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = "|".join("---" if head in ("row", "against") else "---:" for head in heads)
    return [
        f"| {' | '.join(heads)} |",
        f"|{rule}|",
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines),
    ]


def _both(score: Score) -> str:
    return f"{value_text(score)}<br>{gap_text(score)}".removesuffix("<br>")


def _compared(board: Board) -> list[str]:
    """The comparisons of a board: a line for each method that the best one is compared with."""
    if not board.comparisons:
        return []
    first = board.comparisons[0].first
    found = {(comparison.second, comparison.column): comparison for comparison in board.comparisons}
    known = [comparison for comparison in board.comparisons if comparison.interval is not None]
    others = list(dict.fromkeys(comparison.second for comparison in known))
    columns = [column for column in board.headline if column in {comparison.column for comparison in known}]
    lines = []
    if known:
        covers = sorted({comparison.interval.covers for comparison in known if comparison.interval is not None})
        lines += [f"{first} minus each other method, on the same seeds and rows:", ""]
        heads = ["against", *map(name, columns)]
        lines += _pipes(heads, [[other, *(_difference(found[other, column]) for column in columns)] for other in others])
        lines += ["", f"- p: t test of the paired differences over {' or '.join(covers)}, adjusted by Holm's method over this board."]
    reasons: dict[str, list[str]] = {}
    for comparison in board.comparisons:
        if comparison.reason is not None:
            place = f"{comparison.second} on {name(comparison.column)}" if comparison.second in others else comparison.second
            reasons.setdefault(comparison.reason, []).append(place)
    lines += [f"- {first} is not compared with {_some(list(dict.fromkeys(places)))}: {reason}" for reason, places in reasons.items()]
    return [*lines, ""]


def _difference(comparison: Comparison) -> str:
    if comparison.difference is None or comparison.adjusted is None:
        return "–"
    return f"{_signed(comparison.difference)}, {p_text(comparison.adjusted)}"


_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "–": "--"}
_SYMBOLS = {"±": r"$\pm$", "≈": r"$\approx$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "…": r"\dots{}"}
_LATEX = str.maketrans({letter: f"\\{letter}" for letter in "_%&#{}$"} | _SPECIAL | _SYMBOLS)


def latex(found: Sequence[Board]) -> str:
    """Boards as LaTeX tables for the booktabs package; notes stand in comments."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"

    def both(score: Score) -> str:
        gap = gap_text(score)
        return f"{value_text(score)} ({gap})" if gap else value_text(score)

    parts = []
    for board in found:
        heads = [*FRONT, *(f"{name(column)} {_kind(board, column)}" for column in board.columns)]
        parts += [r"\begin{table}", rf"\caption{{{f'{board.title} ({board.description})'.translate(_LATEX)}}}"]
        parts += [rf"\begin{{tabular}}{{rl{'r' * (len(heads) - 2)}}}", r"\toprule", line(heads), r"\midrule"]
        parts += [line([*_front(row), *(both(row.scores[column]) for column in board.columns)]) for row in board.rows]
        parts += [r"\bottomrule", r"\end{tabular}", *(f"% {' '.join(note.split())}" for note in notes(board)), r"\end{table}", ""]
    return "\n".join(parts)


# ---------------------------------------------------------------------------------------------------------------------- data

_OF_BOARD = ("suite", "scenario", "request", "step")
_OF_ROW = ("label", "role", "rank", "worst", "kept", "seconds", "cost")
FIELDS = (
    *(*_OF_BOARD, "row", *_OF_ROW[1:], "column", "level", "side", "direction", "value", "low", "high", "covers"),
    *("gap", "gap_low", "gap_high", "tie", "anchored", "seeds", "reason"),
)


def as_csv(found: Sequence[Board]) -> str:
    """Boards as one long table: a line per row and column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for board in found:
        writer.writerows(_flat(board, row, column) for row in board.rows for column in (*board.columns, *board.diagnostics))
    return text.getvalue()


def _flat(board: Board, row: Row, column: Column) -> dict[str, Any]:
    score, fact = (row.scores | row.diagnostics)[column], board.facts[column]
    plain: dict[str, Any] = {key: getattr(board, key) for key in _OF_BOARD}
    plain |= {"row": row.label} | {key: getattr(row, key) for key in _OF_ROW[1:]}
    plain |= {"column": name(column), "level": fact.level, "side": fact.side, "direction": fact.direction}
    plain |= {key: getattr(score, key) for key in ("value", "gap", "tie", "anchored", "seeds", "reason")}
    if score.interval is not None:
        plain |= score.interval._asdict()
    if score.gap_interval is not None:
        plain |= {"gap_low": score.gap_interval.low, "gap_high": score.gap_interval.high}
    return plain


def as_json(found: Sequence[Board]) -> str:
    """Boards as JSON: every cell with everything that is known of it, and the comparisons."""
    return json.dumps([_plain_board(board) for board in found], indent=1, ensure_ascii=False)


def _plain_board(board: Board) -> dict[str, Any]:
    facts = (*_OF_BOARD, "description", "signal", "oracles", "originals", "claims_ties")
    return {
        **{key: getattr(board, key) for key in facts},
        "blunt": [name(column) for column in board.blunt],
        "absent": {name(column): reason for column, reason in board.absent.items()},
        "notes": notes(board),
        "rows": [
            {
                **{key: getattr(row, key) for key in (*_OF_ROW, "barred")},
                "scores": {name(column): _plain(row.scores[column]) for column in board.columns},
                "diagnostics": {name(column): _plain(row.diagnostics[column]) for column in board.diagnostics},
            }
            for row in board.rows
        ],
        "comparisons": [{**_plain(comparison), "column": name(comparison.column)} for comparison in board.comparisons],
    }


def _plain(item: Score | Comparison) -> dict[str, Any]:
    return {key: value._asdict() if hasattr(value, "_asdict") else value for key, value in vars(item).items()}


FORMATS: dict[str, Callable[[Sequence[Board]], str]] = {
    "table": terminal,
    "markdown": markdown,
    "csv": as_csv,
    "latex": latex,
    "json": as_json,
}
"""What `leaderboard --format` allows."""
