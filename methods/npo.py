"""Negative preference optimization: from catastrophic collapse to effective unlearning.

Ruiqi Zhang, Licong Lin, Yu Bai, Song Mei. COLM 2024, arXiv:2404.05868. With a retain term (NPO+RT of the paper); defaults as in
open-unlearning: beta 0.1, both weights 1, lr 1e-5, 10 epochs, batch 32.

The log-probability is the sum over the answer's tokens, as in the paper: beta is not comparable with implementations that take the
mean. The reference is the model as it came in, in eval mode; its log-probabilities are taken once, before training, so no second copy
of the model is held.

Deviations: retain rows come in shuffled passes, where open-unlearning draws a random one for each forget row; the rate is constant,
without warm-up; optimizer and weight decay are those of the original's training.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import MethodView
from unlearnbench.finetuning import Pair, TrainedMethod, paired
from unlearnbench.reference import answer_logprob, reference_logprob
from unlearnbench.unlearning_losses import npo


class NPO(TrainedMethod):
    """Minimise forget_weight * NPO(forget) + retain_weight * L(retain). Epochs pass over the forget rows."""

    paper = "arXiv:2404.05868"
    modality = ("language",)

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Inverse temperature per nat of a whole answer; towards 0 this becomes gradient ascent."""
    forget_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the forget term."""
    retain_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the retain term; 0 is NPO without a retain term."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        forget, retain = view.forget.train, view.retain.train
        reference = reference_logprob(model, view, forget, self.batch_size)

        def loss(model: nn.Module, pair: Pair) -> Tensor:
            known = reference[pair.rows.to(reference.device)]
            unlikely = npo(answer_logprob(model, view, pair.forget), known, self.beta).mean()
            return self.forget_weight * unlikely + self.retain_weight * view.loss(model, pair.retain).mean()

        return self.descend(model, view, loss, paired(forget, retain, self.batch_size, seed=seed), n=len(forget), seed=seed)
