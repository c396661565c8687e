"""Can bad teaching induce forgetting? Unlearning in deep networks using an incompetent teacher.

Vikram S Chundawat, Ayush K Tarun, Murari Mandal, Mohan Kankanhalli. AAAI 2023, arXiv:2205.08096. On forget rows the student learns what an
untrained net says, on a sample of the retain rows what it said itself before; both teachers are in eval mode, and no label is read.
Defaults as published: 30 % of the retain rows, temperature 1, one epoch of Adam at 1e-4 in batches of 256.

Deviations: the divergence is summed over classes, where the code's mean over them too makes the rate K times as small; batch-norm is
frozen by default. The incompetent teacher is the same net with its weights drawn anew by the layers' own rules (`layers.reinitialise`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView, View
from unlearnbench.finetuning import Joined, TrainedMethod
from unlearnbench.layers import reinitialise
from unlearnbench.training import Recipe, batches
from unlearnbench.unlearning_losses import softened_kl


class BadTeacher(TrainedMethod):
    """Learn an untrained net's predictions on the forget rows, and the model's own on retain rows. Epochs pass over both."""

    paper = "arXiv:2205.08096"
    modality = ("vision",)

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Learning rate of Adam, constant."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the forget rows and the sample of retain rows."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Rows of a batch, of both kinds."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Temperature of teachers and student."""
    retain_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the retain rows that are used, drawn once."""

    def recipe(self, view: View) -> Recipe:
        """By Adam, without weight decay."""
        return replace(super().recipe(view), optimizer="adam", momentum=0.0, weight_decay=0.0)

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        forget, retain = view.forget.train, view.retain.train
        drawn = torch.randperm(len(retain), generator=torch.Generator().manual_seed(seed))[: round(self.retain_share * len(retain))]
        rows = Joined(forget, retain.take(drawn.tolist()))
        good, bad = copy.deepcopy(model).eval(), reinitialise(copy.deepcopy(model), seed=seed).eval()

        def steps(epoch: int) -> Iterator[Batch]:
            for index in batches(len(rows), self.batch_size, seed=seed, epoch=epoch):
                yield {**rows.batch(index), "forgotten": index < len(forget)}

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            images = batch["images"]
            with torch.no_grad():
                taught = torch.where(batch["forgotten"][:, None], bad(images), good(images))
            return softened_kl(taught, model(images), self.temperature).mean()

        return self.descend(model, view, loss, steps, n=len(rows), seed=seed)
