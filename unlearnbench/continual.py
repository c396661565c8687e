"""Requests in sequence: what is left of each request after every step, and what is left of utility. Reads records only; no torch.

A record's headline scores speak of all requests so far. Its per-item values say more: the clusters that a step adds are its own
request's, so that every request can be followed to the end of the sequence.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unlearnbench.records import Record
from unlearnbench.tables import Board

Known = dict[str, dict[str, float]]
"""Metric -> cluster -> mean over its rows."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """One row of a leaderboard over the steps of a sequence.

    left: requests x steps; what is still known of request i after step t on the scale where the oracles are 0 and the originals 1, mean
        over the headline scores; None before the request was made.
    kept: steps; utility as a share of the oracles'.
    """

    suite: str
    scenario: str
    request: str
    label: str
    role: str
    left: tuple[tuple[float | None, ...], ...]
    kept: tuple[float | None, ...]


def courses(folder: Path, records: Sequence[Record], found: Sequence[Board]) -> list[Course]:
    """The course of every row, of all sequences that a folder of records holds.

    Args:
        folder: where the records and, beside them, their per-item values (parquet) are.
        records: the records.
        found: their boards.
    """
    places = {path.name: path for path in folder.rglob("*.parquet")}
    sequences: dict[tuple[str, str, str], list[Board]] = {}
    for board in found:
        sequences.setdefault((board.suite, board.scenario, board.request), []).append(board)
    result = []
    for (suite, scenario, request), steps in sequences.items():
        if len(steps) < 2:
            continue
        here = [r for r in records if (r.trial.suite, r.trial.scenario, r.trial.request) == (suite, scenario, request)]
        mine = [r for r in here if r.status == "done"]
        judging = [column for column in steps[0].headline if column not in steps[0].blunt and column[1] is None]
        # A membership attack's per-item scores speak of holdout rows too, and mean nothing one by one.
        metrics = [column[0] for column in judging if not steps[0].facts[column].two_sided]
        lacking = [r.filename for r in mine if Path(r.filename).with_suffix(".parquet").name not in places]
        if lacking:  # records may be published without their per-item values
            logging.getLogger(__name__).info("%s: no per-item values beside %s: requests are not followed", request, lacking[0])
            continue
        values = {r.key: _known(places[Path(r.filename).with_suffix(".parquet").name], metrics) for r in mine}
        made = _made(values, mine, len(steps))
        for row in steps[0].rows:
            if row.role in ("method", "original", "sanity", "reference"):
                left = tuple(
                    tuple(_left(values, mine, row.label, asked, t) if t >= number else None for t in range(len(steps)))
                    for number, asked in enumerate(made)
                )
                kept = [next((other.kept for other in board.rows if other.label == row.label), None) for board in steps]
                result.append(
                    Course(
                        suite=suite,
                        scenario=scenario,
                        request=request,
                        label=row.label,
                        role=row.role,
                        left=left,
                        kept=tuple(kept),
                    )
                )
    return result


def _known(path: Path, metrics: Sequence[str]) -> Known:
    """Cluster means of a record's per-item values without attack; metrics that are no mean over rows have none."""
    import pyarrow.parquet as pq

    rows: dict[str, dict[str, list[float]]] = {}
    for item in pq.read_table(path).to_pylist():
        if item["attack"] is None and item["metric"] in metrics:
            rows.setdefault(item["metric"], {}).setdefault(item["cluster"], []).append(item["value"])
    return {metric: {cluster: float(np.mean(values)) for cluster, values in clusters.items()} for metric, clusters in rows.items()}


def _made(values: Mapping[str, Known], records: Iterable[Record], steps: int) -> list[set[str]]:
    """The clusters that each step asks to forget: those of its forget split that no earlier step had."""
    anchors = {record.trial.step: record for record in records if record.trial.role == "original" and record.trial.native is None}
    seen: set[str] = set()
    made = []
    for step in range(steps):
        known = values[anchors[step].key]
        now = set.intersection(*(set(clusters) for clusters in known.values()))
        made.append(now - seen)
        seen |= now
    return made


def _left(values: Mapping[str, Known], records: Sequence[Record], label: str, clusters: set[str], step: int) -> float | None:
    """What a row still knows of some clusters at a step, on the scale of the anchors; None where that cannot be said."""

    def mean(metric: str, wanted: Any) -> float:
        chosen = [values[r.key].get(metric, {}) for r in records if r.trial.step == step and wanted(r.trial)]
        found = [known[cluster] for known in chosen for cluster in clusters] if all(chosen) else []
        return float(np.mean(found)) if found else math.nan

    shares = []
    for metric in sorted({metric for known in values.values() for metric in known}):
        original = mean(metric, lambda trial: trial.role == "original" and trial.native is None)
        oracle = mean(metric, lambda trial: trial.role == "oracle" and trial.native is None)
        own = mean(metric, lambda trial: trial.label == label)
        if original != oracle:
            shares.append((own - oracle) / (original - oracle))
    value = float(np.mean(shares)) if shares else math.nan
    return value if math.isfinite(value) else None


def write(folder: Path, found: Sequence[Course]) -> list[Path]:
    """Write continual.csv and continual.png, and return their paths."""
    table = folder / "continual.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["suite", "scenario", "request", "label", "role", "step", "what", "value"])
        for course in found:
            head = [course.suite, course.scenario, course.request, course.label, course.role]
            for step, kept in enumerate(course.kept):
                writer.writerow([*head, step + 1, "utility kept", "" if kept is None else f"{kept:.6g}"])
            for number, values in enumerate(course.left):
                for step, value in enumerate(values):
                    if step >= number:
                        writer.writerow([*head, step + 1, f"left of request {number + 1}", "" if value is None else f"{value:.6g}"])
    return [table, _draw(found, folder / "continual.png")]


def _draw(found: Sequence[Course], path: Path) -> Path:
    """One panel per row: a line per request, from the step at which it was made, and utility as a dashed line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(found))
    lines = math.ceil(len(found) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axis, course in zip(axes, found, strict=False):
        steps = range(1, len(course.kept) + 1)
        for number, values in enumerate(course.left):
            points = [math.nan if value is None else value for value in values]
            axis.plot(steps, points, marker="o", ms=4, label=f"left of request {number + 1}")
        axis.plot(steps, [math.nan if kept is None else kept for kept in course.kept], "k--", marker=".", label="utility kept")
        axis.axhline(0, color="#1e8449", lw=0.8)
        axis.set_title(f"{course.label} on {course.scenario}", fontsize=10)
        axis.set_xticks(list(steps))
        axis.set_xlabel("after request")
        axis.grid(alpha=0.25)
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    axes[0].set_ylabel("oracle 0, original 1 (utility: oracle 1)")
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes[: len(found)]), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Software": None})
    return path
