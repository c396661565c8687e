"""How a model is trained, in plain values: the recipe and its learning rate at each step. Knows nothing of torch."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained: everything but the data and the loss. Plain values only, so that it can be part of a key.

    Attributes:
        epochs: Passes over the data.
        batch_size: Rows of one batch; a step of the optimizer sees ``accumulate * batch_size`` rows.
        lr: The highest learning rate.
        optimizer: ``adamw`` (decoupled decay), ``adam`` (decay added to the gradient) or ``sgd``.
        weight_decay: Weight decay of the optimizer.
        momentum: Momentum of ``sgd``.
        schedule: Course of the learning rate, see `rate`.
        warmup: Share of the steps in which the rate rises.
        clip: Largest allowed norm of the whole gradient, or `None`.
        accumulate: Batches per step of the optimizer.
        precision: ``bf16`` computes the loss under autocast; weights stay in their own type.
        checkpointing: Recompute activations in the backward pass (transformers models).
        batch_norm: ``frozen`` uses the running statistics and leaves them untouched.
        dropout: `False` turns off every layer's training behaviour but that of batch-norm.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: Literal["constant", "linear", "cosine", "onecycle"] = "constant"
    warmup: float = 0.0
    clip: float | None = None
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpointing: bool = False
    batch_norm: Literal["train", "frozen"] = "train"
    dropout: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if get_origin(field.type) is Literal and value not in get_args(field.type):
                raise ValueError(f"{field.name} is {value!r}; allowed: {', '.join(get_args(field.type))}")
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        for name in ("lr", "weight_decay", "momentum"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: finite, 0 or more")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is {self.warmup}; allowed: a share of the steps, 0 to 1")
        if self.schedule == "onecycle" and not 0 < self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; the schedule onecycle needs it above 0 and below 1")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is {self.momentum}; only sgd has one, not {self.optimizer}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; allowed: above 0, or none")


def step_count(n: int, recipe: Recipe) -> int:
    """Steps of the optimizer that `recipe` makes over `n` rows; the last step of an epoch may be a short one.

    >>> step_count(100, Recipe(epochs=3, batch_size=32, lr=1.0))
    12
    >>> step_count(100, Recipe(epochs=3, batch_size=32, lr=1.0, accumulate=3))
    6
    """
    return recipe.epochs * math.ceil(math.ceil(n / recipe.batch_size) / recipe.accumulate)


def rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """The learning rate of one step.

    ``constant``, ``linear`` and ``cosine`` rise linearly from 0 over the first ``ceil(warmup * total_steps)`` steps,
    then stay, or fall to 0 (as in transformers); ``onecycle`` rises from lr/25 and falls to lr/250000 along cosines
    (Smith and Topin 2017, arXiv:1708.07120, as in torch's OneCycleLR).

    Args:
        recipe: Gives ``lr``, ``schedule`` and ``warmup``.
        step: Number of the step, from 0 to ``total_steps - 1``.
        total_steps: Steps of the whole training.

    Returns:
        The rate; at step ``total_steps`` a decaying one would have reached its end.

    >>> [rate(Recipe(epochs=1, batch_size=1, lr=1.0, schedule="linear", warmup=0.2), i, 10) for i in (0, 1, 2, 6)]
    [0.0, 0.5, 1.0, 0.5]
    """
    if recipe.schedule == "onecycle":
        low, peak = recipe.lr / 25, recipe.warmup * total_steps - 1
        if step <= peak and peak > 0:
            return _along_cosine(low, recipe.lr, step / peak)
        peak = max(peak, 0.0)
        return _along_cosine(recipe.lr, low / 1e4, (step - peak) / max(total_steps - 1 - peak, 1e-9))
    rising = math.ceil(recipe.warmup * total_steps)
    if step < rising:
        return recipe.lr * step / rising
    done = (step - rising) / max(total_steps - rising, 1)
    match recipe.schedule:
        case "constant":
            return recipe.lr
        case "linear":
            return recipe.lr * (1 - done)
        case "cosine":
            return _along_cosine(recipe.lr, 0.0, done)


def _along_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))
