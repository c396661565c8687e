"""The images of a vision scenario and what a split seed makes of them.

Knows images, classes, copies and parts; no data set, no request and no model.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unlearnbench.scenarios.images import ImageData


def groups_of_copies(images: Tensor) -> list[list[int]]:
    """Positions of equal images, a group for each distinct one, ordered by first appearance; `images` is ``[n, ...]``."""
    groups: dict[bytes, list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(image.numpy().tobytes(), []).append(place)
    return list(groups.values())


def unique_images(images: Tensor) -> Tensor:
    """Positions of the first of each group of equal images, ascending, int64; an exact duplicate could straddle two splits."""
    return torch.tensor([group[0] for group in groups_of_copies(images)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(ABC):
    """All images and what a split seed makes of them; rows are numbers into `images`, ascending within a part.

    Attributes:
        data_set: Its name, for the generators' seeds.
        images: Standardised, float32 ``[n, channels, height, width]``.
        truth: True classes, int64 ``[n]``.
        wrong: For each image a class that is not its own, int64 ``[n]``.
        split_seed: What the parts were drawn by.
        train: Rows that models are trained on; of equal images one.
        validation: Rows that nobody trains on or is scored on.
        unseen: Rows for holdout and test, which no model trains on.
        copies: The further rows of a training image that is there more than once; they go wherever it goes.
        extremes: Sum of the darkest and the brightest value of each channel, ``[channels, 1, 1]``: less an image it is its negative.
    """

    data_set: str
    images: Tensor
    truth: Tensor
    wrong: Tensor
    split_seed: int
    train: tuple[int, ...]
    validation: tuple[int, ...]
    unseen: tuple[int, ...]
    extremes: Tensor
    copies: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def rng(self, purpose: str) -> random.Random:
        """A generator of the split seed for one purpose."""
        return random.Random(f"{self.data_set}/{purpose}/{self.split_seed}")

    def shuffled(self, purpose: str, rows: Iterable[int]) -> list[int]:
        """These rows in a random order that depends on the split seed and the purpose."""
        order = sorted(rows)
        return self.rng(purpose).sample(order, len(order))

    def of_class(self, rows: Iterable[int], number: int) -> tuple[int, ...]:
        """Those of the rows that show this class."""
        return tuple(row for row in rows if int(self.truth[row]) == number)

    @abstractmethod
    def identity(self, row: int) -> str:
        """The identity of an image."""

    def data(self, rows: Iterable[int], labels: Tensor | None = None) -> ImageData:
        """These rows and their copies as a split, with their true classes or other `labels` ``[n]``; copies are one cluster."""
        pairs = [(row, copy) for row in map(int, rows) for copy in (row, *self.copies.get(row, ()))]
        index = torch.tensor([copy for _, copy in pairs], dtype=torch.int64)
        ids, clusters = [self.identity(copy) for _, copy in pairs], [self.identity(row) for row, _ in pairs]
        return ImageData(self.images[index], (self.truth if labels is None else labels)[index], ids, clusters)


@dataclass(frozen=True)
class Drawn:
    """What a request names: training rows to forget, and unseen rows to compare them with."""

    forget: tuple[int, ...]
    holdout: tuple[int, ...]
