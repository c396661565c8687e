"""The factor between predicted and true changes of outputs.

Estimators of effects have scales of their own (datamodels fitted on half of the rows overstate, penalties shrink, TRAK's scale is that of
an approximate Hessian). A few models trained without other rows than those to be forgotten tell the factor. Knows tensors alone.
"""

from __future__ import annotations

from torch import Tensor


def calibrated(predicted: Tensor, outputs: Tensor) -> float:
    """The m that makes outputs = constant - m predicted fit best over several removals, each output with its own constant.

    Both are centred over the removals, so that no model on all rows is needed and what such models have in common drops out.

    Args:
        predicted: Summed effects of the rows that each removal left out, ``[c, ...]``.
        outputs: Of the models trained without them, of the same shape.

    Raises:
        ValueError: fewer than two removals, or predictions that do not differ between them.

    >>> import torch
    >>> p = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    >>> calibrated(p, 7 - 0.5 * p)
    0.5
    """
    if len(predicted) < 2 or predicted.shape != outputs.shape:
        raise ValueError(
            f"predictions {list(predicted.shape)} and outputs {list(outputs.shape)}; allowed: equal shapes, 2 removals or more"
        )
    p = predicted.double() - predicted.double().mean(0)
    y = outputs.double() - outputs.double().mean(0)
    size = float(p.square().sum())
    if size == 0:
        raise ValueError("the predicted changes of all removals are the same: they tell no scale")
    return -float((p * y).sum()) / size
