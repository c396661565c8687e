"""CE-U: cross entropy unlearning.

Bo Yang. 2025, arXiv:2503.01224. The model learns its own prediction with the answer token left out: a target that follows the model, so
that the gradient pushes the answer token down by its own probability and fades with it. Never reads retain rows. Defaults as in
open-unlearning: the first answer token is skipped, lr 1e-5, 10 epochs, batch 32.

Deviations: the loss is a mean of rows, not of the batch's tokens; an answer that has no token left after the skipped ones adds 0 to it.
The rate is constant, without warm-up; optimizer and weight decay are those of the original's training.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, Data, MethodView, UserError
from unlearnbench.causal import answer_logits
from unlearnbench.finetuning import TrainedMethod, shuffled
from unlearnbench.losses import answer_lengths
from unlearnbench.unlearning_losses import ceu, skip_first


class CEU(TrainedMethod):
    """Minimise CE-U of the forget rows. Epochs pass over the forget rows."""

    paper = "arXiv:2503.01224"
    modality = ("language",)

    skip: Annotated[int, Field(ge=0)] = 1
    """Answer tokens at the start of each answer that are left alone."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`.

        Raises:
            UserError: no forget answer is longer than `skip` tokens.
        """
        rows = view.forget.train
        longest = self._longest(rows)
        if longest <= self.skip:
            raise UserError(f"ceu: skip is {self.skip}, which leaves no token of any forget answer; allowed: below {longest}")

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            logits, labels = answer_logits(model, batch)
            labels = skip_first(labels, self.skip)
            return (ceu(logits, labels).sum(1) / answer_lengths(labels).clamp(min=1)).mean()

        return self.descend(model, view, loss, shuffled(rows, self.batch_size, seed=seed), n=len(rows), seed=seed)

    def _longest(self, rows: Data) -> int:
        """Tokens of the longest answer."""
        parts = torch.split(torch.arange(len(rows)), self.batch_size)
        return max(int(answer_lengths(rows.batch(index)["labels"]).max()) for index in parts)
