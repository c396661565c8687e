"""Many small classifiers trained on subsets of one data set: oracles, shadows, the models of datamodels.

Each is the model that `unlearnbench.training.fit` would give alone, from its own seed, order and subset. Batched, the
models of a chunk take their steps together, as one model with grouped layers: a small net's step is mostly the cost of
calling operators, which is then paid once. Knows nothing of requests or scenarios.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Node, symbolic_trace
from torch.nn.functional import batch_norm, conv2d, cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from unlearnbench.progress import Meter, count_passes
from unlearnbench.training import DivergedError, Recipe, batches, fit, in_bf16, make_optimizer, rate, step_count

#: Layers that treat every row and channel alike, so that stacked models need nothing of their own for them.
_INDIFFERENT = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip


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
    if not batched:
        return [_train_alone(build, inputs, targets[i], rows[i], seeds[i], recipe, f"{label} {i + 1}/{count}") for i in range(count)]
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
            models = [build(seeds[i]) for i in part]
            where = f"{label}, models {', '.join(str(i + 1) for i in part)}"

            def tell(step: int, before: int = done, size: int = len(part)) -> None:
                meter.update(before + step * size)

            own = [rows[i] for i in part]
            _train_together(models, inputs, targets[part], own, [seeds[i] for i in part], recipe, steps, tell, where)
            done += steps * len(part)
            trained.update(zip(part, models, strict=True))
    return [trained[i] for i in range(count)]


def _train_alone(
    build: Callable[[int], nn.Module],
    inputs: Tensor,
    targets: Tensor,
    rows: Tensor,
    seed: int,
    recipe: Recipe,
    label: str,
) -> nn.Module:
    model = build(seed)
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


class Stack:
    """N models of one architecture as one: every parameter and buffer has a first dimension of N.

    Images travel as ``[rows, N * channels, height, width]``, features as ``[N, rows, features]``.

    Args:
        models: Their forward must be a chain of layers; linear, convolution, batch-norm, flatten, activations and
            pooling can be stacked.
        recipe: Its policy for batch-norm and dropout.

    Attributes:
        parameters: By name, ``[N, ...]``.
        buffers: By name, ``[N, ...]``.
    """

    def __init__(self, models: list[nn.Module], recipe: Recipe) -> None:
        self.size, self.frozen = len(models), recipe.batch_norm == "frozen"
        self.layers = _chain(models[0], recipe)
        self.parameters = {
            name: nn.Parameter(torch.stack([dict(m.named_parameters())[name].detach() for m in models]), p.requires_grad)
            for name, p in models[0].named_parameters()
        }
        self.buffers = {name: torch.stack([dict(m.named_buffers())[name] for m in models]) for name, _ in models[0].named_buffers()}

    def write_back(self, models: list[nn.Module]) -> None:
        """Copy each model's share of parameters and buffers into it."""
        with torch.no_grad():
            for lane, model in enumerate(models):
                for name, value in [*model.named_parameters(), *model.named_buffers()]:
                    value.copy_((self.parameters | self.buffers)[name][lane])

    def __call__(self, inputs: Tensor, real: Tensor | None) -> Tensor:
        """Outputs of all models.

        Args:
            inputs: ``[rows, N, ...]``, each model's own batch.
            real: Rows that are not padding, bool ``[rows, N]``; `None` if all are real.

        Returns:
            ``[N, rows, classes]``.
        """
        x = inputs.flatten(1, 2) if inputs.dim() == 5 else inputs.transpose(0, 1)
        for name, layer in self.layers:
            if isinstance(layer, nn.Linear):
                x = self._linear(x, name)
            elif isinstance(layer, nn.Conv2d):
                x = self._convolution(x, name, layer)
            elif isinstance(layer, _BatchNorm):
                x = self._batch_norm(x, name, layer, real)
            elif isinstance(layer, nn.Flatten):
                x = x.reshape(len(x), self.size, -1).transpose(0, 1) if x.dim() == 4 else x
            else:
                x = layer(x)
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"].mT, self.parameters.get(f"{name}.bias")
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias[:, None], x, weight)

    def _convolution(self, x: Tensor, name: str, layer: nn.Conv2d) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"].flatten(0, 1), self.parameters.get(f"{name}.bias")
        groups = self.size * layer.groups
        padding = layer.padding if isinstance(layer.padding, str) else cast(tuple[int, int], layer.padding)
        flat = None if bias is None else bias.flatten()
        return conv2d(x, weight, flat, layer.stride, padding, layer.dilation, groups)

    def _batch_norm(self, x: Tensor, name: str, layer: _BatchNorm, real: Tensor | None) -> Tensor:
        """Each model's own batch-norm: over ``[rows, N * channels, ...]`` it is the usual one, padding apart."""
        vectors = x.dim() == 3
        if vectors:
            x = x.transpose(0, 1).flatten(1)
        mean, variance = (self.buffers[f"{name}.running_{what}"].view(-1) for what in ("mean", "var"))
        weight, bias = (self.parameters[f"{name}.{what}"].view(-1) for what in ("weight", "bias"))
        momentum = cast(float, layer.momentum)
        if not self.frozen:
            self.buffers[f"{name}.num_batches_tracked"] += 1
        if self.frozen or real is None:
            x = batch_norm(x, mean, variance, weight, bias, not self.frozen, momentum, layer.eps)
        else:
            x = _masked_batch_norm(x, mean, variance, weight, bias, real, momentum, layer.eps)
        return x.view(len(x), self.size, -1).transpose(0, 1) if vectors else x


