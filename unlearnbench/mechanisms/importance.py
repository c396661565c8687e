"""How much weights matter to some rows: gradients of losses, Fisher information, and what dampening, noise and influence make of them.

Pure functions of a model and batches, or of tensors alone. Parameter-shaped results are dictionaries by parameter name. The model runs
in eval mode, each module gets its own mode back, and neither weights nor their gradients are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from unlearnbench.layers import evaluating

Weights = dict[str, Tensor]
"""One tensor for each trained parameter, by its name."""
Loss = Callable[[nn.Module, Any], Tensor]
"""A model and a batch -> a scalar."""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have ``requires_grad``, by name; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model: nn.Module, loss: Loss, batches: Iterable[Any]) -> Iterator[Weights]:
    """The gradient of the loss of each batch; 0 where a parameter plays no part.

    Args:
        model: looked at in eval mode.
        loss: a scalar.
        batches: moved to the model's device.
    """
    parameters = trained(model)
    device = next(iter(parameters.values())).device
    for batch in batches:
        with evaluating(model), torch.enable_grad():
            value = loss(model, send_to_device(batch, device))
            found = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
        yield dict(zip(parameters, found, strict=True))


def summed(parts: Iterable[Weights]) -> Weights:
    """The sum of parameter-shaped results.

    Raises:
        ValueError: there is none.
    """
    total: Weights = {}
    for part in parts:
        total = {name: total[name] + tensor for name, tensor in part.items()} if total else part
    if not total:
        raise ValueError("no batch to take gradients of; allowed: 1 or more")
    return total


def mean_gradient(model: nn.Module, loss: Loss, batches: Iterable[Any]) -> Weights:
    """Mean over rows of the gradient; the loss gives one value a row [B]."""
    rows = 0

    def total(model: nn.Module, batch: Any) -> Tensor:
        nonlocal rows
        values = loss(model, batch)
        rows += len(values)
        return values.sum()

    found = summed(gradients(model, total, batches))
    return {name: tensor / rows for name, tensor in found.items()}


def squared_gradient(model: nn.Module, loss: Loss, batches: Iterable[Any]) -> Weights:
    """Mean over batches of the squared gradient of a batch's loss: with batches of one row the diagonal of the empirical Fisher matrix.

    With larger batches and a mean as the loss this is smaller, since the gradients of different rows cancel.
    """
    count = 0

    def squares() -> Iterator[Weights]:
        nonlocal count
        for found in gradients(model, loss, batches):
            count += 1
            yield {name: tensor.square() for name, tensor in found.items()}

    found = summed(squares())
    return {name: tensor / count for name, tensor in found.items()}


def fisher_diagonal(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Weights:
    """Diagonal of the Fisher information of a classifier: mean over rows of sum_c p_c (d log p_c / d theta)^2, labels taken from the model.

    Golatkar et al. 2020, arXiv:1911.04933. Batches of one row give just that; of larger ones p and log p are averaged over the rows
    first, as published code does, which is cheaper and another number.

    Args:
        model: images [B, ...] -> logits [B, K].
        batches: with "images".
    """
    parameters = trained(model)
    device = next(iter(parameters.values())).device
    count = 0

    def squares() -> Iterator[Weights]:
        nonlocal count
        for batch in batches:
            with evaluating(model), torch.enable_grad():
                logprob = model(send_to_device(batch, device)["images"]).log_softmax(1)
                weights = logprob.detach().exp().mean(0)
                each = torch.eye(len(weights), dtype=logprob.dtype, device=device)
                inputs = list(parameters.values())
                slopes = torch.autograd.grad(logprob.mean(0), inputs, each, is_grads_batched=True, allow_unused=True)
            count += 1
            yield {
                name: torch.zeros_like(weight) if slope is None else torch.tensordot(weights, slope.square(), 1)
                for (name, weight), slope in zip(parameters.items(), slopes, strict=True)
            }

    found = summed(squares())
    return {name: tensor / count for name, tensor in found.items()}


# ------------------------------------------------------------------------------------------------------ what is made of them


def dampened(weight: Tensor, forget: Tensor, overall: Tensor, *, alpha: float, strength: float) -> Tensor:
    """Selective synaptic dampening: weights that matter to the forget rows above all are scaled by min(strength overall / forget, 1).

    Foster et al. 2024, arXiv:2308.07707, eq. 6 and 7.

    Args:
        weight: any shape.
        forget: importance for the forget rows, same shape, 0 or more.
        overall: importance for all rows, same shape, 0 or more.
        alpha: a weight is selected where forget > alpha overall.
        strength: the paper's lambda, 0 or more.

    >>> one = torch.ones(3)
    >>> dampened(one, torch.tensor([4.0, 2.0, 0.0]), one, alpha=2.0, strength=1.0)
    tensor([0.2500, 1.0000, 1.0000])
    """
    factor = (strength * overall / forget).clamp(max=1)
    return torch.where(forget > alpha * overall, weight * factor, weight)


def fisher_variance(information: Tensor, *, alpha: float, largest: float) -> Tensor:
    """Variance of the noise of Fisher forgetting: alpha min(1 / (information + 1e-8), largest), averaged over the inputs of each unit.

    Golatkar et al. 2020, arXiv:1911.04933, as their code bounds and averages it: over dimension 1 of tensors that have one.

    >>> fisher_variance(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), alpha=0.1, largest=5.0)
    tensor([[0.3000, 0.3000],
            [0.2000, 0.2000]])
    """
    variance = alpha * (1 / (information + 1e-8)).clamp(max=largest)
    return variance.mean(1, keepdim=True).expand_as(variance) if variance.dim() > 1 else variance


def influence_direction(forget: Tensor, retain: Tensor, n_forget: int, n_retain: int) -> Tensor:
    """|F| / (|F| + |R|) (g_F - g_R): times the inverse Hessian of the retain loss, the Newton step to its minimum.

    At a minimum of the loss of all rows this is |F| / |R| g_F = -g_R, so that the step is exact where the loss is quadratic.

    Args:
        forget: mean gradient of the forget rows.
        retain: mean gradient of the retain rows, same shape.
        n_forget: number of forget rows.
        n_retain: number of retain rows.

    >>> influence_direction(torch.tensor([3.0]), torch.tensor([-1.0]), 1, 3)
    tensor([1.])
    """
    return n_forget / (n_forget + n_retain) * (forget - retain)


def inverse_fisher_product(vector: Tensor, rows: Tensor, damping: float) -> Tensor:
    """(damping I + G'G / m)^-1 v: what WoodFisher's recursion of m rank-one updates gives, solved at once.

    Singh and Alistarh 2020, arXiv:2004.14340, by the identity of Woodbury: only an m x m system is solved.

    Args:
        vector: v [P].
        rows: gradients of single rows, G [m, P].
        damping: above 0.

    Returns:
        [P], in the type of `vector`; the system is solved in float64.

    Raises:
        ValueError: damping is not above 0.

    >>> inverse_fisher_product(torch.tensor([6.0, 4.0]), torch.tensor([[2.0, 0.0], [0.0, 0.0]]), damping=1.0)
    tensor([2., 4.])
    """
    if not damping > 0:
        raise ValueError(f"damping is {damping}; allowed: above 0")
    count = len(rows)
    gram = (rows @ rows.T).double() + damping * count * torch.eye(count, dtype=torch.float64, device=rows.device)
    share: Tensor = torch.linalg.solve(gram, (rows @ vector).double())
    return (vector - rows.T @ share.to(vector.dtype)) / damping
