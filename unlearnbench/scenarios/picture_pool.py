"""Pictures from files as a pool: which rows are taken, standardised, and parted by a split seed.

Knows rows and their labels; no request.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from unlearnbench.api import UserError
from unlearnbench.scenarios.image_pool import Pool, groups_of_copies
from unlearnbench.scenarios.image_rows import ImageRows
from unlearnbench.scenarios.picture_features import component_scores, memorisation, random_features

LEAST_UNSEEN = 3
"""Unseen pictures that a class must have: one each for validation, holdout and test."""
VALIDATION = 10
"""One in so many unseen pictures is for validation."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PicturePool(Pool):
    """Pictures with their places in the files, and what fixed features say of them.

    Attributes:
        classes: Number of classes.
        fine: Classes within classes, int64 ``[n]``; the classes themselves where there are none.
        origin: Each picture's identity: its part and row.
    """

    classes: int
    fine: Tensor
    origin: tuple[str, ...]

    def identity(self, row: int) -> str:
        """See `Pool.identity`."""
        return self.origin[row]

    @cached_property
    def features(self) -> Tensor:
        """See `picture_features.random_features`, float64 ``[n, f]``."""
        return random_features(self.images)

    @cached_property
    def memorisation(self) -> Mapping[int, float]:
        """Training row -> see `picture_features.memorisation`."""
        rows = list(self.train)
        scores = memorisation(self.features[rows], self.truth[rows], self.classes)
        return dict(zip(rows, scores.round(decimals=9).tolist(), strict=True))

    @cached_property
    def components(self) -> Tensor:
        """See `picture_features.component_scores`: of the training rows' kernel, ``[components, n]``."""
        return component_scores(self.features, self.truth, list(self.train), self.classes).round(decimals=9)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How rows become a pool.

    Attributes:
        data_set: Its name.
        names: Names of the classes by number.
        column: The label column that models are trained on.
        fine: The column of classes within classes, or the same; taking and parting rows is stratified by it.
        train_per_class: Training rows taken of each fine class, or None for all (of rows that have no test part: four in five).
        test_per_class: The same for unseen rows.
        mean: Of each channel, of pixels from 0 to 1.
        std: Deviation of each channel.
    """

    data_set: str
    names: tuple[str, ...]
    column: str
    fine: str
    train_per_class: int | None
    test_per_class: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


@lru_cache(maxsize=4)
def draw_pool(train: ImageRows, test: ImageRows | None, layout: Layout, split_seed: int) -> PicturePool:
    """The pictures and the parts that a split seed draws.

    Pictures that are equal are one: those of training with one label stay together, further ones (with another label, or unseen) are
    left out, so that no picture is on two sides.

    Args:
        train: Rows to train on.
        test: Rows nobody trains on; None parts the rows of `train` into both.
        layout: Which of them, and how.
        split_seed: Draws the rows that are taken and the validation part.

    Raises:
        UserError: a class has too few rows, or a picture is damaged.
    """
    taken, seen = _taken(train, test, layout, split_seed)
    sides = [("train", train, taken), ("test" if test else "train", test or train, seen)]
    raw = torch.cat([rows.pixels(index) for _, rows, index in sides])
    truth, fine = (torch.cat([rows.labels[column][index] for _, rows, index in sides]) for column in (layout.column, layout.fine))
    kept: dict[str, list[int]] = {"train": [], "unseen": []}
    copies: dict[int, tuple[int, ...]] = {}
    for first, *others in groups_of_copies(raw):
        kept["train" if first < len(taken) else "unseen"].append(first)
        if same := tuple(row for row in others if row < len(taken) and truth[row] == truth[first]):
            copies[first] = same
    rng, classes = random.Random(f"{layout.data_set}/parts/{split_seed}"), truth.tolist()
    validation = []
    for number in range(len(layout.names)):
        rows = [row for row in kept["unseen"] if classes[row] == number]
        if len(rows) < LEAST_UNSEEN:
            raise UserError(f"class {layout.names[number]!r} has {len(rows)} different unseen pictures; at least {LEAST_UNSEEN} are needed")
        validation += rng.sample(rows, max(1, len(rows) // VALIDATION))
    shifts = torch.tensor([rng.randint(1, len(layout.names) - 1) for _ in range(len(raw))])
    mean, std = (torch.tensor(values)[:, None, None] for values in (layout.mean, layout.std))
    return PicturePool(
        data_set=layout.data_set,
        images=raw.to(torch.float32).div_(255).sub_(mean).div_(std),
        truth=truth,
        wrong=(truth + shifts) % len(layout.names),
        split_seed=split_seed,
        train=tuple(kept["train"]),
        validation=tuple(sorted(validation)),
        unseen=tuple(sorted(set(kept["unseen"]) - set(validation))),
        extremes=(1 - 2 * mean) / std,
        copies=copies,
        classes=len(layout.names),
        fine=fine,
        origin=tuple(f"{layout.data_set}-{part}-{row:05d}" for part, _, index in sides for row in index),
    )


def _taken(train: ImageRows, test: ImageRows | None, layout: Layout, split_seed: int) -> tuple[list[int], list[int]]:
    """The rows to train on and the unseen ones, ascending, as many of each fine class as asked."""
    rng = random.Random(f"{layout.data_set}/rows/{split_seed}")
    chosen: list[int] = []
    unseen: list[int] = []
    groups = _by_class(train, layout)
    apart = _by_class(test, layout) if test else {}
    for number, rows in sorted(groups.items()):
        order = rng.sample(rows, len(rows))
        if test:
            others = apart.get(number, [])
            others = rng.sample(others, len(others))
        else:
            n = len(order) * 4 // 5 if layout.train_per_class is None else layout.train_per_class
            order, others = order[:n], order[n:]
        for what, found, asked in (("train", order, layout.train_per_class), ("test", others, layout.test_per_class)):
            if asked is not None and len(found) < asked:
                place = (test or train).place if what == "test" else train.place
                raise UserError(f"{what}_per_class is {asked}; of {layout.fine} {number} {place} has {len(found)} to give")
        chosen += order[: layout.train_per_class]
        unseen += others[: layout.test_per_class]
    return sorted(chosen), sorted(unseen)


def _by_class(rows: ImageRows, layout: Layout) -> dict[int, list[int]]:
    """Fine class -> its rows."""
    groups: dict[int, list[int]] = {}
    for row, number in enumerate(rows.labels[layout.fine].tolist()):
        groups.setdefault(number, []).append(row)
    return groups