def _masked_batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, real: Tensor, momentum: float, eps: float
) -> Tensor:
    """`torch.nn.functional.batch_norm` in train mode, with the statistics of the real rows alone.

    `x` is ``[rows, N * channels, ...]``, `real` ``[rows, N]``, the others ``[N * channels]``; running statistics change
    in place.
    """
    per_model, shape, dtype = x.shape[1] // real.shape[1], x.shape, x.dtype
    x = x.to(mean.dtype)  # under autocast: statistics are never summed in bf16
    spread = x.flatten(2) if x.dim() > 2 else x[:, :, None]
    mask = real.repeat_interleave(per_model, 1)[:, :, None].to(x.dtype)
    count = mask.sum((0, 2)) * spread.shape[2]
    if bool((count < 2).any()):
        raise ValueError("batch-norm needs more than one value per channel; a batch of one row is left: other batch_size")
    mu = (spread * mask).sum((0, 2)) / count
    centred = spread - mu[:, None]
    var = (centred.square() * mask).sum((0, 2)) / count
    with torch.no_grad():
        mean.lerp_(mu, momentum)
        variance.lerp_(var * count / (count - 1), momentum)
    return (centred * ((var + eps).rsqrt() * weight)[:, None] + bias[:, None]).view(shape).to(dtype)


def _chain(model: nn.Module, recipe: Recipe) -> list[tuple[str, nn.Module]]:
    """The layers of `model` in the order they are called, with their names; without dropout that is turned off.

    Raises:
        ValueError: The forward is no chain of layers, or has one that cannot be stacked.
    """
    name = type(model).__name__
    layers: list[tuple[str, nn.Module]] = []
    previous: Node | None = None
    if len(dict(model.named_parameters())) < len(dict(model.named_parameters(remove_duplicate=False))):
        raise ValueError(f"{name} shares parameters between layers and cannot be stacked; train with batched=False")
    for node in symbolic_trace(model).graph.nodes:
        if node.op in ("call_module", "output") and node.args == (previous,):
            if node.op == "call_module":
                layer = model.get_submodule(str(node.target))
                if not isinstance(layer, nn.Dropout) or (recipe.dropout and layer.p):
                    if not _stackable(layer):
                        raise ValueError(f"{name} has {layer}, which cannot be stacked; train with batched=False")
                    layers.append((str(node.target), layer))
        elif node.op != "placeholder" or previous is not None:
            raise ValueError(f"{name} is no chain of layers ({node.format_node()}); train with batched=False")
        previous = node
    return layers


def _stackable(layer: nn.Module) -> bool:
    match layer:
        case nn.Linear() | nn.Identity():
            return True
        case nn.Conv2d():
            return layer.padding_mode == "zeros"
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return layer.affine and layer.track_running_stats and layer.momentum is not None
        case nn.Flatten():
            return (layer.start_dim, layer.end_dim) == (1, -1)
        case _:
            return isinstance(layer, _INDIFFERENT)
