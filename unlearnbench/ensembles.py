"""Many small classifiers trained on subsets of one data set: oracles, shadows, the models of datamodels.

Each is the model that `unlearnbench.training.fit` would give alone, from its own seed, order and subset. Batched, the
models of a chunk take their steps together, as one model with grouped layers: a small net's step is mostly the cost of
calling operators, which is then paid once. Knows nothing of requests or scenarios.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlearnbench.progress import Meter, count_passes
from unlearnbench.stacking import Stack
from unlearnbench.training import DivergedError, Recipe, batches, fit, in_bf16, make_optimizer, rate, step_count


def train_ensemble(
    build: Callable[[int], nn.Module],
    inputs: Tensor,
    targets: Tensor,
    members: Tensor,
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    batched: bool,
    chunk: int,
    prepare: Callable[[nn.Module, Tensor], None] | None = None,
    label: str = "ensemble",
) -> list[nn.Module]:
    """Train N models of one architecture, each on its own rows, with cross-entropy.

    Both ways give the same models but for rounding. The rounding of a batched model may depend on the models beside it:
    where bits matter, `chunk` and the list of models belong to the key of the result.

    Args:
        build: Makes a fresh model, its weights drawn from the seed alone.
        inputs: All rows, on the device of the models, ``[n, ...]``; batched: ``[n, features]`` or ``[n, channels, height, width]``.
        targets: Class numbers, int64: ``[n]``, or ``[N, n]`` where each model has its own labels.
        members: Which rows each model is trained on, bool ``[N, n]``.
        seeds: One per model, for its weights and the order of its rows.
        recipe: How each model is trained.
        batched: Train the models of a chunk together; else one after another.
        chunk: Models trained together at most: bounds the memory. Models with other numbers of steps are never mixed.
        prepare: Sets, in place, what a fresh model takes from its own rows of `inputs` before it is trained.
        label: Name of the training, for progress and errors.

    Returns:
        The trained models in the order of `seeds`, in the mode `build` gave them.

    Raises:
        DivergedError: A loss or weight became NaN or infinite.
        ValueError: Shapes that do not fit, a model without rows, or, batched, a layer or recipe that cannot be stacked.
    """
    count, n = len(seeds), len(inputs)
    if members.shape != (count, n) or members.dtype != torch.bool:
        raise ValueError(f"members is {members.dtype} {list(members.shape)}; allowed: bool [{count}, {n}]")
    if targets.shape not in ((n,), (count, n)):
        raise ValueError(f"targets is {list(targets.shape)}; allowed: [{n}] or [{count}, {n}]")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; allowed: 1 or more")
    rows = [mask.nonzero().flatten().to(inputs.device) for mask in members]
    if empty := [i for i, own in enumerate(rows) if not len(own)]:
        raise ValueError(f"{label}: model {empty[0]} has no rows")
    targets = targets.expand(count, n)

    def fresh(i: int) -> nn.Module:
        model = build(seeds[i])
        if prepare is not None:
            prepare(model, inputs[rows[i]])
        return model

    if not batched:
        return [
            _train_alone(partial(fresh, i), inputs, targets[i], rows[i], seeds[i], recipe, f"{label} {i + 1}/{count}") for i in range(count)
        ]
    for name, allowed in (("accumulate", 1), ("checkpointing", False)):
        if getattr(recipe, name) != allowed:
            raise ValueError(f"{name} is {getattr(recipe, name)!r}; batched training allows {allowed!r} only")
    # Models with equal numbers of steps share epochs and learning rates; only an epoch's last batch can differ in size.
    alike = defaultdict(list)
    for i, own in enumerate(rows):
        alike[step_count(len(own), recipe)].append(i)
    count_passes(recipe.epochs * sum(map(len, rows)))
    meter, done = Meter(label, sum(steps * len(group) for steps, group in alike.items())), 0
    trained: dict[int, nn.Module] = {}
    for steps, group in sorted(alike.items()):
        for start in range(0, len(group), chunk):
            part = group[start : start + chunk]
            models = [fresh(i) for i in part]
            where = f"{label}, models {', '.join(str(i + 1) for i in part)}"

            def tell(step: int, before: int = done, size: int = len(part)) -> None:
                meter.update(before + step * size)

            own = [rows[i] for i in part]
            _train_together(models, inputs, targets[part], own, [seeds[i] for i in part], recipe, steps, tell, where)
            done += steps * len(part)
            trained.update(zip(part, models, strict=True))
    return [trained[i] for i in range(count)]


def _train_alone(
    fresh: Callable[[], nn.Module],
    inputs: Tensor,
    targets: Tensor,
    rows: Tensor,
    seed: int,
    recipe: Recipe,
    label: str,
) -> nn.Module:
    model = fresh()
    fit(
        model,
        lambda net, index: cross_entropy(net(inputs[index]), targets[index]),
        lambda epoch: (rows[index] for index in batches(len(rows), recipe.batch_size, seed=seed, epoch=epoch)),
        recipe,
        seed=seed,
        total_steps=step_count(len(rows), recipe),
        label=label,
    )
    return model


def _train_together(
    models: list[nn.Module],
    inputs: Tensor,
    targets: Tensor,
    rows: list[Tensor],
    seeds: list[int],
    recipe: Recipe,
    total_steps: int,
    tell: Callable[[int], None],
    label: str,
) -> None:
    """Train `models` in place, their steps taken together; all have `total_steps`, targets are ``[models, n]``."""
    stack = Stack(models, recipe)
    trained = [p for p in stack.parameters.values() if p.requires_grad]
    optimizer = make_optimizer(trained, recipe)
    lanes = torch.arange(len(models), device=inputs.device)
    step = 0
    for epoch in range(recipe.epochs):
        orders = [
            [own[index] for index in batches(len(own), recipe.batch_size, seed=seed, epoch=epoch)]
            for own, seed in zip(rows, seeds, strict=True)
        ]
        for taken in zip(*orders, strict=True):
            sizes = torch.tensor([len(own) for own in taken], device=inputs.device)
            index = nn.utils.rnn.pad_sequence(list(taken))  # [largest batch, models], row 0 where a batch is shorter
            real = torch.arange(len(index), device=inputs.device)[:, None] < sizes
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=in_bf16(recipe)):
                logits = stack(inputs[index], None if bool(real.all()) else real).transpose(0, 1)
                losses = cross_entropy(logits.flatten(0, 1), targets[lanes, index].flatten(), reduction="none")
            losses = (losses.view(index.shape) * (real.to(losses.dtype) / sizes)).sum(0)
            total = losses.sum()
            torch.autograd.backward(total)
            if not bool(torch.isfinite(total)):
                lane = int((~torch.isfinite(losses)).nonzero()[0])
                value = float(losses[lane].detach())
                raise DivergedError(f"{label}: the loss of step {step + 1} of {total_steps}, seed {seeds[lane]}: {value}")
            if recipe.clip is not None:
                _clip(trained, recipe.clip)
            for settings in optimizer.param_groups:
                settings["lr"] = rate(recipe, step, total_steps)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            tell(step)
    if not all(bool(torch.isfinite(p).all()) for p in trained):
        raise DivergedError(f"{label}: weights are NaN or infinite after {step} steps")
    stack.write_back(models)


def _clip(parameters: list[nn.Parameter], clip: float) -> None:
    """Scale each model's gradient to a norm of at most `clip`, as torch's clip_grad_norm_ does for one model."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    scales = (clip / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scales.view(-1, *[1] * (gradient.dim() - 1)))
