"""Do the oracles pass their own audit? Every oracle of a large pool is judged against the rest of it, as a method would be.

    unlearnbench run configs/audit-authors.yaml --out results/audit-authors
    unlearnbench run configs/audit-digits.yaml --out results/audit-digits
    unlearnbench run configs/audit-requests.yaml --out results/audit-requests
    python benchmarks/audit.py

For each request and column: the share of oracles whose 95 % prediction interval of the gap to the others excludes 0, and whether the
originals' does. Exits with 1 if more than 8 % of all intervals exclude 0, if more than 20 % of one column's do, or if an original passes
a headline column of a request with a signal.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from unlearnbench.intervals import prediction_interval, tied
from unlearnbench.records import Record, read_records
from unlearnbench.tables import Column, boards

ALL, ONE = 0.08, 0.20


def main(folders: list[str]) -> int:
    """Print one line per request and column; return the exit code."""
    excluded: list[bool] = []
    wrong: list[str] = []
    print(f"{'request':24} {'column':32} {'oracles':>8} {'excluded':>9} {'oracle mean':>12} {'original':>9}")
    for folder in folders:
        records = read_records(Path(folder))
        for board in boards(records):
            here = (board.scenario, board.request, board.step)
            mine = [record for record in records if (record.trial.scenario, record.trial.request, record.trial.step) == here]
            diagnostic = {(cell.metric, None) for record in mine for cell in record.cells if cell.side == "diagnostic"}
            for column in [*board.columns, *sorted(diagnostic)]:
                oracles = _values(mine, "oracle", column)
                originals = _values(mine, "original", column)
                if len(oracles) < 3:
                    continue
                out = [not tied(prediction_interval(value, np.delete(oracles, i))) for i, value in enumerate(oracles)]
                excluded += out
                caught = [not tied(prediction_interval(value, oracles)) for value in originals]
                name = f"{column[1]}:{column[0]}" if column[1] else column[0]
                share = sum(out) / len(out)
                headline = column in board.headline and board.signal
                verdict = f"{'fails' if all(caught) else 'PASSES'}{'' if headline else ' (no headline)'}"
                place = f"{board.scenario}/{board.request}{f' step {board.step + 1}' if board.step else ''}"
                print(f"{place:24} {name:32} {len(oracles):8} {share:9.1%} {np.mean(oracles):12.3f} {np.mean(originals):9.3f} {verdict}")
                if share > ONE and len(oracles) >= 20:
                    wrong.append(f"{place} {name}: {share:.1%} of the oracles fail their own audit, more than {ONE:.0%}")
                if headline and not all(caught):
                    wrong.append(f"{place} {name}: an original passes")
    total = sum(excluded) / len(excluded)
    print(f"\n{len(excluded)} intervals of oracles, {total:.1%} exclude 0 (allowed: {ALL:.0%})")
    if total > ALL:
        wrong.append(f"{total:.1%} of all intervals exclude 0")
    print("\n".join(wrong) or "all audits hold")
    return 1 if wrong else 0


def _values(records: list[Record], role: str, column: Column) -> list[float]:
    found = [record.cell(*column) for record in records if record.trial.role == role]
    return [cell.value for cell in found if cell is not None and cell.value is not None]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["results/audit-authors", "results/audit-digits", "results/audit-requests"]))
