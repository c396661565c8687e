"""The versioned schema of one trial's result file, `<results>/<suite>/<label>-<key>.json`, and how it is read back.

A record opens like this:

    {"schema_version": 1, "key": "0c8f...", "status": "done",
     "trial": {"suite": "quickstart", "scenario": "authors", "request": "forget10", "label": "npo", "role": "method", "seed": 0, ...},
     "cells": [{"metric": "probability", "attack": null, "value": 0.31, "n": 24, ...}, ...],
     "anchors": {"original": ["77ab..."], "oracle": ["5e01...", "..."]},
     "provenance": {...}, "volatile": {"seconds": 4.1, ...}}

A record is never edited: new numbers are new files. What differs between two runs of the same thing (time, memory, machine) stands in
`volatile`. Imports no torch: tables need none.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from unlearnbench.api import UserError
from unlearnbench.files import write_json

SCHEMA_VERSION: Literal[1] = 1
MAX_CLUSTERS = 64
MANIFEST = "suite.json"
"""Beside the records of a run: names them, so that those of earlier code or settings in the same folder are not shown."""
Status = Literal["done", "skipped", "failed"]


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Clusters(_Schema):
    """A metric's values by cluster, enough for every interval: means and sizes, in the order of the clusters' names."""

    digest: int
    """A checksum of the names: cells with the same digest speak of the same clusters and can be paired."""
    means: tuple[float, ...]
    counts: tuple[int, ...]


class Cell(_Schema):
    """One number, or the reason why there is none."""

    metric: str
    """The metric's label; for membership inference the attack's label."""
    attack: str | None = None
    step: int | None = None
    """The attacker's budget at this point."""
    final: bool = False
    """The strongest stage of the attack."""
    level: str
    direction: Literal["higher", "lower"]
    bounds: tuple[float, float]
    side: Literal["forget", "utility", "diagnostic"]
    headline: bool
    status: Literal["done", "na", "failed"] = "done"
    reason: str | None = None
    value: float | None = None
    n: int = 0
    interval: tuple[float, float] | None = None
    """For a value that is no mean over rows, its 95 % interval."""
    covers: str | None = None
    """What that interval covers: "items" or "clusters"."""
    two_sided: bool = False
    """True where departing from the oracle to either side gives the forget set away: an AUC below it is as telling as one above."""
    clusters: Clusters | None = None

    @property
    def column(self) -> tuple[str, str | None, int | None]:
        """What a table tells columns apart by."""
        return (self.metric, self.attack, self.step)


class TrialInfo(_Schema):
    """What was tried."""

    suite: str
    scenario: str
    settings: dict[str, Any]
    request: str
    request_kind: str
    request_description: str
    signal: bool
    step: int
    method: str
    label: str
    role: Literal["original", "oracle", "method", "reference", "sanity"]
    hyperparameters: dict[str, Any]
    seed: int
    native: str | None = None
    edits_weights: bool | None = None


class Record(_Schema):
    """The result of one trial."""

    schema_version: Literal[1] = SCHEMA_VERSION
    key: str
    status: Status
    reason: str | None = None
    trial: TrialInfo
    cells: tuple[Cell, ...] = ()
    anchors: dict[str, tuple[str, ...]]
    """The keys of the records of the anchors: "original" and "oracle"."""
    provenance: dict[str, Any]
    volatile: dict[str, Any] = {}

    @property
    def filename(self) -> str:
        """The file's name without a folder."""
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in self.trial.label)
        return f"{safe}-{self.key[:16]}.json"

    def cell(self, metric: str, attack: str | None = None) -> Cell | None:
        """The cell of a metric, with an attack at its strongest stage; of an attack that never came to a stage, the cell that says why."""
        cells = [cell for cell in self.cells if cell.metric == metric and cell.attack == attack]
        if attack is not None:
            cells = [cell for cell in cells if cell.final] or [cell for cell in cells if cell.step is None]
        return cells[0] if cells else None

    def stable(self) -> dict[str, Any]:
        """Everything but the volatile block: equal for two runs of the same trial on one machine."""
        return self.model_dump(mode="json", exclude={"volatile"})

    def write(self, folder: Path) -> Path:
        """Write the record atomically under its own name."""
        path = folder / self.filename
        write_json(path, self.model_dump(mode="json"))
        return path


def cluster_means(values: Mapping[str, float], clusters: Mapping[str, str]) -> Clusters:
    """Pool per-row values by cluster.

    More than 64 clusters are pooled further into 64 fixed groups by a checksum of their names: grouping independent clusters at random
    leaves intervals valid and keeps records small.

    Args:
        values: value of each row.
        clusters: cluster of each row.
    """
    names = sorted({clusters[row] for row in values})
    if len(names) > MAX_CLUSTERS:
        group = {name: f"{zlib.crc32(name.encode()) % MAX_CLUSTERS:02d}" for name in names}
    else:
        group = {name: name for name in names}
    pooled: dict[str, list[float]] = {}
    for row, value in values.items():
        pooled.setdefault(group[clusters[row]], []).append(value)
    order = sorted(pooled)
    return Clusters(
        digest=zlib.crc32("\n".join(names).encode()),
        means=tuple(float(np.mean(pooled[name])) for name in order),
        counts=tuple(len(pooled[name]) for name in order),
    )


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        UserError: the file is no record of this schema.
    """
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}; is it a record of schema {SCHEMA_VERSION}?") from error


def read_records(folder: Path) -> list[Record]:
    """All records below a folder, by path; of a folder whose `suite.json` names the records of its latest run, those alone.

    A run that is not finished has named records that are not there yet: a warning says how many.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of records")
    paths = {path for path in folder.rglob("*-*.json") if not path.name.startswith(".")}
    for manifest in folder.rglob(MANIFEST):
        named = {manifest.parent / name for name in _named(manifest)}
        paths -= {path for path in paths if path.parent == manifest.parent} - named
        if missing := len(named - paths):
            logging.getLogger(__name__).warning(
                "%s: %d of %d records are not there yet; run the suite again to complete them", manifest.parent, missing, len(named)
            )
    if not paths:
        raise UserError(f"{folder} holds no records (<label>-<key>.json)")
    return [read_record(path) for path in sorted(paths)]


def _named(manifest: Path) -> list[str]:
    try:
        names = json.loads(manifest.read_bytes())["records"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{manifest} does not name the records of a run ({error!r}); run the suite again into this folder") from error
    return list(names)


def write_items(path: Path, items: Sequence[tuple[str, str | None, int | None, str, str, float]]) -> None:
    """Write per-item values as parquet: metric, attack, step, row, cluster, value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(zip(*items, strict=True)) or [()] * 6
    types = {"metric": pa.string(), "attack": pa.string(), "step": pa.int64(), "row": pa.string(), "cluster": pa.string()}
    schema = pa.schema([*types.items(), ("value", pa.float64())])
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)
