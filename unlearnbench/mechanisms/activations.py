"""Reading what modules of a language model take in and give out, and training some of its weights: for methods that act inside.

Knows blocks by their depth, their MLPs, and how to run a model no further than needed; knows no loss. Hooks live inside a context only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench import layers
from unlearnbench.api import Batch, UserError
from unlearnbench.losses import IGNORE_INDEX

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""The linear layers of a gated MLP, by the names transformers gives them."""


@dataclass
class Reading:
    """What one module took in and gave out in the last forward pass.

    Both [B, T, width], in the pass's precision; the output is in the graph, the input is not.
    """

    input: Tensor
    output: Tensor


class _FarEnough(Exception):
    """Ends a forward pass."""


def depth_range(n: int, first: float, last: float) -> range:
    """The blocks of a model of n blocks that lie between two depths, both given as shares of its depth; at least one.

    >>> depth_range(32, 0.1875, 0.375), depth_range(16, 0.1875, 0.375), depth_range(2, 0.1875, 0.375)
    (range(6, 12), range(3, 6), range(0, 1))
    """
    start = min(math.floor(first * n), n - 1)
    return range(start, max(math.ceil(last * n), start + 1))


def mlps(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The MLP of each block, as deployed.

    Raises:
        UserError: a block has none by that name.
    """
    for number, block in enumerate(blocks):
        if not isinstance(getattr(block, "mlp", None), nn.Module):
            raise UserError(f"block {number} is a {type(block).__name__} without an mlp; allowed: models whose blocks have one, as Llama's")
    return [block.mlp for block in blocks]  # type: ignore[misc]


def projections(blocks: Sequence[nn.Module]) -> list[nn.Linear]:
    """The linear layers of the blocks' MLPs, in the order they run in but for gate before up.

    Raises:
        UserError: an MLP lacks one of `PROJECTIONS`.
    """
    found = []
    for mlp in mlps(blocks):
        for name in PROJECTIONS:
            layer = getattr(mlp, name, None)
            if not isinstance(layer, nn.Linear):
                raise UserError(f"{type(mlp).__name__} has no linear layer {name}; allowed: MLPs with {', '.join(PROJECTIONS)}")
            found.append(layer)
    return found


@contextmanager
def reading(modules: Sequence[nn.Module]) -> Iterator[list[Reading | None]]:
    """A context that records each module's first input and its output of the last forward pass, in the order of `modules`."""
    readings: list[Reading | None] = [None] * len(modules)

    def recorder(place: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Any], output: Tensor | tuple[Tensor, ...]) -> None:
            given = args[0] if args else next(iter(named.values()))
            readings[place] = Reading(given.detach(), output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [module.register_forward_hook(recorder(place), with_kwargs=True) for place, module in enumerate(modules)]
    try:
        yield readings
    finally:
        for handle in handles:
            handle.remove()


def run_through(model: nn.Module, batch: Batch, modules: Sequence[nn.Module], *, until: nn.Module) -> list[Reading]:
    """Run a batch through the model up to the end of one of its modules and read others on the way.

    Args:
        model: run conditioned on the batch's prompts.
        batch: a batch of a language scenario, on the model's device.
        modules: what is read; each must have run when `until` has, itself included.
        until: where the pass ends; nothing behind it is computed.

    Returns:
        A reading for each module.
    """

    def stop(module: nn.Module, inputs: object, output: object) -> None:
        raise _FarEnough

    with reading(modules) as readings, layers.conditioned(model, batch["prompts"]):
        handle = until.register_forward_hook(stop)
        try:
            model(input_ids=batch["input_ids"], use_cache=False)
        except _FarEnough:
            pass
        finally:
            handle.remove()
    return [found for found in readings if found is not None]


@contextmanager
def trainable_alone(model: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """A context in which gradients flow to these weights and no others; afterwards each parameter is as it was found."""
    found = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in found.items():
            parameter.requires_grad_(flag)


def token_mask(batch: Batch, *, first: int = 0, last: int = 0, answers: bool = False) -> Tensor:
    """The tokens of a batch, bool [B, T]: without padding, the first and the last few of each row; or of these the answers' alone.

    >>> token_mask({"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}, first=1, last=1).int()
    tensor([[0, 1, 1, 0],
            [0, 1, 0, 0]], dtype=torch.int32)
    """
    attended: Tensor = batch["attention_mask"]
    position = torch.arange(attended.shape[1], device=attended.device)
    mask: Tensor = attended.bool() & (position >= first) & (position < attended.sum(1, keepdim=True) - last)
    if answers:
        mask &= batch["labels"] != IGNORE_INDEX
    return mask
