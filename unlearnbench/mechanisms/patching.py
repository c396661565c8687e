"""Activation patching: one model's activations put into another, and how much of what the other knows is lost by it.

The depth score is that of Unlearning Depth Score, 2026 (arXiv 2605.24614): the states of a source model at a layer replace those of the
original, and the original's answer becomes less likely, the more so the less the source knows up to that layer. Layers count by how much
is lost with an oracle as source. Knows blocks and numbers; no text and no data.

Deviation from the released code: a block's own output is replaced, of the last block too. There the last layer is given states that
already went through the final norm, so that the original patched into itself scores 2e-4 to 5e-4 instead of 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn, where

from unlearnbench.api import UserError
from unlearnbench.layers import Inserted, blocks

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]

THRESHOLD = 0.05
"""What an oracle must lose at a layer for the layer to count, in nats per token."""


def depth_score(full: Floats, oracle: Floats, unlearned: Floats, threshold: float = THRESHOLD) -> Doubles:
    """How much of what an oracle lacks the unlearned model lacks too, over layers: 1 as the oracle, 0 as the original, NaN undecided.

    sum d1 clip(d2 / d1, 0, 1) / sum d1 over the layers with d1 > threshold, where d1 = full - oracle and d2 = full - unlearned. NaN
    where the oracle loses nothing at any layer: such an example tells nothing and stays out of averages.

    Args:
        full: log-probability per token of each example's answer under the original [n], in nats.
        oracle: the same with the oracle's states put in, at each layer [n, layers].
        unlearned: the same with the unlearned model's states [n, layers].
        threshold: in nats per token.

    Returns:
        Scores [n].

    Raises:
        ValueError: shapes that do not fit, or a number that is not finite.

    >>> depth_score(np.array([-0.5]), np.array([[-1.5, -3.5, -0.5]]), np.array([[-1.0, -0.1, -9.0]])).tolist()  # 1 * 0.5 + 3 * 0, of 4
    [0.125]
    """
    if oracle.ndim != 2 or oracle.shape != unlearned.shape or full.shape != oracle.shape[:1]:
        raise ValueError(f"shapes are {full.shape}, {oracle.shape}, {unlearned.shape}; allowed: [n], [n, layers], [n, layers]")
    for numbers in (full, oracle, unlearned):
        if not np.isfinite(numbers).all():
            raise ValueError("a log-probability is NaN or infinite")
    before = full.astype(np.float64)[:, None]
    # clip(d2 / d1, 0, 1) d1 = clip(d2, 0, d1), where d1 is positive.
    due = np.where(before - oracle > threshold, before - oracle, 0.0)
    lost = np.clip(before - unlearned, 0.0, due)
    total = due.sum(axis=1)
    return np.asarray(np.divide(lost.sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0))


@contextmanager
def patched(model: nn.Module, layer: int, states: Tensor, chosen: Tensor) -> Iterator[None]:
    """A context inside which a block puts out other states at some positions.

    Args:
        model: what `layers.blocks` knows.
        layer: number of the block, as in a list; inserted modules around it act before its output is replaced.
        states: what takes the output's place [B, T, width], as `layers.captured` gives it of another model on the same batch.
        chosen: positions that are replaced, bool [B, T].

    Raises:
        UserError: the model has no block of that number.
    """
    found = blocks(model)
    if not -len(found) <= layer < len(found):
        raise UserError(f"{type(model).__name__} has no block {layer}; its blocks are 0 to {len(found) - 1}, or -1 for the last")

    def replace(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        given = output[0] if isinstance(output, tuple) else output
        mixed = where(chosen[:, :, None], states.to(given), given)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    handle = found[layer][1].register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def handed_over(model: nn.Module, original: nn.Module) -> Iterator[int]:
    """Let the original go on from the model's states at ever earlier blocks, by moving its modules into the model's places.

    The model's blocks up to number l, followed by all that the original has behind block l, compute what the original computes with the
    model's output of block l put in at every position: of answers in the prompts' cache and of generated tokens too.

    Works in place on both. What comes behind the blocks is what is defined behind them, in the module that holds the list and in those
    around it; what methods inserted there goes, what is inserted around the list itself stays.

    Args:
        model: gives the states; its modules are replaced from behind.
        original: of the same architecture, apart from inserted modules and adapters; loses modules to the model.

    Yields:
        The number of the last block that is still the model's: the last block's first, then down to 0.

    Raises:
        UserError: the two have other numbers of blocks, or the original lacks a part that the model has.
        ValueError: a model has no list of blocks.
    """
    path, theirs = blocks(model)[0][0].rpartition(".")[0], [block for _, block in blocks(original)]
    held = model.get_submodule(path)
    names = [name for name, _ in held.named_children()]
    if len(names) != len(theirs):
        raise UserError(f"the model has {len(names)} blocks and the original {len(theirs)}; allowed: as many")
    for (ours, ours_at), (behind, behind_at) in zip(_around(model), _around(original), strict=False):
        for name in _after(ours, ours_at):
            if name not in _after(behind, behind_at):
                raise UserError(f"the model has a part {name!r} behind its blocks and the original has none")
            setattr(ours, name, getattr(behind, name))
    for number in reversed(range(len(names))):
        if number + 1 < len(names):
            setattr(held, names[number + 1], theirs[number + 1])
        yield number


def _around(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The modules that hold the list of blocks, from inside out, each with its child on the way; inserted ones are passed over."""
    path = blocks(model)[0][0].rpartition(".")[0]
    while path:
        path, _, name = path.rpartition(".")
        module = model.get_submodule(path)
        if not isinstance(module, Inserted):
            yield module, name


def _after(module: nn.Module, child: str) -> list[str]:
    """The children that are defined behind one of them."""
    names = [name for name, _ in module.named_children()]
    return names[names.index(child) + 1 :]
