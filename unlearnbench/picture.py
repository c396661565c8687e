"""The picture beside a leaderboard: forgetting against utility, one panel per board, with the oracles' band. Imports no torch.

To the left is what the worst headline score still gives away (oracle 0, original 1), upwards what is left of the oracles' utility: a good
method is at the top, in the band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from unlearnbench.tables import HELD_OUT, UTILITY_GATE, Board, Row

STYLES = {
    "original": ("X", "#b03a2e"),
    "oracle": ("*", "#1e8449"),
    "held-out": ("P", "#1e8449"),
    "reference": ("D", "#7d6608"),
    "sanity": ("v", "#909497"),
    "method": ("o", "#1f4e9c"),
}


def draw(found: Sequence[Board], path: Path) -> Path:
    """Draw all boards with a signal into one PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [board for board in found if board.signal] or list(found)
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(5.2 * columns, 4.4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, board in zip(axes, shown, strict=False):
        _panel(axis, board)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def _panel(axis: object, board: Board) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)  # made by subplots
    axis.set_title(board.title, fontsize=11)
    axis.set_xlabel("worst forget score (oracle 0, original 1)")
    axis.set_ylabel("utility kept (oracle 1)")
    low, high = _band(board)
    axis.axvspan(low, high, color="#1e8449", alpha=0.12, lw=0, label="oracle band")
    axis.axhline(UTILITY_GATE, color="#909497", lw=0.8, ls="--")
    placed: list[tuple[float, float]] = []
    for row in board.rows:
        if row.worst is None or row.kept is None:
            continue
        marker, colour = STYLES[row.role]
        axis.scatter(row.worst, row.kept, marker=marker, color=colour, s=55, zorder=3)
        # Labels of points on top of each other are stacked upwards.
        crowd = sum(abs(x - row.worst) < 0.25 and abs(y - row.kept) < 0.06 for x, y in placed)
        axis.annotate(row.label, (row.worst, row.kept), xytext=(6, 4 + 10 * crowd), textcoords="offset points", fontsize=8, color=colour)
        placed.append((row.worst, row.kept))
    axis.margins(0.14)
    axis.grid(alpha=0.25)


def _band(board: Board) -> tuple[float, float]:
    """The widest prediction interval of one more oracle over the headline columns, on the anchored scale."""
    oracle = _row(board, "oracle")
    original = _row(board, "original")
    reach = 0.0
    for column in board.headline:
        around = oracle.scores[column].gap_interval if oracle else None
        distance = original.scores[column].gap if original else None
        if around is not None and distance:
            reach = max(reach, abs(around.high / distance))
    return -reach, reach


def _row(board: Board, role: str) -> Row | None:
    return next((row for row in board.rows if row.role == role and row.label != HELD_OUT), None)
