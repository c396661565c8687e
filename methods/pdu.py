"""Constrained entropic unlearning: a primal-dual framework for large language models (PDU).

Taha Entesari, Arman Hatami, Rinat Khaziev, Anil Ramakrishna, Mahyar Fazlyab. 2025, arXiv:2506.05314. Forget rows: flatten the
logits. Retain rows: a constraint, loss at most `limit`, with a multiplier that rises while it is broken and falls, not below 0, while it
holds. Defaults as in open-unlearning for TOFU: multiplier 100 at the start and rate 5, limit 0.3, 5 epochs of warm-up, lr 1e-5, 10
epochs, batch 32.

Deviations: the forget loss is a mean of rows over the positions that foretell answer tokens; open-unlearning's mask is not shifted, so
that it starts one position late and holds the last token's own position, and its means are of the batch's tokens. Retain rows come in
shuffled passes, where open-unlearning draws a random one for each forget row; the rate is constant, without warm-up; optimizer and
weight decay are those of the original's training. As there, the multiplier moves with every batch, by the loss of that batch as the step
sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import MethodView
from unlearnbench.causal import answer_logits
from unlearnbench.finetuning import Pair, TrainedMethod, paired
from unlearnbench.losses import answer_mean
from unlearnbench.unlearning_losses import dual_step, logit_margin


class PDU(TrainedMethod):
    """Minimise forget_weight * margin(forget) + multiplier * (L(retain) - limit). Epochs pass over the forget rows."""

    paper = "arXiv:2506.05314"
    modality = ("language",)

    forget_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the forget term."""
    multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 100.0
    """Weight of the constraint at the start and in the warm-up."""
    multiplier_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """How far the multiplier moves with each batch, per nat above or below the limit; 0 holds it fixed."""
    limit: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.3
    """Retain loss to stay below, nats per token. It should be above the original's, or the multiplier only rises."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    """Epochs before the multiplier begins to move."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        forget = view.forget.train
        pairs = paired(forget, view.retain.train, self.batch_size, seed=seed)
        multiplier, moving = self.multiplier, False

        def steps(epoch: int) -> Iterator[Pair]:
            nonlocal moving
            moving = epoch >= self.warmup_epochs
            yield from pairs(epoch)

        def loss(model: nn.Module, pair: Pair) -> Tensor:
            nonlocal multiplier
            logits, labels = answer_logits(model, pair.forget)
            flat = answer_mean(logit_margin(logits, labels), labels).mean()
            excess = view.loss(model, pair.retain).mean() - self.limit
            value = self.forget_weight * flat + multiplier * excess
            if moving:
                multiplier = dual_step(multiplier, float(excess.detach()), self.multiplier_rate)
            return value

        return self.descend(model, view, loss, steps, n=len(forget), seed=seed)
