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
from unlearnbench.layers import blocks

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
