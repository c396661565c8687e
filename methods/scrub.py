"""Towards unbounded machine unlearning: SCRUB, a student that leaves its teacher on the forget rows alone.

Meghdad Kurmanji, Peter Triantafillou, Jamie Hayes, Eleni Triantafillou. NeurIPS 2023, arXiv:2302.09880. The teacher is the model as it came
in, in eval mode. Each of the first `max_epochs` epochs begins with a pass of ascent on T^2 KL(teacher || student) over the forget rows;
every epoch has a pass of descent on gamma CE + alpha T^2 KL over the retain rows. One optimizer holds the student's weights throughout.
Defaults as published: alpha 0.5, gamma 1, T 2, 3 epochs of ascent out of 10, lr 5e-4 times 0.1 from epochs 3, 5 and 9 on.

Deviations: optimizer and weight decay are those of the original's training (published settings disagree: weight decay 0.1 or 5e-4, SGD or
Adam); no label smoothing (there 0.5); forget batches of 512 are the largest of the published range; there is no rewinding (SCRUB+R).
Batch-norm is frozen by default, there it is trained. Frozen, or without it, student and teacher agree at the start, so that the first
ascent has no gradient until retain rows have moved the student; trained, their statistics differ from the first step on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import ceil
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlearnbench.api import Batch, Data, MethodView
from unlearnbench.finetuning import PhasedMethod, shuffled
from unlearnbench.training import fit, make_optimizer
from unlearnbench.unlearning_losses import softened_kl


class SCRUB(PhasedMethod):
    """In turn, away from the original on the forget rows, and towards it and the labels on the retain rows."""

    paper = "arXiv:2302.09880"
    modality = ("vision",)

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5e-4
    """Learning rate of the first epochs."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of the rate from each of `decay_epochs` on."""
    decay_epochs: tuple[Annotated[int, Field(ge=0)], ...] = (3, 5, 9)
    """Epochs, from 0, before which the rate is lowered."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the retain rows."""
    max_epochs: Annotated[int, Field(ge=0)] = 3
    """How many of them, the first ones, a pass of ascent over the forget rows goes before."""
    forget_batch_size: Annotated[int, Field(ge=1)] = 512
    """Rows of a batch of the ascent."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """Temperature of both predictions in the divergence."""
    kl_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """The paper's alpha: weight of the divergence on the retain rows."""
    loss_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """The paper's gamma: weight of the cross-entropy on the retain rows."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        teacher = copy.deepcopy(model).eval()

        def divergence(logits: Tensor, batch: Batch) -> Tensor:
            with torch.no_grad():
                reference = teacher(batch["images"])
            return self.temperature**2 * softened_kl(reference, logits, self.temperature).mean()

        def leave(student: nn.Module, batch: Batch) -> Tensor:
            return -divergence(student(batch["images"]), batch)

        def stay(student: nn.Module, batch: Batch) -> Tensor:
            logits = student(batch["images"])
            return self.loss_weight * cross_entropy(logits, batch["labels"]) + self.kl_weight * divergence(logits, batch)

        student = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(student, self.phase(view, self.lr))

        def once(loss: Callable[[nn.Module, Batch], Tensor], rows: Data, batch_size: int, epoch: int) -> None:
            recipe = self.phase(view, self.lr * self.decay ** sum(epoch >= start for start in self.decay_epochs))
            steps = shuffled(rows, batch_size, seed=seed)
            total = ceil(len(rows) / batch_size)
            fit(model, loss, lambda _: steps(epoch), recipe, seed=seed, total_steps=total, optimizer=optimizer, label="SCRUB")

        for epoch in range(self.epochs):
            if epoch < self.max_epochs:
                once(leave, view.forget.train, self.forget_batch_size, epoch)
            once(stay, view.retain.train, self.batch_size, epoch)
        return model.eval()
