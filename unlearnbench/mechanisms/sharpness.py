"""Sharpness-aware minimisation of one term of a loss: its gradient is taken where the term is worst nearby, the others' where we stand.

Pierre Foret et al., "Sharpness-aware minimization for efficiently improving generalization", ICLR 2021, arXiv:2010.01412. Knows
parameters and closures; the training loop needs to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def perturbation(gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """The step of length rho up the gradient: rho g / |g|, with one norm over all parts.

    Args:
        gradients: parts of one gradient, of any shapes.
        rho: length.

    Returns:
        One part for each; all 0 where the gradient is.

    >>> perturbation([torch.tensor([3.0]), torch.tensor([[4.0]])], rho=0.5)
    [tensor([0.3000]), tensor([[0.4000]])]
    """
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in gradients]))
    return [rho * part / norm if norm > 0 else torch.zeros_like(part) for part in gradients]


@contextmanager
def shifted(parameters: Sequence[nn.Parameter], offsets: Sequence[Tensor]) -> Iterator[None]:
    """A context inside which each parameter is moved by its offset; afterwards all are as they were, to the bit."""
    found = [parameter.detach().clone() for parameter in parameters]
    _set(parameters, [before + offset for before, offset in zip(found, offsets, strict=True)])
    try:
        yield
    finally:
        _set(parameters, found)


@torch.no_grad()
def _set(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
    # Autocast keeps its low-precision copies of weights until it is left, and would go on with the earlier ones.
    torch.clear_autocast_cache()


def sharp(loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], rho: float) -> Tensor:
    """A term of a loss whose value is that of `loss` here and whose gradient is that of `loss` at the perturbed parameters.

    Foret et al., eq. 3, without the term of second order. `loss` is called twice and differentiated twice; what is returned is linear
    in the parameters and can be added to other terms, weighted and accumulated.

    Args:
        loss: scalar; deterministic, so that both calls see the same function.
        parameters: what is perturbed and differentiated; a parameter that `loss` does not use stays as it is.
        rho: length of the perturbation; 0 gives the plain gradient.

    Returns:
        Scalar.
    """
    value = loss()
    offsets = perturbation(torch.autograd.grad(value, parameters, materialize_grads=True), rho)
    with shifted(parameters, offsets):
        gradients = torch.autograd.grad(loss(), parameters, materialize_grads=True)
    linear = torch.stack([(gradient * parameter).sum() for gradient, parameter in zip(gradients, parameters, strict=True)]).sum()
    return value.detach() + (linear - linear.detach()).to(value.dtype)
