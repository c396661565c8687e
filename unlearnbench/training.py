"""The one training loop, on accelerate: every model of the benchmark, anchors and methods alike, is trained by `fit`.

Knows precision, accumulation, schedules, clipping, activation checkpointing, the batch-norm and dropout policy, seeds,
and what to do when a loss is not a number. Knows nothing of data sets, tokens or images: the caller gives a loss and
batches. Everything but the weights (and batch-norm's running statistics) is left as it was found.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from unlearnbench import layers
from unlearnbench.progress import Meter, count_passes
from unlearnbench.recipe import Recipe, rate, step_count

__all__ = [
    "DivergedError",
    "FitReport",
    "Hardware",
    "Recipe",
    "batches",
    "fit",
    "hardware",
    "in_bf16",
    "make_optimizer",
    "rate",
    "rows",
    "step_count",
]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Where models are built and trained, and the precision of the training's forward passes."""

    device: str = "cpu"
    dtype: Literal["fp32", "bf16"] = "fp32"


#: The hardware of this run: scenarios build their models on its device; its dtype overrules a recipe's fp32.
hardware: ContextVar[Hardware] = ContextVar("hardware", default=Hardware())  # noqa: B039 (frozen)


class DivergedError(RuntimeError):
    """A loss, gradient or weight became NaN or infinite; the message names the training, the step and the value."""


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What a training took: steps of the optimizer, rows passed forward, and the loss of its last step."""

    steps: int
    samples: int
    final_loss: float


def batches(n: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[Tensor]:
    """One epoch's order of `n` rows, in batches: the only place where rows are shuffled for training.

    Args:
        n: Number of rows.
        batch_size: Rows per batch; the last batch holds what is left.
        seed: Seed of the training, 0 or more.
        epoch: Number of the epoch, from 0; each has its own order.

    Yields:
        Row numbers, int64 ``[batch_size]``.
    """
    # SeedSequence mixes both numbers: seed 1's epoch 0 must not be seed 0's epoch 1.
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    order = torch.randperm(n, generator=torch.Generator().manual_seed(state))
    yield from torch.split(order, batch_size)


def in_bf16(recipe: Recipe) -> bool:
    """Whether losses are computed in bf16: by the recipe, or since this run's hardware is told to."""
    return "bf16" in (recipe.precision, hardware.get().dtype)


def make_optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """A fresh optimizer of `recipe` over `parameters`, torch's fused one (for small models the fastest)."""
    match recipe.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum, fused=True)


def rows(batch: Any) -> int:
    """Rows of a batch: of a tensor, of the first tensor in a mapping or sequence, or the `len` of anything else."""
    if isinstance(batch, Mapping):
        batch = next(iter(batch.values()))
    elif isinstance(batch, tuple | list) and isinstance(batch[0], Tensor):
        batch = batch[0]
    return len(batch)


def passed(batch: Any) -> int:
    """Rows that a step passes forward: those of a batch, or of all batches that a step takes together (forget and retain).

    >>> passed(({"input_ids": torch.zeros(2, 5)}, {"input_ids": torch.zeros(3, 4)}, torch.arange(2)))
    5
    """
    parts = [part for part in batch if isinstance(part, Mapping)] if isinstance(batch, tuple | list) else []
    return sum(map(rows, parts)) if parts else rows(batch)


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, T], Tensor],
    steps: Callable[[int], Iterable[T]],
    recipe: Recipe,
    *,
    seed: int,
    total_steps: int,
    parameters: Iterable[nn.Parameter] | None = None,
    weigh: Callable[[T], float] = rows,
    optimizer: torch.optim.Optimizer | None = None,
    on_step: Callable[[int, nn.Module], None] | None = None,
    label: str = "training",
) -> FitReport:
    """Train `model` in place, on the device it lies on.

    Afterwards only the trained weights and batch-norm's running statistics differ: train/eval modes, ``requires_grad``,
    the global random state and accelerate's are as they were; gradients are cleared.

    Args:
        model: The model, or a part of it that `loss` knows how to use.
        loss: ``loss(model, batch)``, the scalar to minimise, a mean over what `weigh` counts.
        steps: ``steps(epoch)``, the batches of one epoch from 0 on (usually by way of `batches`). Tensors in them are
            moved to the model's device.
        recipe: How to train.
        seed: Seeds torch's global generators (dropout, noise drawn in `loss`) inside the call.
        total_steps: Steps of the optimizer: the schedule's length, at which training ends (see `step_count`).
        parameters: What to train, all else is held fixed; by default what has ``requires_grad``.
        weigh: Weight of a batch's loss among those of one accumulated step; by default its number of rows. A loss that
            is a mean over tokens wants the number of tokens.
        optimizer: One that earlier calls used on the same parameters, to go on with its state; by default a fresh one.
        on_step: Called as ``on_step(steps_done, model)`` after each step.
        label: Name of the training, for progress and errors.

    Returns:
        Steps, rows passed forward, and the last step's loss.

    Raises:
        DivergedError: A loss, the norm of a clipped gradient or a final weight is NaN or infinite; where a loss is, the
            step is not taken.
        ValueError: No parameter to train, fewer batches than `total_steps` needs, or a model without checkpointing.
    """
    trained = [p for p in model.parameters() if p.requires_grad] if parameters is None else list(parameters)
    if not trained:
        raise ValueError(f"{label}: no parameter to train")
    device = trained[0].device
    meter = Meter(label, total_steps)
    done, samples, value = 0, 0, math.nan
    with ExitStack() as stack:
        stack.enter_context(_seeded(seed, device))
        stack.enter_context(_trainable(model, trained))
        stack.enter_context(_modes(model, recipe))
        stack.enter_context(_checkpointed(model, recipe))
        accelerator = stack.enter_context(_accelerator(device, recipe))
        # Not wrapped by accelerate: at fp32 and bf16 its wrapper does nothing but look for a package at every step.
        optimizer = make_optimizer(trained, recipe) if optimizer is None else optimizer
        optimizer.zero_grad()
        for group in _groups(steps, recipe, total_steps):
            weights = [weigh(batch) for batch in group]
            losses = []
            for batch, weight in zip(group, weights, strict=True):
                moved = batch if device.type == "cpu" else send_to_device(batch, device)
                with accelerator.autocast():
                    part = loss(model, moved)
                if len(group) > 1:
                    part = part * (weight / sum(weights))
                accelerator.backward(part)
                losses.append(part.detach())
                samples += passed(batch)
            value = float(torch.stack(losses).sum()) if len(losses) > 1 else float(losses[0])
            if not math.isfinite(value):
                raise DivergedError(f"{label}: the loss of step {done + 1} of {total_steps} is {value}")
            if recipe.clip is not None:
                norm = float(accelerator.clip_grad_norm_(trained, recipe.clip))
                if not math.isfinite(norm):
                    raise DivergedError(f"{label}: the gradient's norm at step {done + 1} of {total_steps} is {norm}")
            for settings in optimizer.param_groups:
                settings["lr"] = rate(recipe, done, total_steps)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            meter.update(done)
            if on_step is not None:
                on_step(done, model)
    if done < total_steps:
        raise ValueError(f"{label}: the batches of {recipe.epochs} epochs gave {done} steps, not the {total_steps} asked")
    if not all(bool(torch.isfinite(p).all()) for p in trained):
        raise DivergedError(f"{label}: weights are NaN or infinite after {done} steps, the last loss was {value}")
    count_passes(samples)
    return FitReport(steps=done, samples=samples, final_loss=value)


