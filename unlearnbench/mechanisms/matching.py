"""Fine-tuning on given logits: which rows are matched, in what order, and the descent to them.

What datamodel matching and oracle matching share (Georgiev et al. 2024, arXiv:2410.23232, algorithms C.1 and C.3). Labels are never
read. Knows classifiers and rows of images; not where the logits come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import ceil
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from unlearnbench.api import Method, MethodView, View
from unlearnbench.layers import evaluating
from unlearnbench.training import Recipe, batches, fit, make_optimizer

Objective = Literal["mse", "cross_entropy"]
Fraction = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

SAMPLE_SEED = 42
"""Of the retain rows that are matched: the same for all models of a request, as in the published code."""


class MatchingMethod(Method):
    """Base of methods that fine-tune a model on logits given for the forget rows and for a sample of the retain rows.

    Rows are seen as in evaluation (no augmentation), and what a model says of them is taken once, in eval mode.
    """

    modality = ("vision",)

    retain_multiplier: Fraction = 3.0
    """Retain rows that are matched, as a multiple of the forget rows; at most all of them."""
    forget_multiplier: Fraction = 1.0
    """How often an epoch passes over the forget rows; of 1.5, every other epoch's second half is the first half of the rows."""
    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the matched rows."""
    lr: Positive = 5e-4
    """Learning rate of the first epoch."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Factor of the rate after each epoch."""
    batch_size: Annotated[int, Field(ge=1)] = 512
    """Rows per step."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Without momentum and weight decay."""
    objective: Objective = "mse"
    """mse: squared error of the logits; cross_entropy: against the softmax of the given logits."""
    pull: Fraction = 0.0
    """Weight of |theta - theta_0|^2."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """frozen: batch-norm uses the original's running statistics and keeps them; train: it uses each batch's and moves them."""

    def sample(self, view: MethodView) -> Tensor:
        """Positions of the retain rows that are matched."""
        return retain_sample(len(view.retain.eval), len(view.forget.eval), self.retain_multiplier)

    def images(self, view: MethodView) -> Tensor:
        """The matched rows: all forget rows, then the sample of the retain rows, ``[n, ...]``."""
        forget, retain, sample = view.forget.eval, view.retain.eval, self.sample(view)
        found: Tensor = forget.batch(range(len(forget)))["images"]
        return torch.cat([found, retain.batch(sample)["images"]]) if len(sample) else found

    def descend(self, model: nn.Module, view: MethodView, images: Tensor, targets: Tensor, *, seed: int) -> nn.Module:
        """Match `targets` ``[n, K]`` on `images`, shuffled in every epoch, and give the model back in eval mode."""
        forget = len(view.forget.eval)
        index = repeated(forget, len(images) - forget, self.forget_multiplier)

        def order(epoch: int) -> Iterator[Tensor]:
            return (index[part] for part in batches(len(index), self.batch_size, seed=seed, epoch=epoch))

        steps = ceil(len(index) / self.batch_size)
        recipe = self.recipe(view)
        return match(
            model,
            images,
            targets,
            order,
            recipe,
            epochs=self.epochs,
            steps=steps,
            decay=self.decay,
            objective=self.objective,
            pull=self.pull,
            seed=seed,
        )

    def recipe(self, view: View) -> Recipe:
        """How each epoch is trained; the precision is the original's."""
        return Recipe(
            epochs=1,
            batch_size=self.batch_size,
            lr=self.lr,
            optimizer=self.optimizer,
            precision=view.recipe.precision,
            batch_norm=self.batch_norm,
            dropout=False,
        )


def retain_sample(retain: int, forget: int, multiplier: float) -> Tensor:
    """Positions of min(retain, floor(multiplier * forget)) rows drawn without replacement, always the same ones.

    >>> retain_sample(10, 2, 2.5).sort().values.shape, retain_sample(3, 9, 1.0).tolist() == retain_sample(3, 5, 1.0).tolist()
    (torch.Size([5]), True)
    """
    order = torch.randperm(retain, generator=torch.Generator().manual_seed(SAMPLE_SEED))
    return order[: int(multiplier * forget)]


def repeated(forget: int, others: int, multiplier: float) -> Tensor:
    """The rows of one epoch: the forget rows `multiplier` times (a fraction takes the first of them), then the others once.

    >>> repeated(4, 2, 1.5).tolist()
    [0, 1, 2, 3, 0, 1, 4, 5]
    """
    return torch.cat([torch.arange(int(multiplier * forget)) % forget, forget + torch.arange(others)])


def match(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    order: Callable[[int], Iterable[Tensor]],
    recipe: Recipe,
    *,
    epochs: int,
    steps: int,
    decay: float = 1.0,
    objective: Objective = "mse",
    pull: float = 0.0,
    seed: int = 0,
    label: str = "matching",
) -> nn.Module:
    """Minimise the distance between a model's logits and given ones; mean over rows and classes, or over rows for cross-entropy.

    Args:
        model: Trained in place.
        images: ``[n, ...]``.
        targets: Logits ``[n, K]``.
        order: Epoch -> batches of row numbers.
        recipe: Of one epoch.
        epochs: How many.
        steps: Batches of an epoch.
        decay: Factor of the rate after each epoch.
        objective: See `MatchingMethod`.
        pull: Weight of |theta - theta_0|^2.
        seed: Seeds what is random in the forward pass.
        label: Name of the training, for progress and errors.

    Raises:
        DivergedError: a loss or a weight is not finite.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained] if pull else []
    wanted = targets.softmax(-1) if objective == "cross_entropy" else targets

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(batch["images"])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        value = mse_loss(logits, batch["targets"]) if objective == "mse" else cross_entropy(logits, batch["targets"])
        if pull:
            value = value + pull * sum((p - p0).square().sum() for p, p0 in zip(trained, before, strict=True))
        return value

    optimizer = make_optimizer(trained, recipe)
    for epoch in range(epochs):

        def epoch_batches(_: int, epoch: int = epoch) -> Iterator[dict[str, Tensor]]:
            return ({"images": images[index], "targets": wanted[index]} for index in order(epoch))

        faded = replace(recipe, lr=recipe.lr * decay**epoch)
        fit(model, loss, epoch_batches, faded, seed=seed + epoch, total_steps=steps, parameters=trained, optimizer=optimizer, label=label)
    return model.eval()


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, *, batch_size: int = 512) -> Tensor:
    """What a model says in eval mode, ``[n, K]``, on the CPU and in float32 at least."""
    like = next(model.parameters())
    with evaluating(model):
        found = torch.cat([model(part.to(like.device, like.dtype)).cpu() for part in torch.split(images, batch_size)])
    return found.to(torch.promote_types(found.dtype, torch.float32))
