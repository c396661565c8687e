"""Continual learning and private unlearning; gradient difference: ascent on the forget set, descent on the retain set.

Bo Liu, Qiang Liu, Peter Stone. CoLLAs 2022, arXiv:2203.12817; the form is TOFU's (Pratyush Maini, Zhili Feng, Avi Schwarzschild,
Zachary C. Lipton, J. Zico Kolter, COLM 2024, arXiv:2401.06121). For vision it is NegGrad+ with epochs that pass over the forget rows;
`neggrad_plus` is the published one. Defaults as in open-unlearning: both weights 1, lr 1e-5, 10 epochs, batch 32.

Deviations: retain rows come in shuffled passes, where open-unlearning draws a random one for each forget row; the rate is constant,
without warm-up; optimizer and weight decay are those of the original's training; batch-norm is frozen by default.
"""

from __future__ import annotations

from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.finetuning import RetainedMethod


class GradDiff(RetainedMethod):
    """Minimise retain_weight * L(retain) - forget_weight * L(forget). With forget weight 0 it is fine-tuning on the retain rows."""

    paper = "arXiv:2401.06121"
    tasks = ("generate", "classify", "diffuse")

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""

        def ascent(model: nn.Module, batch: Batch) -> Tensor:
            return -view.loss(model, batch)

        return self.balance(model, view, ascent, seed=seed)
