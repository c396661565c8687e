"""Fast yet effective machine unlearning: UNSIR, noise that maximises the error of a class, impair and repair.

Ayush K. Tarun, Vikram S. Chundawat, Murari Mandal, Mohan Kankanhalli. IEEE TNNLS 2023, arXiv:2111.08947. For each forgotten class images
are learned from noise that the model classifies as wrongly as it can; a pass over them, labelled with the class, and a subset of the
retain rows impairs the model, a pass over the subset repairs it. Forget images are never looked at, but for their shape and classes.
Defaults as in the paper: noise by Adam at 0.1 with penalty 0.1, 256 images used 20 times, 1000 retain rows a class, impair at 0.02,
repair at 0.01, one epoch each; 25 noise steps as in the SSD authors' version.

Deviations: optimizer and weight decay of impair and repair are those of the original's training (the SSD authors': Adam at 1e-4);
batch-norm is frozen by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlearnbench.api import Batch, Data, MethodView, Scenario
from unlearnbench.finetuning import PhasedMethod, shuffled
from unlearnbench.layers import evaluating
from unlearnbench.mechanisms.relabelling import labels_of
from unlearnbench.training import batches, fit

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class UNSIR(PhasedMethod):
    """Impair the model with images of noise labelled as the forgotten class, then repair it on retain rows."""

    paper = "arXiv:2111.08947"
    modality = ("vision",)

    noise_lr: Rate = 0.1
    """Adam's rate in the search for noise."""
    noise_steps: Count = 25
    """Steps of that search."""
    noise_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight of an image's squared norm in that search."""
    noise_images: Count = 256
    """Images learned for each forgotten class."""
    noise_copies: Count = 20
    """How often each is used in an epoch of the impair phase."""
    retain_per_class: Count = 1000
    """Retain rows of a class that impair and repair use at most."""
    impair_lr: Rate = 0.02
    """Learning rate of the impair phase, constant."""
    impair_epochs: Count = 1
    """Passes over noise and retain rows."""
    repair_lr: Rate = 0.01
    """Learning rate of the repair phase, constant."""
    repair_epochs: Count = 1
    """Passes over the retain rows."""

    def supports(self, scenario: Scenario) -> str | None:
        """Requests for classes only: its noise stands for a class."""
        kind = scenario.asked().kind
        return super().supports(scenario) or (None if kind == "class" else f"serves requests for classes, not for {kind}")

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        retain = _at_most(view.retain.train, self.retain_per_class, seed=seed)
        noise = self._noise(model, view.forget.train, seed=seed)
        count = self.noise_copies * len(noise["labels"])

        def impairing(epoch: int) -> Iterator[Batch]:
            for index in batches(count + len(retain), self.batch_size, seed=seed, epoch=epoch):
                ours, others = index[index < count] % len(noise["labels"]), index[index >= count] - count
                parts = [{name: tensor[ours] for name, tensor in noise.items()}, *([retain.batch(others)] if len(others) else [])]
                yield {name: torch.cat([part[name] for part in parts]) for name in noise}

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return view.loss(model, batch).mean()

        impair = self.phase(view, self.impair_lr, epochs=self.impair_epochs)
        repair = self.phase(view, self.repair_lr, epochs=self.repair_epochs)
        phases = ((impair, impairing, count + len(retain)), (repair, shuffled(retain, self.batch_size, seed=seed), len(retain)))
        for recipe, steps, rows in phases:
            total = recipe.epochs * ceil(rows / self.batch_size)
            fit(model, loss, steps, recipe, seed=seed, total_steps=total, label="UNSIR")
        return model.eval()

    def _noise(self, model: nn.Module, forget: Data, *, seed: int) -> Batch:
        """The images of noise of all forgotten classes, with their labels."""
        classes = torch.unique(labels_of(forget)).repeat_interleave(self.noise_images)
        shown = forget.batch([0])["images"]
        like = next(model.parameters())
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(len(classes), *shown.shape[1:], generator=generator, dtype=shown.dtype).to(like.device)
        labels = classes.to(like.device)
        noise = error_maximising(model, start, labels, lr=self.noise_lr, steps=self.noise_steps, penalty=self.noise_penalty)
        return {"images": noise.cpu(), "labels": classes}


def noise_loss(model: nn.Module, noise: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """What noise minimises, a scalar: -CE(noise, labels) + penalty times the mean over images of their squared norm.

    Args:
        model: images to logits [B, K].
        noise: images [B, channels, height, width].
        labels: int64 [B].
        penalty: 0 or more.
    """
    return penalty * noise.square().sum((1, 2, 3)).mean() - cross_entropy(model(noise), labels)


def error_maximising(model: nn.Module, start: Tensor, labels: Tensor, *, lr: float, steps: int, penalty: float) -> Tensor:
    """Images that the model, in eval mode, classifies as their labels as little as it can, found by Adam from `start`.

    Args:
        model: its weights and their gradients are left alone.
        start: images [B, channels, height, width].
        labels: int64 [B].
        lr: rate of Adam.
        steps: number of steps.
        penalty: see `noise_loss`.

    Returns:
        Like `start`.
    """
    noise = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([noise], lr=lr)
    with torch.enable_grad(), evaluating(model):
        for _ in range(steps):
            (noise.grad,) = torch.autograd.grad(noise_loss(model, noise, labels, penalty), noise)
            optimizer.step()
    return noise.detach()


def _at_most(rows: Data, per_class: int, *, seed: int) -> Data:
    """At most so many rows of each class, drawn at random, order kept."""
    labels = labels_of(rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    chosen = [order[labels[order] == label][:per_class] for label in torch.unique(labels).tolist()]
    return rows.take(torch.cat(chosen).sort().values.tolist())
