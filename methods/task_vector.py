"""Editing models with task arithmetic: unlearning by negation of a task vector.

Gabriel Ilharco, Marco Tulio Ribeiro, Mitchell Wortsman, Suchin Gururangan, Ludwig Schmidt, Hannaneh Hajishirzi, Ali Farhadi. ICLR 2023,
arXiv:2212.04089. A copy is fine-tuned on the forget set, and what it learned is subtracted, as in MUSE (Weijia Shi et al., ICLR 2025,
arXiv:2407.06460).

Deviations: the start is the model that already knows the forget set, not the pretrained one, as in MUSE; the scale is a setting, where
the paper chooses it on held-out data; the rate is constant, without warm-up; optimizer and weight decay are those of the original's
training. Buffers (batch-norm's statistics) stay the original's.
"""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.finetuning import TrainedMethod, shuffled


def negated(weight: Tensor, tuned: Tensor, scale: float) -> Tensor:
    """The weight on the other side: weight - scale (tuned - weight). With scale 1 applied twice it gives `tuned` back.

    >>> negated(torch.tensor([1.0]), torch.tensor([1.5]), 2.0)
    tensor([0.])
    """
    return weight - scale * (tuned - weight)


class TaskVector(TrainedMethod):
    """Fine-tune a copy on the forget rows, and subtract `scale` times what that changed. Epochs pass over the forget rows."""

    paper = "arXiv:2212.04089"

    scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """How often the task vector is subtracted; 0 leaves the model as it is."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        rows = view.forget.train

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return view.loss(model, batch).mean()

        steps = shuffled(rows, self.batch_size, seed=seed)
        tuned = dict(self.descend(copy.deepcopy(model), view, loss, steps, n=len(rows), seed=seed).named_parameters())
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(negated(weight, tuned[name], self.scale))
        return model
