"""Puts the quickstart's tables into the README, between its two markers: `python benchmarks/readme.py`, part of `make results`."""

from __future__ import annotations

from pathlib import Path

from unlearnbench import report
from unlearnbench.formats import markdown_table

START, END = "<!-- leaderboard -->", "<!-- /leaderboard -->"
ROOT = Path(__file__).resolve().parent.parent


def filled(text: str, results: Path) -> str:
    """The README's text with the tables of the boards that carry a signal."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    parts = []
    for board in report.load(results):
        if board.signal:
            parts += [f"**{board.title}**: {board.description}", "", *markdown_table(board), ""]
    return "\n".join([before + START, "", *parts]) + END + after


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8"), ROOT / "results" / "quickstart"), encoding="utf-8")
