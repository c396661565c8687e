"""Continual learning and private unlearning; gradient difference: ascent on the forget set, descent on the retain set.

Bo Liu, Qiang Liu, Peter Stone. CoLLAs 2022, arXiv:2203.12817; the form is TOFU's (Pratyush Maini, Zhili Feng, Avi Schwarzschild,
Zachary C. Lipton, J. Zico Kolter, COLM 2024, arXiv:2401.06121), for vision NegGrad+ (Meghdad Kurmanji et al., NeurIPS 2023,
arXiv:2302.09880). Defaults as in open-unlearning: both weights 1, lr 1e-5, 10 epochs, batch 32.

Deviations: retain rows come in shuffled passes, where open-unlearning draws a random one for each forget row; the rate is constant,
without warm-up; optimizer and weight decay are those of the original's training; batch-norm is frozen by default.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import MethodView
from unlearnbench.finetuning import Pair, TrainedMethod, paired


class GradDiff(TrainedMethod):
    """Minimise retain_weight * L(retain) - forget_weight * L(forget). Epochs pass over the forget rows."""

    paper = "arXiv:2401.06121"

    forget_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the ascent; 0 is fine-tuning on the retain rows."""
    retain_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the descent."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        forget, retain = view.forget.train, view.retain.train

        def loss(model: nn.Module, pair: Pair) -> Tensor:
            ascent = view.loss(model, pair.forget).mean()
            return self.retain_weight * view.loss(model, pair.retain).mean() - self.forget_weight * ascent

        return self.descend(model, view, loss, paired(forget, retain, self.batch_size, seed=seed), n=len(forget), seed=seed)
