"""The picture: a valid image of the expected size, the same every time, with the oracles' band and every row that has a place."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from by_hand import ORACLES, anchors, beside, record
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats as scipy_stats

from unlearnbench import picture
from unlearnbench.tables import Board, boards

WIDTH, HEIGHT = 594, 484
"""A panel's size in pixels."""
LEGEND = 55


def board_of(n: int = 3, **place: object) -> Board:
    rows = [record(f"method_{i}", 0, {"probability": 0.3 + 0.01 * i, "model_utility": 0.9}, **place) for i in range(n)]
    rows.append(record("broken", 0, status="failed", reason="NaN", **place))
    (board,) = boards(beside(anchors(**place), *rows))
    return board


def size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize(("boards_drawn", "columns", "lines"), [(1, 1, 1), (2, 2, 1), (4, 3, 2)])
def test_an_image_of_three_panels_in_a_line(boards_drawn: int, columns: int, lines: int, tmp_path: Path) -> None:
    found = [board_of(request=f"forget{i}") for i in range(boards_drawn)]
    path = picture.draw(found, tmp_path / "a.png")
    # Below a single panel the legend has twice the lines.
    assert size(path) == (WIDTH * columns, HEIGHT * lines + LEGEND * (2 if columns == 1 else 1))
    pixels = image.imread(path)
    assert pixels.std() > 0.01
    assert picture.draw(found, tmp_path / "b.png").read_bytes() == path.read_bytes()


def test_boards_without_signal_are_left_out_where_others_have_one(tmp_path: Path) -> None:
    silent = board_of(signal=False, request="random10")
    assert size(picture.draw([silent, board_of()], tmp_path / "a.png"))[0] == WIDTH
    assert size(picture.draw([silent, silent], tmp_path / "b.png"))[0] == 2 * WIDTH


def axis_of(board: Board) -> tuple[object, list[picture.Point]]:
    figure = Figure(figsize=picture.PANEL, dpi=picture.DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    points = picture._panel(axis, board)
    figure.draw_without_rendering()
    picture._label(axis, points)
    return axis, points


def words(axis: object) -> list[str]:
    return [text.get_text() for text in axis.texts]  # type: ignore[attr-defined]


def test_every_row_with_a_place_has_a_marker_and_a_name() -> None:
    axis, points = axis_of(board_of())
    assert [point.label for point in points] == ["original", "oracle", "oracle (held out)", "method_0", "method_1", "method_2"]
    near = next(point for point in points if point.label == "method_0")
    assert (near.worst, near.kept) == pytest.approx((0.125, 0.9))
    assert set(words(axis)) == {*(point.label for point in points), "not drawn: broken"}
    offsets = {tuple(collection.get_offsets()[0]) for collection in axis.collections if len(collection.get_offsets())}  # type: ignore[attr-defined]
    assert {(point.worst, point.kept) for point in points} <= offsets


def test_many_missing_rows_are_counted() -> None:
    rows = [record(f"broken_{i}", 0, status="failed", reason="NaN") for i in range(5)]
    (board,) = boards(beside(anchors(), *rows))
    axis, _ = axis_of(board)
    assert "not drawn: broken_0, broken_1, broken_2 and 2 more" in words(axis)


def test_nothing_to_draw_is_said() -> None:
    silent, points = axis_of(board_of(signal=False))
    assert (words(silent), points) == (["no signal: nothing is scored"], [])
    (board,) = boards(
        beside(anchors([{"probability": 1.0}] * 2, [{"probability": v} for v in ORACLES]), record("npo", 0, {"probability": 0.3}))
    )
    bare, points = axis_of(board)
    assert (words(bare), points) == (["no row has both a forget and a utility score"], [])


def test_an_empty_picture_has_no_legend(tmp_path: Path) -> None:
    assert size(picture.draw([board_of(signal=False)], tmp_path / "a.png")) == (WIDTH, HEIGHT + 2 * LEGEND)


def test_the_band_is_where_one_more_oracle_could_lie() -> None:
    values = [{"probability": v, "rouge": 0.5 + v, "model_utility": 1.0} for v in ORACLES]
    # rouge cannot tell the anchors apart: its band would be wider than the picture.
    found = anchors([{"probability": 1.0, "rouge": 0.75, "model_utility": 1.0}] * 2, values)
    (board,) = boards(beside(found))
    spread = 0.0816496580927726
    reach = scipy_stats.t.ppf(0.975, 3) * spread * (1 + 1 / 4) ** 0.5 / 0.8
    assert board.blunt == (("rouge", None),)
    assert picture._band(board) == pytest.approx((-reach, reach))


def test_without_anchors_the_band_is_empty() -> None:
    (board,) = boards([record("npo", 0, {"probability": 0.3})])
    assert picture._band(board) == (0.0, 0.0)


@pytest.mark.parametrize("n", [3, 9])
def test_names_lie_on_no_marker_and_on_no_other_name(n: int) -> None:
    axis, points = axis_of(board_of(n))
    labels = {point.label for point in points}
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text() in labels]  # type: ignore[attr-defined]
    assert len(boxes) == len(points)
    inside = axis.get_window_extent()  # type: ignore[attr-defined]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        for point in points:
            x, y = axis.transData.transform((point.worst, point.kept))  # type: ignore[attr-defined]
            assert not box.contains(x, y)


def test_a_board_of_many_rows_has_larger_panels(tmp_path: Path) -> None:
    many = replace(board_of(), rows=board_of().rows * 10)
    assert len(many.rows) > picture.CROWD
    assert size(picture.draw([many], tmp_path / "a.png")) == (round(1.6 * WIDTH), round(1.6 * HEIGHT) + LEGEND)
