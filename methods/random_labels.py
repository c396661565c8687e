"""Amnesiac machine learning: training on wrong labels for the forget set, together with the retain set.

Laura Graves, Vineel Nagisetty, Vijay Ganesh. AAAI 2021, arXiv:2010.10981. Each forget row gets one wrong label, drawn once, uniformly
from the other classes; then the model is trained on forget and retain rows mixed. Defaults: 3 epochs at 1e-4, as in the SSD
repository's "amnesiac" baseline.

Deviations: the rate is constant; the optimizer and weight decay are those of the original's training (there Adam); batch-norm is
frozen by default. The paper's other method, undoing recorded updates of sensitive batches, is not this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, Data, MethodView
from unlearnbench.finetuning import TrainedMethod
from unlearnbench.training import batches


class RandomLabels(TrainedMethod):
    """Train on the forget rows with wrong labels and on the retain rows. Epochs pass over both."""

    paper = "arXiv:2010.10981"
    modality = ("vision",)

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Learning rate, constant."""
    epochs: Annotated[int, Field(ge=1)] = 3
    """Passes over forget and retain rows."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        if view.classes is None:
            raise ValueError("random labels need a scenario with classes, and this one's number of classes is None")
        forget, retain = view.forget.train, view.retain.train
        labels = wrong_labels(forget.batch(range(len(forget)))["labels"], view.classes, seed=seed)

        def steps(epoch: int) -> Iterator[Batch]:
            for index in batches(len(forget) + len(retain), self.batch_size, seed=seed, epoch=epoch):
                yield _mixed(forget, retain, labels, index)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return view.loss(model, batch).mean()

        return self.descend(model, view, loss, steps, n=len(forget) + len(retain), seed=seed)


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


def _mixed(forget: Data, retain: Data, labels: Tensor, index: Tensor) -> Batch:
    """A batch out of both sets; positions below len(forget) are forget rows, which get their wrong labels."""
    ours, others = index[index < len(forget)], index[index >= len(forget)] - len(forget)
    parts = []
    if len(ours):
        parts.append({**forget.batch(ours), "labels": labels[ours]})
    if len(others):
        parts.append(retain.batch(others))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
