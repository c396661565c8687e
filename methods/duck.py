"""DUCK: distance-based unlearning via centroid kinematics.

Marco Cotogni, Jacopo Bonato, Luigi Sabetta, Francesco Pelosin, Alessandro Nicolosi. 2023, arXiv:2312.02052. The features of forget rows are
drawn towards the nearest centroid of another class, by 1 - cosine; the centroids are means of the retain rows' features under the model
as it came in. A step takes a forget batch and a retain batch, whose logits are divided by 2 in the loss. Training ends once the accuracy
on the forget rows is as low as it would be without them: 0.01 for a class (class removal), the validation accuracy of the original for
instances (homogeneous removal); two epochs at 1e-4, with a tenth of the forget weight, follow. Defaults as published: weights 1 and 1.4,
Adam at 4e-4 with weight decay 5e-4, 5 retain batches for each forget batch.

Deviations: a row keeps the centroid that it chose at its last step of the first epoch, where the code looks up another batch's choice from
the second epoch on; the true class is never chosen, where the code excludes a wrong class when one is removed; centroids are over all
retain rows, there over 50 batches; the rate is constant, there lowered at epochs 25 and 40; epochs are at most 30 and batches of 64;
batch-norm is frozen by default. The stop looks at training rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from typing import Annotated, NamedTuple

import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from unlearnbench.api import Data, MethodView
from unlearnbench.finetuning import Pair, PhasedMethod, endless
from unlearnbench.layers import evaluating, penultimate
from unlearnbench.training import batches, fit, make_optimizer

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]

GONE = 0.01
"""Accuracy on a forgotten class at which training ends."""
DECAY = 5e-4
"""Weight decay of Adam."""


class DUCK(PhasedMethod):
    """Draw the features of forget rows to the nearest wrong class while the retain rows are learned. Epochs pass over the forget rows."""

    paper = "arXiv:2312.02052"
    modality = ("vision",)

    lr: Rate = 4e-4
    """Learning rate of Adam."""
    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the forget rows at most."""
    retain_batches: Annotated[int, Field(ge=1)] = 5
    """Retain batches, each with a step, for a forget batch."""
    forget_weight: Weight = 1.0
    """The paper's lambda 1: weight of the distance to the centroids."""
    retain_weight: Weight = 1.4
    """The paper's lambda 2: weight of the cross-entropy on the retain rows."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """What the retain rows' logits are divided by."""
    settle_epochs: Annotated[int, Field(ge=0)] = 2
    """Passes after the stop, with a tenth of the forget weight."""
    settle_lr: Rate = 1e-4
    """Their learning rate."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        forget, retain = view.forget.train, view.retain.train
        goal = GONE if view.kind == "class" else self._read(model, view.validation).accuracy()
        kept = self._read(model, retain)
        classes, means = centroids(kept.features, kept.labels)
        chosen = torch.full((len(forget),), -1, device=means.device)
        adam = replace(self.phase(view, self.lr), optimizer="adam", momentum=0.0, weight_decay=DECAY)
        optimizer = make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad], adam)

        def once(epoch: int, forget_weight: float, lr: float) -> None:
            def loss(model: nn.Module, pair: Pair) -> Tensor:
                with penultimate(model) as seen:
                    model(pair.forget["images"])
                distances = cosine_distances(seen[0], means)
                if epoch == 0:
                    chosen[pair.rows] = nearest_other(distances, classes, pair.forget["labels"])
                drawn = distances.gather(1, chosen[pair.rows][:, None]).mean()
                told = cross_entropy(model(pair.retain["images"]) / self.temperature, pair.retain["labels"])
                return forget_weight * drawn + self.retain_weight * told

            steps = list(self._pairs(forget, retain, epoch, seed=seed))
            fit(model, loss, lambda _: steps, replace(adam, lr=lr), seed=seed, total_steps=len(steps), optimizer=optimizer, label="DUCK")

        done = 0
        while done < self.epochs and (done == 0 or self._read(model, forget).accuracy() > goal):
            once(done, self.forget_weight, self.lr)
            done += 1
        for epoch in range(done, done + self.settle_epochs):
            once(epoch, self.forget_weight / 10, self.settle_lr)
        return model.eval()

    def _pairs(self, forget: Data, retain: Data, epoch: int, *, seed: int) -> Iterator[Pair]:
        """The steps of one epoch: each forget batch with the next retain batches, which run on over the epochs."""
        per_epoch = self.retain_batches * ceil(len(forget) / self.batch_size)
        others = endless(len(retain), self.batch_size, seed=seed, skip=epoch * per_epoch)
        for rows in batches(len(forget), self.batch_size, seed=seed + 2**32, epoch=epoch):
            for _ in range(self.retain_batches):
                yield Pair(forget.batch(rows), retain.batch(next(others)), rows)

    @torch.no_grad()
    def _read(self, model: nn.Module, data: Data) -> _Read:
        """What the model says of some rows, in eval mode."""
        device, parts = next(model.parameters()).device, []
        with evaluating(model), penultimate(model) as seen:
            for index in torch.split(torch.arange(len(data)), self.batch_size):
                batch = send_to_device(data.batch(index), device)
                logits = model(batch["images"])
                parts.append((seen[0], logits.argmax(1), batch["labels"]))
        return _Read(*map(torch.cat, zip(*parts, strict=True)))


class _Read(NamedTuple):
    """Features [n, width], predicted and true classes [n]."""

    features: Tensor
    predicted: Tensor
    labels: Tensor

    def accuracy(self) -> float:
        """Share of rows that are classified as labelled."""
        return float((self.predicted == self.labels).double().mean())


def centroids(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that occur, int64 [C] in rising order, and the mean features of each [C, width].

    >>> centroids(torch.tensor([[1.0, 0.0], [0.0, 4.0], [3.0, 0.0]]), torch.tensor([7, 2, 7]))
    (tensor([2, 7]), tensor([[0., 4.],
            [2., 0.]]))
    """
    classes = torch.unique(labels)
    return classes, torch.stack([features[labels == label].mean(0) for label in classes.tolist()])


def cosine_distances(features: Tensor, means: Tensor) -> Tensor:
    """1 - cosine of each row of features [B, width] to each centroid [C, width]: [B, C].

    >>> cosine_distances(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([[0., 1.]])
    """
    return 1 - normalize(features, dim=1) @ normalize(means, dim=1).T


def nearest_other(distances: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """The place of the nearest centroid whose class is not the row's own: int64 [B].

    Args:
        distances: of each row to each centroid [B, C].
        classes: of the centroids, int64 [C].
        labels: true classes of the rows, int64 [B]; one without a centroid excludes none.

    >>> nearest_other(torch.tensor([[0.1, 0.3, 0.2], [0.1, 0.3, 0.2]]), torch.tensor([4, 5, 6]), torch.tensor([4, 3]))
    tensor([2, 0])
    """
    return distances.detach().masked_fill(labels[:, None] == classes, torch.inf).argmin(1)
