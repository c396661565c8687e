"""Weight saliency: which weights a forget loss depends on most, and training that moves no others.

Chongyu Fan et al., "SalUn: empowering machine unlearning via gradient-based weight saliency", ICLR 2024, arXiv:2310.12508. Knows
gradients, masks and optimizers; no data and no label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import floor
from typing import TypeVar

import torch
from torch import Tensor, nn

from unlearnbench.mechanisms.importance import gradients, summed

T = TypeVar("T")


def saliency(model: nn.Module, loss: Callable[[nn.Module, T], Tensor], batches: Iterable[T]) -> dict[str, Tensor]:
    """Magnitude of the gradient of a loss: each weight's |sum over batches of dL/dw|, the sum taken with sign.

    Args:
        model: in any mode; the gradients are those in eval mode. Its own gradients stay as they are.
        loss: ``loss(model, batch)``, a scalar. A sum over rows makes the result independent of how rows are batched.
        batches: what is passed through once; tensors in them are moved to the model's device.

    Returns:
        Name -> magnitude, shaped like the parameter, for all parameters that have ``requires_grad``, biases and norms included.

    Raises:
        ValueError: there is no batch.
    """
    return {name: part.abs() for name, part in summed(gradients(model, loss, batches)).items()}


def top_share(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks of the floor(share * P) largest of all P scores together; of equal ones the first.

    A smaller share's masks lie within a larger one's.

    Args:
        scores: by name, of any shapes.
        share: from 0 to 1.

    Returns:
        Name -> bool mask of the same shape.

    Raises:
        ValueError: the share is out of range, or a score is NaN.

    >>> top_share({"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([[4.0], [0.0]])}, 0.5)
    {'a': tensor([False,  True]), 'b': tensor([[ True],
            [False]])}
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; allowed: 0 to 1")
    flat = torch.cat([score.flatten() for score in scores.values()])
    if flat.isnan().any():
        raise ValueError("a score is NaN, so that scores cannot be ranked")
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[: floor(share * len(flat))]] = True
    parts = torch.split(chosen, [score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


@contextmanager
def masked(
    parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> Iterator[Callable[[int, nn.Module], None]]:
    """A context inside which training moves only what the masks let it move; gives what `training.fit` is to call as `on_step`.

    Gradients are masked as they arise, so that clipping sees no others. That alone does not hold a weight: weight decay and momentum
    move weights without a gradient. So after each step the others are set back, to the bit, and so are their moments.

    Args:
        parameters: by name.
        masks: by the same names, bool, shaped like them.
        optimizer: the one that trains them.
    """
    before = {name: weight.detach().clone() for name, weight in parameters.items()}
    free = {name: mask.to(before[name].device) for name, mask in masks.items()}

    @torch.no_grad()
    def restore(done: int, model: nn.Module) -> None:
        for name, weight in parameters.items():
            weight.copy_(torch.where(free[name], weight, before[name]))
            for key, state in optimizer.state[weight].items():
                if key != "step":
                    state.mul_(free[name])

    with ExitStack() as stack:
        for name, weight in parameters.items():
            handle = weight.register_hook(lambda gradient, mask=free[name]: gradient * mask)  # type: ignore[no-untyped-call]
            stack.callback(handle.remove)
        yield restore