def _groups(steps: Callable[[int], Iterable[T]], recipe: Recipe, total_steps: int) -> Iterator[list[T]]:
    """The batches of each step of the optimizer; a step never spans two epochs."""
    given = 0
    for epoch in range(recipe.epochs):
        group: list[T] = []
        for batch in steps(epoch):
            if given == total_steps:
                return
            group.append(batch)
            if len(group) == recipe.accumulate:
                yield group
                given, group = given + 1, []
        if group and given < total_steps:
            yield group
            given += 1


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of the CPU and of `device`, and put them back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _trainable(model: nn.Module, trained: list[nn.Parameter]) -> Iterator[None]:
    """Let gradients flow to `trained` alone; afterwards put ``requires_grad`` back and clear the gradients."""
    found = {p: p.requires_grad for p in [*model.parameters(), *trained]}
    for parameter in found:
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in found.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


@contextmanager
def _modes(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Train mode by the recipe's batch-norm and dropout policy; afterwards each module's own mode again."""
    found = [(module, module.training) for module in model.modules()]
    # Dropout also lives in functional calls of attention layers, which ask for their own mode: so all modules change.
    model.train(recipe.dropout)
    for module, _ in found:
        if isinstance(module, _BatchNorm):
            module.training = recipe.batch_norm == "train"
    try:
        yield
    finally:
        for module, mode in found:
            module.training = mode


@contextmanager
def _checkpointed(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Let transformers' layers recompute their activations; afterwards take that away again.

    The switches of the layers are set directly: the model's own method would leave a hook on its embeddings behind.
    """
    if not recipe.checkpointing:
        yield
        return
    able = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    if not able:
        raise ValueError(f"checkpointing is true, but {type(model).__name__} has no layer that can recompute")
    names = ("gradient_checkpointing", "_gradient_checkpointing_func", "training")
    found = [{name: layer.__dict__[name] for name in names if name in layer.__dict__} for layer in able]
    for layer in able:
        layer.gradient_checkpointing = True  # type: ignore[assignment]
        # Recomputed in the backward pass, when the conditions of the forward pass are no longer set.
        contexts = partial(_contexts, model)
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=contexts)  # type: ignore[assignment]
        # A layer recomputes in train mode only; its own flag changes none of the modules inside it.
        layer.training = True
    try:
        yield
    finally:
        for layer, values in zip(able, found, strict=True):
            for name in names:
                layer.__dict__.pop(name, None)
            layer.__dict__.update(values)


def _contexts(model: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a layer's forward pass and of its recomputation."""
    return nullcontext(), layers.as_now(model)


@contextmanager
def _accelerator(device: torch.device, recipe: Recipe) -> Iterator[Accelerator]:
    """An accelerator for this device and precision.

    Accelerate keeps both in a process-wide state that cannot be changed once set; it is put aside and back here, so
    that one process can train on several devices and in several precisions.
    """
    shared = [AcceleratorState._shared_state, PartialState._shared_state]
    found = [dict(state) for state in shared]
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if in_bf16(recipe) else "no")
    finally:
        for state, values in zip(shared, found, strict=True):
            state.clear()
            state.update(values)
