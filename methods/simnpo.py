"""Simplicity prevails: rethinking negative preference optimization for LLM unlearning (SimNPO).

Chongyu Fan, Jiancheng Liu, Licong Lin, Jinghan Jia, Ruiqi Zhang, Song Mei, Sijia Liu. 2024, arXiv:2410.07163. NPO without a
reference model, on the mean in place of the sum of an answer's token losses: long and short answers count alike. Defaults as in
open-unlearning: beta 4.5, delta 0, forget weight 0.125, retain weight 1, lr 1e-5, 10 epochs, batch 32.

Deviations: retain rows come in shuffled passes, where open-unlearning draws a random one for each forget row, and their loss is a mean of
rows, not of the batch's tokens; the rate is constant, without warm-up; optimizer and weight decay are those of the original's training.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.finetuning import RetainedMethod
from unlearnbench.unlearning_losses import simnpo


class SimNPO(RetainedMethod):
    """Minimise forget_weight * SimNPO(forget) + retain_weight * L(retain)."""

    paper = "arXiv:2410.07163"
    modality = ("language",)

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.5
    """Inverse temperature per nat of a token's mean loss."""
    delta: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Margin, nats per token: an answer is let go of once its loss is well above this."""
    forget_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.125
    """Weight of the forget term."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""

        def unlikely(model: nn.Module, batch: Batch) -> Tensor:
            return simnpo(view.loss(model, batch), self.beta, self.delta)

        return self.balance(model, view, unlikely, seed=seed)
