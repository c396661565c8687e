"""Unlearning by training on other labels: rows under labels of one's own, wrong labels, and the methods that share them.

Knows labels and the order in which forget and retain rows come; what is special to a method (a mask) is the method's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from unlearnbench.api import Batch, Data, MethodView, Modality
from unlearnbench.finetuning import TrainedMethod
from unlearnbench.training import batches


class Relabelled(Data):
    """The same rows under other labels.

    Args:
        rows: batches of them have "labels" [B].
        labels: int64 [n].
    """

    def __init__(self, rows: Data, labels: Tensor) -> None:
        if len(labels) != len(rows):
            raise ValueError(f"{len(labels)} labels for {len(rows)} rows; allowed: one per row")
        self.rows, self.labels = rows, labels
        self.ids, self.clusters = rows.ids, rows.clusters

    def take(self, index: Sequence[int]) -> Relabelled:
        """See `Data.take`."""
        return Relabelled(self.rows.take(index), self.labels[torch.tensor(list(index), dtype=torch.int64)])

    def batch(self, index: Sequence[int] | Tensor) -> Batch:
        """See `Data.batch`."""
        return {**self.rows.batch(index), "labels": self.labels[torch.as_tensor(index, dtype=torch.int64)]}


def labels_of(rows: Data) -> Tensor:
    """The labels of all rows, int64 [n]; a few rows are read at a time, since their images come along."""
    return torch.cat([rows.batch(index)["labels"] for index in torch.split(torch.arange(len(rows)), 512)])


def wrong_labels(labels: Tensor, classes: int, *, seed: int) -> Tensor:
    """One label for each row, uniform over the classes that are not its own.

    Args:
        labels: true classes, int64 [n].
        classes: number of classes, at least 2.
        seed: seeds the draw.

    Returns:
        int64 [n].

    Raises:
        ValueError: fewer than two classes.

    >>> wrong_labels(torch.tensor([0, 1, 1]), 2, seed=0)
    tensor([1, 0, 0])
    """
    if classes < 2:
        raise ValueError(f"classes is {classes}; a wrong label needs 2 or more")
    offset = torch.randint(1, classes, labels.shape, generator=torch.Generator().manual_seed(seed))
    return (labels + offset) % classes


def any_labels(labels: Tensor, classes: int, *, seed: int) -> Tensor:
    """One label for each row, uniform over all classes, its own included; arguments as for `wrong_labels`."""
    return torch.randint(classes, labels.shape, generator=torch.Generator().manual_seed(seed))


class Relabelling(TrainedMethod):
    """Base of methods that train on forget rows with random labels and on retain rows with their own. Epochs pass over both."""

    modality: ClassVar[tuple[Modality, ...]] = ("vision",)

    order: Literal["joint", "sequential"] = "joint"
    """joint: forget and retain rows mixed; sequential: in each epoch first the forget rows, then the retain rows."""
    redraw: bool = False
    """Draw the forget rows' labels anew for each epoch; otherwise once."""
    exclude_true: bool = True
    """Never draw a row's own label; otherwise all classes are equally likely."""

    def drawn(self, view: MethodView, *, seed: int) -> Callable[[int], Data]:
        """Epoch -> the forget rows under the labels of that epoch.

        Raises:
            ValueError: the scenario has no classes.
        """
        if view.classes is None:
            raise ValueError("random labels need a scenario with classes, and this one's number of classes is None")
        rows, classes, draw = view.forget.train, view.classes, wrong_labels if self.exclude_true else any_labels
        true = labels_of(rows)

        def of(epoch: int) -> Data:
            # Apart from the seeds of `batches`, so that labels do not follow from the order.
            own = int(np.random.SeedSequence([seed, epoch, 1]).generate_state(1, np.uint64)[0]) if self.redraw else seed
            return Relabelled(rows, draw(true, classes, seed=own))

        return of

    def schedule(self, view: MethodView, *, seed: int) -> tuple[Callable[[int], Iterator[Batch]], int]:
        """Epoch -> batches in this method's order, and the rows that an epoch counts, as `descend` and `minimise` take them.

        Raises:
            ValueError: the scenario has no classes.
        """
        drawn, retain, size = self.drawn(view, seed=seed), view.retain.train, self.batch_size
        forgotten = len(view.forget.train)

        def joint(epoch: int) -> Iterator[Batch]:
            forget = drawn(epoch)
            for index in batches(forgotten + len(retain), size, seed=seed, epoch=epoch):
                yield _mixed(forget, retain, index)

        def sequential(epoch: int) -> Iterator[Batch]:
            forget = drawn(epoch)
            # A seed of their own, as in `finetuning.paired`: sets of equal size do not come in the same order.
            yield from (forget.batch(index) for index in batches(forgotten, size, seed=seed + 2**32, epoch=epoch))
            yield from (retain.batch(index) for index in batches(len(retain), size, seed=seed, epoch=epoch))

        if self.order == "joint":
            return joint, forgotten + len(retain)
        # No batch holds rows of both sets, so that the forget rows' last batch counts as a full one.
        return sequential, ceil(forgotten / size) * size + len(retain)


def _mixed(forget: Data, retain: Data, index: Tensor) -> Batch:
    """A batch out of both sets; positions below len(forget) are forget rows."""
    ours, others = index[index < len(forget)], index[index >= len(forget)] - len(forget)
    parts = [rows.batch(chosen) for rows, chosen in ((forget, ours), (retain, others)) if len(chosen)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
