"""NPO, and NPO with sharpness-aware minimisation.

Negative preference optimization: from catastrophic collapse to effective unlearning.

Ruiqi Zhang, Licong Lin, Yu Bai, Song Mei. COLM 2024, arXiv:2404.05868. With a retain term (NPO+RT of the paper); defaults as in
open-unlearning: beta 0.1, both weights 1, lr 1e-5, 10 epochs, batch 32.

The log-probability is the sum over the answer's tokens, as in the paper: beta is not comparable with implementations that take the
mean. The reference is the model as it came in, in eval mode; its log-probabilities are taken once, before training, so no second copy
of the model is held.

Deviations: retain rows come in shuffled passes, where open-unlearning draws a random one for each forget row; the rate is constant,
without warm-up; optimizer and weight decay are those of the original's training.

Towards LLM unlearning resilient to relearning attacks: Chongyu Fan, Jinghan Jia, Yihua Zhang, Anil Ramakrishna, Mingyi Hong, Sijia Liu.
ICML 2025, arXiv:2502.05374. The forget term's gradient is taken where a step of length rho up that gradient leads; the retain term's
where the weights stand. Defaults as the authors' for MUSE News: beta 0.1, rho 0.01, both weights 1, lr 1e-5, 10 epochs; batch 32.
Further deviations: the authors take the mean of the log-probabilities, so that their beta is not ours; each batch has a perturbation of
its own, also where several make one step; of the paper's smoothing methods only SAM is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import MethodView
from unlearnbench.finetuning import Pair, TrainedMethod, paired
from unlearnbench.mechanisms.reference import answer_logprob, reference_logprob
from unlearnbench.mechanisms.sharpness import sharp
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
            unlikely = self._taken(model, lambda: npo(answer_logprob(model, view, pair.forget), known, self.beta).mean())
            return self.forget_weight * unlikely + self.retain_weight * view.loss(model, pair.retain).mean()

        return self.descend(model, view, loss, paired(forget, retain, self.batch_size, seed=seed), n=len(forget), seed=seed)

    def _taken(self, model: nn.Module, forget_term: Callable[[], Tensor]) -> Tensor:
        """The forget term whose gradient is followed, a scalar: as it is."""
        return forget_term()


class NPOSAM(NPO):
    """Minimise forget_weight * NPO(forget), by SAM, + retain_weight * L(retain). Epochs pass over the forget rows."""

    paper = "arXiv:2502.05374"

    rho: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """Euclidean length of the perturbation of all trained weights together; 0 is NPO."""

    def _taken(self, model: nn.Module, forget_term: Callable[[], Tensor]) -> Tensor:
        """The forget term with the gradient that it has up its own gradient."""
        return sharp(forget_term, [parameter for parameter in model.parameters() if parameter.requires_grad], self.rho)
