"""Rows of published data sets: from the Hugging Face hub, or from a local folder laid out like it.

Knows where a data set is looked for, JSON and JSON lines, and how rows are checked: columns, row counts, and that the rows of one
file are those of another, in the same order. Knows no data set and no model. Every mistake is one `UserError` naming the place.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from unlearnbench.api import UserError

ROOT_VARIABLE = "UNLEARNBENCH_DATA"
"""Environment variable: the folder above the folders of data sets."""

Column = Literal["text", "texts"]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Where one data set is.

    Attributes:
        hub: its name on the hub, such as "locuslab/TOFU".
        folder: the local folder to read instead; None asks the hub.
    """

    hub: str
    folder: Path | None

    def rows(
        self, configuration: str, split: str = "train", *, file: str, columns: Mapping[str, Column], count: int | None = None
    ) -> tuple[Row, ...]:
        """The checked rows of one split; each file is read once per process.

        Args:
            configuration: the hub's configuration.
            split: the hub's split.
            file: the same rows in a local folder, by a path inside it: JSON lines, or one JSON list; a bare string is a row {text}.
            columns: the columns that are needed; "text" is a string, "texts" a list of at least one string. Others are left out.
            count: how many rows the published split has; None where any number above 0 will do.

        Raises:
            UserError: the split is not there, or has other columns or another number of rows.
        """
        if self.folder is None:
            place, found = f"{self.hub}, configuration {configuration}, split {split}", _from_hub(self.hub, configuration, split)
        else:
            path = self.folder / file
            place, found = str(path), _from_file(path, self.hub)
        if count is not None and len(found) != count:
            raise UserError(f"{place} has {len(found)} rows; {self.hub} has {count} there")
        if not found:
            raise UserError(f"{place} has no rows")
        return tuple(_checked(row, columns, f"{place}, row {number}") for number, row in enumerate(found, 1))


def find(hub: str, *, under: str, data_dir: str | None) -> DataSet:
    """Where to read a data set: `data_dir`, or its folder below UNLEARNBENCH_DATA where that is set, or else the hub.

    Args:
        hub: the data set's name on the hub.
        under: its folder below the root, such as "tofu" or "muse/news".
        data_dir: the folder of that data set, as given by the user.

    Raises:
        UserError: a folder that was given is not there.
    """
    root = os.environ.get(ROOT_VARIABLE)
    if data_dir is not None:
        folder, said = Path(data_dir).expanduser(), f"data_dir is {data_dir!r}"
    elif root:
        folder, said = Path(root).expanduser() / under, f"{ROOT_VARIABLE} is {root!r}"
    else:
        return DataSet(hub=hub, folder=None)
    if not folder.is_dir():
        raise UserError(f"{said}, but {folder} is no folder; it must hold the files of {hub}")
    return DataSet(hub=hub, folder=folder.resolve())


def same_rows(rows: Sequence[Row], others: Sequence[Row], keys: Sequence[str], *, what: str, of: str) -> None:
    """Check that two sequences hold the same content in the same order, so that they may be joined row by row.

    Args:
        rows: the rows to check.
        others: what they must be.
        keys: the columns that are compared.
        what: what to call `rows` in an error.
        of: what to call `others`.

    Raises:
        UserError: a row is missing, changed, or in another place; the message names the first.
    """
    wanted = [tuple(row[key] for key in keys) for row in others]
    found = [tuple(row[key] for key in keys) for row in rows]
    for number, (mine, theirs) in enumerate(zip(found, wanted, strict=False), 1):
        if mine != theirs:
            where = f"it is row {wanted.index(mine) + 1} there: the rows were reordered" if mine in wanted else "which has no such row"
            raise UserError(f"row {number} of {what}, {mine[0][:60]!r}, is not row {number} of {of}; {where}")
    if len(found) != len(wanted):
        raise UserError(f"{what} has {len(found)} rows and {of} has {len(wanted)}; they must be the same rows")


def digest(rows: Sequence[Any]) -> str:
    """A hash of rows in their order, for keys: a model trained on other texts has another key."""
    return hashlib.sha256(json.dumps(list(rows), ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def read_json_rows(path: Path) -> list[Any]:
    """The rows of a file of JSON lines, or of one JSON list; blank lines are left out.

    Raises:
        UserError: the file cannot be read or is not JSON; the message names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    try:
        if text.lstrip().startswith("["):
            rows: list[Any] = json.loads(text)
            return rows
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}; a file holds JSON lines or one JSON list") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON: {error.msg}; a file holds JSON lines or one JSON list") from error
    return rows


@cache
def _from_file(path: Path, hub: str) -> list[Any]:
    if not path.is_file():
        beside = sorted(other.name for other in path.parent.iterdir()) if path.parent.is_dir() else []
        raise UserError(f"{path} is missing: this part of {hub} is not in the folder, which has: {', '.join(beside) or 'nothing'}")
    return read_json_rows(path)


@cache
def _from_hub(hub: str, configuration: str, split: str) -> list[Any]:
    from datasets import load_dataset

    try:
        return [dict(row) for row in load_dataset(hub, configuration, split=split)]
    except Exception as error:  # the library's own errors, and those of the network and the file system
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = f"give its folder as data_dir, or the folder above it as {ROOT_VARIABLE}"
        raise UserError(f"cannot load {hub}, configuration {configuration!r}, split {split!r}: {reason:.200}; {advice}") from error


def _checked(row: Any, columns: Mapping[str, Column], place: str) -> Row:
    row = {"text": row} if isinstance(row, str) else row
    if not isinstance(row, dict):
        raise UserError(f"{place} is {row!r:.60}; a row has the columns {', '.join(columns)}")
    for name, kind in columns.items():
        if name not in row:
            raise UserError(f"{place} has no column {name!r}; it has: {', '.join(row) or 'none'}")
        value = row[name]
        texts = [value] if kind == "text" else value if isinstance(value, list) and value else [None]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{place}: {name} is {value!r:.60}; it must be {'a text' if kind == 'text' else 'a list of texts'}")
    return {name: row[name] for name in columns}
