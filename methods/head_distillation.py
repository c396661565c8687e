"""Head distillation: the original's features under a head that says what the oracles say. A reference row.

Dongjae Jeon, Wonje Jeung, Taeheon Kim, Albert No, Jonghyun Choi. "An Information Theoretic Evaluation Metric for Strong Unlearning",
arXiv:2405.17878: everything but the last layer is frozen, and the last layer is distilled from the retrained model. Nothing is
forgotten inside, yet what is read off the logits looks forgotten: a metric that it passes does not see representations.

Deviations: the head is solved for (ridge regression of the mean logits of the oracles on the features of all training rows, seen as in
evaluation), not trained by steps; squared error of logits, not a divergence of softmax outputs. The penalty is the smallest that keeps
the solution finite where features are collinear.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Reference, ReferenceView
from unlearnbench.attribution.removal import features_of, training_rows
from unlearnbench.layers import last_linear
from unlearnbench.mechanisms.matching import logits_of


class HeadDistillation(Reference):
    """Replace the last linear layer by the one that comes nearest to the oracles' mean logits on forget and retain rows."""

    paper = "arXiv:2405.17878"
    modality = ("vision",)

    n_oracles: Annotated[int, Field(ge=1)] = 10
    """Oracles whose logits are averaged, or all of the request's if they are fewer."""
    forget_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Weight of a forget row's squared error, against 1 of a retain row's."""

    def refer(self, model: nn.Module, view: ReferenceView, *, seed: int) -> nn.Module:
        """See `Reference.refer`."""
        rows = training_rows(view)
        wanted = torch.stack([logits_of(load(), rows.images) for load in view.oracles[: self.n_oracles]]).mean(0)
        head = last_linear(model)
        weights = torch.where(rows.forget, self.forget_weight, 1.0)
        weight, bias = distilled(features_of(model, rows.images), wanted, weights, bias=head.bias is not None)
        with torch.no_grad():
            head.weight.copy_(weight)
            if head.bias is not None:
                head.bias.copy_(bias)
        return model


def distilled(features: Tensor, logits: Tensor, weights: Tensor, *, bias: bool) -> tuple[Tensor, Tensor]:
    """The linear layer with the least weighted squared error.

    Args:
        features: ``[n, d]``.
        logits: What it should give, ``[n, K]``.
        weights: Of the rows, ``[n]``, above 0.
        bias: Whether it has one; without, the bias returned is 0.

    Returns:
        Weight ``[K, d]`` and bias ``[K]``, float64.

    >>> weight, bias = distilled(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.0]]), torch.ones(3), bias=True)
    >>> round(weight.item(), 6), round(bias.item(), 6)
    (2.0, 1.0)
    """
    x, y, w = features.double(), logits.double(), (weights.double() / weights.double().sum())[:, None]
    mean_x, mean_y = ((w * x).sum(0), (w * y).sum(0)) if bias else (torch.zeros_like(x[0]), torch.zeros_like(y[0]))
    gram = (x - mean_x).T @ (w * (x - mean_x))
    gram += 1e-10 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, (x - mean_x).T @ (w * (y - mean_y))).T
    return weight, mean_y - weight @ mean_x
