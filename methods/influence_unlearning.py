"""Influence unlearning with WoodFisher: one Newton step towards the minimum of the retain loss.

Influence functions: Pang Wei Koh, Percy Liang, ICML 2017, arXiv:1703.04730; for unlearning with WoodFisher (Sidak Pal Singh, Dan Alistarh,
NeurIPS 2020, arXiv:2004.14340): Jinghan Jia, Jiancheng Liu, Parikshit Ram, Yuguang Yao, Gaowen Liu, Yang Liu, Pranay Sharma, Sijia Liu,
NeurIPS 2023, arXiv:2304.04934. theta + alpha F^-1 |F| / N (g_F - g_R), F = damping + the mean of g g' over single retain rows. Defaults:
1000 retain rows and damping 1 as in the authors' code, alpha 5 out of the range 1 to 20 that they search.

Deviations: the inverse is exact, where their recursion keeps one vector and corrects it along the first row's gradient alone; the
rank-one terms are divided by the number of rows that are used, there always by 1000; the rows are drawn at random. With alpha 1 and a
small damping it is influence unlearning proper, with damping 1 it is close to one step of ascent. The gradients of the used rows are
held in memory: rows times parameters.
"""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, Method, MethodView
from unlearnbench.finetuning import shuffled
from unlearnbench.mechanisms.importance import Weights, gradients, influence_direction, inverse_fisher_product, mean_gradient, trained


class InfluenceUnlearning(Method):
    """Add alpha times the inverse Fisher matrix of retain rows times |F| / N (mean gradient of forget - of retain rows)."""

    paper = "arXiv:2304.04934"
    modality = ("vision",)

    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """Length of the step; 1 is Newton's."""
    damping: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Added to the diagonal of the Fisher matrix."""
    rows: Annotated[int, Field(ge=1)] = 1000
    """Retain rows whose gradients make the Fisher matrix; all of them where there are fewer."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows of a batch of the mean gradients; changes rounding alone."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        forget, retain = view.forget.train, view.retain.train
        ours, others = (_flat(mean_gradient(model, view.loss, shuffled(data, self.batch_size, seed=seed)(0))) for data in (forget, retain))

        def single(model: nn.Module, batch: Batch) -> Tensor:
            return view.loss(model, batch).sum()

        rows = ours.new_empty(min(self.rows, len(retain)), len(ours))
        singles = islice(shuffled(retain, 1, seed=seed)(0), len(rows))
        for place, found in enumerate(gradients(model, single, singles)):
            rows[place] = _flat(found)
        step = self.alpha * inverse_fisher_product(influence_direction(ours, others, len(forget), len(retain)), rows, self.damping)
        with torch.no_grad():
            parameters = list(trained(model).values())
            for weight, part in zip(parameters, torch.split(step, [weight.numel() for weight in parameters]), strict=True):
                weight.add_(part.reshape(weight.shape))
        return model


def _flat(found: Weights) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in found.values()])
