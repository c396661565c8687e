"""Chooses hyper-parameters on validation requests, with an equal budget for every method that has a grid.

A suite's grids are tried on the validation requests of its own requests, other rows with their own originals and oracles, so that no
leaderboard's request is ever read; everything goes through the runner and is stored, resumed and recorded like any other suite. Beside
the records lie `tuning.json`, every configuration with its scores, and `tuned.yaml`, the suite with the choices in place of the grids.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unlearnbench import document
from unlearnbench.api import UserError
from unlearnbench.config import PluginSpec, Suite, Track, expand
from unlearnbench.files import content_key, write_json
from unlearnbench.formats import name
from unlearnbench.records import Record
from unlearnbench.runner import RunSummary, run_suite
from unlearnbench.tables import Board, Row, boards

RULE = (
    "On each validation request: the mean over the headline scores, without attacks, of |anchored value| clipped to [0, 1] (0 is that "
    "request's oracles, 1 its originals; scores that cannot tell those apart are left out, and all scores of a request without a signal), "
    "plus the share of the oracles' utility that is lost, max(0, 1 - kept). The mean over requests and steps is the configuration's score; "
    "the smallest is chosen, the first in the grid's order among equals. A configuration that misses a value of any seed has no score."
)
Decision = tuple[PluginSpec, PluginSpec | None]
"""A method with its grid, and the point that was chosen, if any."""


def tune_suite(
    suite: Suite,
    *,
    store: str,
    out: Path,
    workers: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: Literal["fp32", "bf16"] = "fp32",
    on_record: Callable[[Record, int, int], None] | None = None,
) -> RunSummary:
    """Try `suite.budget` configurations of every method with a grid, and write what was found and chosen into `out`.

    Args:
        suite: its seeds, oracles, metrics and scenarios are used; attacks are not, selection must not depend on them.
        store: where artefacts are kept, a folder or an fsspec URL.
        out: the folder of the records, `tuning.json` and `tuned.yaml`.
        workers: processes; results do not depend on it.
        device: where models run.
        dtype: the precision of training.
        on_record: called with each record, the number of records so far and their total.

    Returns:
        How the run of all configurations ended.

    Raises:
        UserError: no method has a grid, a grid has fewer points than the budget, or a validation request is also the leaderboard's.
    """
    derived = validation_suite(suite)
    records: list[Record] = []

    def keep(record: Record, done: int, total: int) -> None:
        records.append(record)
        if on_record is not None:
            on_record(record, done, total)

    summary = run_suite(derived, store=store, out=out, workers=workers, device=device, dtype=dtype, on_record=keep)
    # A run that found a damaged artefact starts over and tells of its records again.
    found = boards(list({record.key: record for record in records}.values()))
    decisions: list[list[Decision]] = []
    report: list[dict[str, Any]] = []
    for index, track in enumerate(suite.tracks):
        made = [_decided(spec, suite.budget, _judging(found, track)) for spec in track.methods if spec.grid]
        decisions.append([(spec, chosen) for spec, chosen, _ in made])
        requests = validation_requests(suite, index) if made else []
        report += [{"scenario": track.scenario.label, "requests": requests, **entry} for _, _, entry in made]
    tuned = _tuned(suite, decisions)
    write_json(
        out / "tuning.json",
        {
            "schema_version": 1,
            "suite": suite.suite,
            "rule": RULE,
            "budget": suite.budget,
            "seeds": list(suite.seeds),
            "oracles": suite.oracles,
            "methods": report,
        },
    )
    if tuned is not None:
        (out / "tuned.yaml").write_text(document.dump(_beside(tuned.document(), out)), encoding="utf-8")
    for entry in report:
        if entry["error"] is not None:
            logging.getLogger(__name__).warning("%s on %s: %s", entry["label"], entry["scenario"], entry["error"])
    return summary


# ---------------------------------------------------------------------------------------------------------------------- what is tried


def validation_suite(suite: Suite) -> Suite:
    """The suite that tuning runs: every grid's `budget` points, on validation requests, without attacks.

    Raises:
        UserError: as `tune_suite`.
    """
    tracks: list[Track] = []
    taken: dict[tuple[str, str], int] = {}
    for index, track in enumerate(suite.tracks):
        methods = [point for spec in track.methods if spec.grid for point in sampled(spec, suite.budget)]
        if not methods:
            continue
        requests = validation_requests(suite, index)
        for request in requests:
            first = taken.setdefault((track.scenario.label, request), index)
            if first != index:
                raise UserError(
                    f"tracks {first} and {index} are both tuned on {track.scenario.label}/{request}; put their methods into one track or "
                    "give their scenarios labels of their own"
                )
        tracks.append(track.model_copy(update={"requests": tuple(requests), "methods": tuple(methods), "attacks": ()}))
    if not tracks:
        raise UserError(f"no method of {suite.suite} has a grid; give one to tune, such as grid: {{lr: [1e-5, 1e-4]}}")
    return suite.model_copy(update={"suite": f"{suite.suite}-tune", "tracks": tuple(tracks)})


def validation_requests(suite: Suite, index: int) -> list[str]:
    """The validation requests of a track's requests.

    Raises:
        UserError: one of them is a request of the leaderboard.
    """
    track = suite.tracks[index]
    asked = {request for other in suite.tracks if other.scenario.name == track.scenario.name for request in other.requests}
    found = list(dict.fromkeys(track.asked(request).validation_request for request in track.requests))
    for request in found:
        if request in asked:
            raise UserError(
                f"{track.scenario.label}/{request} is the validation request of one of {', '.join(track.requests)}, and the suite asks for "
                "it too; leave it out, as hyper-parameters are never chosen on the leaderboard's requests"
            )
    return found


def sampled(spec: PluginSpec, budget: int) -> list[PluginSpec]:
    """Exactly `budget` points of a grid, in the grid's order.

    Which ones is fixed: the points whose hash, together with the method's name, is smallest. So the choice is as good as random, the
    same everywhere, and a point added to the grid changes it by one point at most.

    Raises:
        UserError: the grid has fewer points.
    """
    points = expand(spec)
    if len(points) < budget:
        shape = " x ".join(str(len(values)) for values in spec.grid.values())
        raise UserError(
            f"the grid of {spec.label} has {len(points)} configurations ({shape}); every method is tried with the same number, "
            f"budget: {budget}; add at least {budget - len(points)} more, or lower the budget"
        )
    draw = {
        point.label: content_key({"method": spec.name, "point": {field: point.fields[field] for field in spec.grid}}) for point in points
    }
    kept = sorted(draw, key=draw.__getitem__)[:budget]
    return [point for point in points if point.label in kept]


# ---------------------------------------------------------------------------------------------------------------------- what is chosen


def _judging(found: Sequence[Board], track: Track) -> list[Board]:
    """The boards of the validation requests of a track."""
    requests = {track.asked(request).validation_request for request in track.requests}
    return [board for board in found if board.scenario == track.scenario.label and board.request in requests]


def _decided(spec: PluginSpec, budget: int, found: Sequence[Board]) -> tuple[PluginSpec, PluginSpec | None, dict[str, Any]]:
    """A method, its chosen point, and what the report says of it."""
    points = sampled(spec, budget)
    tried = [_tried(point, spec, found) for point in points]
    scores = [math.inf if entry["score"] is None else entry["score"] for entry in tried]
    best = scores.index(min(scores))
    chosen = points[best] if math.isfinite(scores[best]) else None
    reasons = sorted({entry["reason"] for entry in tried if entry["reason"] is not None})
    error = None if chosen else f"none of {budget} configurations has a score, so it is left out of tuned.yaml: {'; '.join(reasons)}"
    entry = {
        "name": spec.name,
        "label": spec.label,
        "grid": spec.grid,
        "configurations": tried,
        "chosen": None if chosen is None else chosen.label,
        "error": error,
    }
    fields = spec.fields if chosen is None else chosen.fields
    return spec, None if chosen is None else PluginSpec(name=spec.name, label=spec.label, fields=fields), entry


def _tried(point: PluginSpec, spec: PluginSpec, found: Sequence[Board]) -> dict[str, Any]:
    places = []
    for board in found:
        row = next(row for row in board.rows if row.label == point.label)
        places.append({"request": board.request, "step": board.step, **judged(board, row)})
    reasons = list(dict.fromkeys(place["reason"] for place in places if place["reason"] is not None))
    score = None if reasons else float(np.mean([place["score"] for place in places]))
    return {
        "label": point.label,
        "fields": {field: point.fields[field] for field in spec.grid},
        "score": score,
        "reason": "; ".join(reasons) or None,
        "places": places,
    }


def judged(board: Board, row: Row) -> dict[str, Any]:
    """One configuration on one validation request: `RULE` in numbers.

    Returns:
        score, its parts distance and lost, the anchored values by column; or, with score None, the reason.
    """
    scores = {name(column): row.scores[column] for column in board.columns}
    reasons = list(dict.fromkeys(score.reason for score in scores.values() if score.reason is not None))
    values = {name(column): row.scores[column].anchored for column in board.headline} if board.signal else {}
    anchored = {column: value for column, value in values.items() if value is not None}
    if reasons:
        return {"score": None, "distance": None, "lost": None, "anchored": anchored, "reason": "; ".join(reasons)}
    distance = float(np.mean([min(1.0, abs(value)) for value in anchored.values()])) if anchored else 0.0
    lost = 0.0 if row.kept is None else max(0.0, 1 - row.kept)
    return {"score": distance + lost, "distance": distance, "lost": lost, "anchored": anchored, "reason": None}


# --------------------------------------------------------------------------------------------------------------------- what is written


def _tuned(suite: Suite, decisions: Sequence[Sequence[Decision]]) -> Suite | None:
    """The suite with the chosen points; methods without one are left out, and tracks without methods. None if nothing is left."""
    tracks = []
    for track, made in zip(suite.tracks, decisions, strict=True):
        chosen = iter(made)
        methods = [next(chosen)[1] if spec.grid else spec for spec in track.methods]
        kept = tuple(spec for spec in methods if spec is not None)
        if kept:
            tracks.append(track.model_copy(update={"methods": kept}))
    return suite.model_copy(update={"tracks": tuple(tracks)}) if tracks else None


def _beside(plain: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A suite's document with its plugin files relative to a folder, as `load_suite` reads them."""

    def near(item: dict[str, Any]) -> dict[str, Any]:
        file, _, cls = item["name"].rpartition(":")
        return {**item, "name": f"{Path(os.path.relpath(file, folder)).as_posix()}:{cls}"} if file else item

    tracks = [
        {**track, "scenario": near(track["scenario"]), **{key: list(map(near, track[key])) for key in ("methods", "attacks", "metrics")}}
        for track in plain["tracks"]
    ]
    return {**plain, "tracks": tracks}
