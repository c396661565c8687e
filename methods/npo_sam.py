"""Towards LLM unlearning resilient to relearning attacks: NPO with sharpness-aware minimisation.

Chongyu Fan, Jinghan Jia, Yihua Zhang, Anil Ramakrishna, Mingyi Hong, Sijia Liu. ICML 2025, arXiv:2502.05374. The forget term's gradient
is taken where a step of length rho up that gradient leads; the retain term's where the weights stand. Defaults as the authors' for MUSE
News: beta 0.1, rho 0.01, both weights 1, lr 1e-5, 10 epochs; batch 32.

Deviations: the log-probability is the sum over the answer's tokens, as in NPO's paper, where the authors take the mean: their beta is not
ours. Each batch has a perturbation of its own, also where several make one step. Retain rows come in shuffled passes; the rate is
constant, without warm-up; optimizer and weight decay are those of the original's training. Of the paper's smoothing methods only SAM is
here.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import MethodView
from unlearnbench.finetuning import Pair, TrainedMethod, paired
from unlearnbench.reference import answer_logprob, reference_logprob
from unlearnbench.sharpness import sharp
from unlearnbench.unlearning_losses import npo


class NPOSAM(TrainedMethod):
    """Minimise forget_weight * NPO(forget), by SAM, + retain_weight * L(retain). Epochs pass over the forget rows."""

    paper = "arXiv:2502.05374"
    modality = ("language",)

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Inverse temperature per nat of a whole answer."""
    rho: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """Euclidean length of the perturbation of all trained weights together; 0 is NPO."""
    forget_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the forget term."""
    retain_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the retain term."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        forget, retain = view.forget.train, view.retain.train
        reference = reference_logprob(model, view, forget, self.batch_size)

        def loss(model: nn.Module, pair: Pair) -> Tensor:
            known = reference[pair.rows.to(reference.device)]
            weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
            unlikely = sharp(lambda: npo(answer_logprob(model, view, pair.forget), known, self.beta).mean(), weights, self.rho)
            return self.forget_weight * unlikely + self.retain_weight * view.loss(model, pair.retain).mean()

        return self.descend(model, view, loss, paired(forget, retain, self.batch_size, seed=seed), n=len(forget), seed=seed)
