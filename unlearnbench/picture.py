"""The picture beside a leaderboard: forgetting against utility, one panel per board, with the oracles' band. Imports no torch.

To the left is what the worst headline score still gives away (oracle 0, original 1), upwards what is left of the oracles' utility: a good
method is at the top, in the band.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unlearnbench.tables import HELD_OUT, UTILITY_GATE, Board, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN, GREY = "#1e8449", "#707b7c"
STYLES = {
    "original": ("X", "#b03a2e", "original"),
    "oracle": ("*", GREEN, "oracles"),
    "held-out": ("P", "#27ae60", "oracle, held out"),
    "reference": ("D", "#9a7d0a", "reference"),
    "sanity": ("v", GREY, "sanity check"),
    "method": ("o", "#1f4e9c", "method"),
}
"""Marker, colour and the legend's word for each role, in the legend's order."""
PANEL = (5.4, 4.4)
"""Width and height of a panel in inches."""
CROWD = 16
"""A board of more rows gets larger panels."""
LEGEND = 0.5
"""Height of the legend below all panels."""
DPI = 110
MARKER = 60.0
"""Area of a marker in square points."""


class Point(NamedTuple):
    """A row's place in a panel."""

    label: str
    role: str
    worst: float
    kept: float


def draw(found: Sequence[Board], path: Path) -> Path:
    """Draw all boards with a signal into one PNG file, up to three in a line; where none has a signal, all boards, empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [board for board in found if board.signal] or list(found)
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    # A panel of many rows needs room for their names.
    width, height = (side * (1.0 if max(len(board.rows) for board in shown) <= CROWD else 1.6) for side in PANEL)
    narrow = width * columns < 1.5 * PANEL[0]
    figure = Figure(figsize=(width * columns, height * lines + LEGEND * (2 if narrow else 1)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    placed = [_panel(axis, board) for axis, board in zip(axes, shown, strict=False)]
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    _legend(figure, {point.role for points in placed for point in points}, in_line=2 if narrow else 4)
    figure.draw_without_rendering()  # lays the panels out, so that labels can be placed in pixels
    for axis, points in zip(axes, placed, strict=False):
        _label(axis, points)
    figure.savefig(path, metadata={"Software": None})
    return path


def _panel(axis: Axes, board: Board) -> list[Point]:
    """Draw one board but for the labels of its points."""
    axis.set_title(board.title, fontsize=11)
    axis.set_xlabel("worst forget score (oracle 0, original 1)")
    axis.set_ylabel("utility kept (oracle 1)")
    axis.grid(alpha=0.25)
    points = [Point(row.label, row.role, row.worst, row.kept) for row in board.rows if row.worst is not None and row.kept is not None]
    if not points:
        why = "no signal: nothing is scored" if not board.signal else "no row has both a forget and a utility score"
        axis.text(0.5, 0.5, why, ha="center", va="center", transform=axis.transAxes, color=GREY)
        axis.set_xticks([])
        axis.set_yticks([])
        return points
    axis.axvspan(*_band(board), color=GREEN, alpha=0.13, lw=0)
    axis.axvline(0, color=GREEN, lw=0.8, alpha=0.5)  # the band may be too narrow to be seen
    axis.axhline(UTILITY_GATE, color=GREY, lw=0.9, ls="--")
    for point in points:
        marker, colour, _ = STYLES[point.role]
        # Anchors often lie under methods or on each other: they are drawn above, the held-out oracle small on the star of the pool.
        area, above = {"oracle": (2.2, 4), "held-out": (0.8, 6), "original": (0.8, 5)}.get(point.role, (1.0, 3))
        axis.scatter(
            point.worst, point.kept, marker=marker, color=colour, s=area * MARKER, zorder=above, edgecolors="white", linewidths=0.5
        )
    axis.margins(0.14)
    absent = [row.label for row in board.rows if row.worst is None or row.kept is None]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        axis.text(
            0.99,
            0.01,
            f"not drawn: {', '.join(absent[:3])}{more}",
            ha="right",
            va="bottom",
            transform=axis.transAxes,
            fontsize=7,
            color=GREY,
        )
    return points


def _legend(figure: Figure, roles: set[str], in_line: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if not roles:
        return
    entries: list[Line2D | Patch] = [
        Line2D([], [], marker=marker, color=colour, ls="", markersize=7, label=word)
        for role, (marker, colour, word) in STYLES.items()
        if role in roles
    ]
    entries.append(Patch(color=GREEN, alpha=0.13, lw=0, label="where one more oracle could lie"))
    entries.append(Line2D([], [], color=GREY, lw=0.9, ls="--", label=f"below {UTILITY_GATE:g} no rank"))
    figure.legend(handles=entries, loc="outside lower center", ncols=in_line, fontsize=8, frameon=False)


def _band(board: Board) -> tuple[float, float]:
    """The widest prediction interval of one more oracle over the columns that judge, on the anchored scale."""
    oracle, original = _row(board, "oracle"), _row(board, "original")
    reach = 0.0
    for column in board.headline:
        around = oracle.scores[column].gap_interval if oracle else None
        distance = original.scores[column].gap if original else None
        if column not in board.blunt and around is not None and distance:
            reach = max(reach, abs(around.high / distance))
    return -reach, reach


def _row(board: Board, role: str) -> Row | None:
    return next((row for row in board.rows if row.label == role and row.label != HELD_OUT), None)


# ---------------------------------------------------------------------------------------------------------------------- labels


def _label(axis: Axes, points: Sequence[Point]) -> None:
    """Write each point's name at the nearest place that is free of markers and other names, with a line to it where that is far."""
    from matplotlib.transforms import Bbox

    scale = DPI / 72
    room = math.sqrt(MARKER) / 2 * scale
    centres = [tuple(axis.transData.transform((point.worst, point.kept))) for point in points]
    taken = [Bbox.from_extents(x - room, y - room, x + room, y + room) for x, y in centres]
    inside = axis.get_window_extent()
    for point, (x, y) in zip(points, centres, strict=True):
        colour = STYLES[point.role][1]
        text = axis.annotate(
            point.label, (point.worst, point.kept), xytext=(0, 0), textcoords="offset points", fontsize=8, color=colour, va="center"
        )
        text.set_in_layout(False)
        size = text.get_window_extent()
        best = None
        for dx, dy in _offsets():
            left = x + dx * scale - (size.width if dx < 0 else size.width / 2 if dx == 0 else 0)
            box = Bbox.from_extents(left, y + dy * scale - size.height / 2, left + size.width, y + dy * scale + size.height / 2)
            over = sum(box.overlaps(other) for other in taken)
            out = not (inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1)
            if best is None or (out, over) < best[0]:
                best = ((out, over), box, math.hypot(dx, dy))
            if not out and not over:
                break
        assert best is not None  # there is at least one offset
        _, box, away = best
        text.set_position(((box.x0 - x) / scale, ((box.y0 + box.y1) / 2 - y) / scale))
        taken.append(box)
        if away > 12:
            end = axis.transData.inverted().transform((min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)))
            axis.plot([point.worst, end[0]], [point.kept, end[1]], color=colour, lw=0.5, alpha=0.6, scalex=False, scaley=False)


def _offsets() -> Iterator[tuple[float, float]]:
    """Places around a point in points, nearest first; to the right before elsewhere."""
    for radius in (9, 14, 20, 28, 38, 50, 64, 80):
        for angle in (0, 25, -25, 60, -60, 90, -90, 180, 155, -155, 120, -120):
            dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
            yield (0.0 if abs(dx) < 1e-6 else dx, dy)
