"""Pseudo-labels: training the forget set on what the original would answer if the forgotten classes did not exist.

A baseline of "Are we truly forgetting? A critical re-examination of machine unlearning evaluation protocols" (Yongwoo Kim, Sungmin Cha,
Donghyun Kim, arXiv:2503.06991). Each forget row's target is the retained class of the largest logit of the original; then the model is
trained on the forget rows alone. No rate is published with it: 10 epochs at 0.01, like fine-tuning.

Deviations: the retained classes are those with retain rows, where the code is given the list of the others; targets are taken once, of
the rows without augmentation, where the code asks the original in each step; the rate is constant; optimizer and weight decay are those
of the original's training; batch-norm is frozen by default, where the code's moves.
"""

from __future__ import annotations

from typing import Annotated

import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, Data, MethodView, Scenario
from unlearnbench.finetuning import TrainedMethod, shuffled
from unlearnbench.layers import evaluating
from unlearnbench.mechanisms.relabelling import Relabelled, labels_of


def retained_answers(logits: Tensor, retained: Tensor) -> Tensor:
    """The class of each row's largest logit among some classes.

    Args:
        logits: float [n, K].
        retained: those classes, int64 [k], at least one.

    Returns:
        int64 [n].

    >>> retained_answers(torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 9.0]]), torch.tensor([1, 2]))
    tensor([2, 2])
    """
    return retained[logits[:, retained].argmax(1)]


class PseudoLabel(TrainedMethod):
    """Train on the forget rows under the original's best retained class. Reads of the retain rows their labels alone."""

    paper = "arXiv:2503.06991"
    modality = ("vision",)

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    """Learning rate, constant."""

    def supports(self, scenario: Scenario) -> str | None:
        """Requests for classes only: elsewhere no class is gone, and most targets would be the true labels."""
        kind = scenario.asked().kind
        return super().supports(scenario) or (None if kind == "class" else f"serves requests for classes, not for {kind}")

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`.

        Raises:
            ValueError: a class of the forget rows is among the retained ones.
        """
        forget = view.forget.train
        retained, gone = torch.unique(labels_of(view.retain.train)), torch.unique(labels_of(forget))
        if torch.isin(gone, retained).any():
            raise ValueError(f"classes {gone[torch.isin(gone, retained)].tolist()} are to be forgotten and have retain rows")
        best = retained_answers(self._logits(model, view.forget.eval), retained).tolist()
        named = dict(zip(view.forget.eval.ids, best, strict=True))
        targets = torch.tensor([named[row] for row in forget.ids])

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return view.loss(model, batch).mean()

        steps = shuffled(Relabelled(forget, targets), self.batch_size, seed=seed)
        return self.descend(model, view, loss, steps, n=len(forget), seed=seed)

    @torch.no_grad()
    def _logits(self, model: nn.Module, rows: Data) -> Tensor:
        """Logits of all rows [n, K], on the CPU."""
        device = next(model.parameters()).device
        with evaluating(model):
            parts = [rows.batch(index)["images"] for index in torch.split(torch.arange(len(rows)), self.batch_size)]
            return torch.cat([model(send_to_device(part, device)).cpu() for part in parts])
