"""CIFAR-10 and CIFAR-100 as published: the hub's parquet, a local folder of it, or the official Python batches.

"Learning Multiple Layers of Features from Tiny Images". Krizhevsky. 2009. Knows where the rows are, how many there must be and which
labels they have; nothing of requests. The sums of the batches are those of the data sets' page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unlearnbench.api import UserError
from unlearnbench.scenarios.cifar_batches import SIDE, read_batch
from unlearnbench.scenarios.cifar_classes import CIFAR10, CIFAR100, COARSE, COARSE_OF
from unlearnbench.scenarios.hub_data import DataSet, find
from unlearnbench.scenarios.image_rows import ImageRows

Part = Literal["train", "test"]
COUNTS: dict[Part, int] = {"train": 50_000, "test": 10_000}


@dataclass(frozen=True, eq=False)
class Published:
    """One data set.

    Attributes:
        hub: its name on the hub.
        under: its folder below UNLEARNBENCH_DATA.
        configuration: the hub's configuration, and the folder of its parquet files.
        batches: the folder of the official batches.
        sums: part -> file -> MD5 sum.
        columns: label column -> its name in the batches, and how many classes it has.
    """

    hub: str
    under: str
    configuration: str
    batches: str
    sums: Mapping[Part, Mapping[str, str]]
    columns: Mapping[str, tuple[str, int]]

    def rows(self, part: Part, data_dir: str | None) -> ImageRows:
        """The rows of a part, read once per process.

        Args:
            part: "train" or "test".
            data_dir: a folder of parquet files or of batches, or one above it; None looks below UNLEARNBENCH_DATA, then on the hub.

        Raises:
            UserError: the part is not there, damaged, or has another number of rows, other columns or other classes.
        """
        return _rows(self, find(self.hub, under=self.under, data_dir=data_dir), part)


PUBLISHED10 = Published(
    hub="uoft-cs/cifar10",
    under="cifar10",
    configuration="plain_text",
    batches="cifar-10-batches-py",
    sums={
        "train": {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
    },
    columns={"label": ("labels", len(CIFAR10))},
)
PUBLISHED100 = Published(
    hub="uoft-cs/cifar100",
    under="cifar100",
    configuration="cifar100",
    batches="cifar-100-python",
    sums={"train": {"train": "16019d7e3df5f24257cddd939b257f8d"}, "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}},
    columns={"fine_label": ("fine_labels", len(CIFAR100)), "coarse_label": ("coarse_labels", len(COARSE))},
)


@cache
def _rows(published: Published, data: DataSet, part: Part) -> ImageRows:
    if data.folder is None:
        return _from_hub(published, part)
    for folder in (data.folder / published.batches, data.folder):
        if any((folder / name).exists() for name in published.sums[part]):
            return _from_batches(published, folder, part)
    for folder in (data.folder / published.configuration, data.folder):
        if files := sorted(folder.glob(f"{part}-*.parquet")):
            return _from_parquet(published, files, part)
    beside = sorted(str(path.relative_to(data.folder)) for path in data.folder.rglob("*") if path.is_file())[:8]
    raise UserError(
        f"{data.folder} has neither {part}-*.parquet nor {published.batches}/{next(iter(published.sums[part]))}: the {COUNTS[part]:,} rows"
        f" of {part!r} of {published.hub} are not there; it has: {', '.join(beside) or 'nothing'}"
    )


def _from_batches(published: Published, folder: Path, part: Part) -> ImageRows:
    names = {column: name for column, (name, _) in published.columns.items()}
    read = [read_batch(folder / name, md5, names) for name, md5 in published.sums[part].items()]
    labels = {column: [value for _, found in read for value in found[column]] for column in names}
    return _checked(published, part, f"{folder}", np.concatenate([pixels for pixels, _ in read]), labels)


def _from_parquet(published: Published, files: Sequence[Path], part: Part) -> ImageRows:
    import pyarrow.parquet

    wanted, columns = ["img", *published.columns], dict[str, list[Any]]()
    last = files[-1].stem.rpartition("-of-")[2]
    if last.isdigit() and int(last) != len(files):
        raise UserError(f"{files[0].parent} has {len(files)} files {part}-*-of-{last}.parquet; all {int(last)} are needed")
    for path in files:
        try:
            table = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is no parquet file that can be read: {reason:.160}") from error
        if missing := sorted(set(wanted) - set(table.column_names)):
            raise UserError(f"{path} has no column {missing[0]!r}; it has: {', '.join(table.column_names)}")
        for name in wanted:
            columns.setdefault(name, []).extend(table.column(name).to_pylist())
    return _from_columns(published, part, str(files[0] if len(files) == 1 else files[0].parent), columns)


def _from_hub(published: Published, part: Part) -> ImageRows:
    from datasets import Image, load_dataset

    try:
        found = load_dataset(published.hub, published.configuration, split=part).cast_column("img", Image(decode=False))
        columns = {name: list(found[name]) for name in ("img", *published.columns)}
    except Exception as error:  # the library's own errors, and those of the network and the file system
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "give its folder as data_dir, or the folder above it as UNLEARNBENCH_DATA"
        raise UserError(f"cannot load {published.hub}, split {part!r}: {reason:.200}; {advice}") from error
    return _from_columns(published, part, f"{published.hub}, split {part}", columns)


def _from_columns(published: Published, part: Part, place: str, columns: Mapping[str, Sequence[Any]]) -> ImageRows:
    pictures = [image.get("bytes") if isinstance(image, dict) else None for image in columns["img"]]
    for row, content in enumerate(pictures, 1):
        if not isinstance(content, bytes):
            raise UserError(f"{place}, row {row}: img holds no picture")
    return _checked(published, part, place, pictures, {name: columns[name] for name in published.columns})


def _checked(published: Published, part: Part, place: str, pictures: Any, labels: Mapping[str, Iterable[Any]]) -> ImageRows:
    """The rows, if there are as many as published and their labels are classes that belong together."""
    if len(pictures) != COUNTS[part]:
        raise UserError(f"{place} has {len(pictures):,} rows of {part!r}; {published.hub} has {COUNTS[part]:,} there")
    found = {}
    for column, (_, classes) in published.columns.items():
        values = list(labels[column])
        wrong = [(row, value) for row, value in enumerate(values, 1) if type(value) is not int or value not in range(classes)]
        if wrong:
            raise UserError(f"{place}, row {wrong[0][0]}: {column} is {wrong[0][1]!r}; allowed: 0 to {classes - 1}")
        found[column] = torch.tensor(values)
    if "coarse_label" in found:
        of = torch.tensor([COARSE.index(COARSE_OF[name]) for name in CIFAR100])
        if len(strange := (of[found["fine_label"]] != found["coarse_label"]).nonzero()):
            row = int(strange[0])
            name = CIFAR100[int(found["fine_label"][row])]
            raise UserError(f"{place}, row {row + 1}: {name} is in super-class {int(found['coarse_label'][row])}, not in {COARSE_OF[name]}")
    return ImageRows(place, found, pictures, (SIDE, SIDE))
