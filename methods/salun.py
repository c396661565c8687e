"""SalUn: empowering machine unlearning via gradient-based weight saliency in both image classification and generation.

Chongyu Fan, Jiancheng Liu, Yihua Zhang, Eric Wong, Dennis Wei, Sijia Liu. ICLR 2024, arXiv:2310.12508. The classification half: a mask of
the weights on which the forget loss depends most, ranked over all weights together, biases and norms included; then random labelling
that moves the masked weights alone. All other weights stay as they were to the bit, under momentum and weight decay too (code released
before February 2026 masked gradients alone, which does not hold them). Defaults: half of the weights, 10 epochs at 0.013, batch 256, as
in the authors' README for 10 % of CIFAR-10; in each epoch first the forget rows, under labels drawn anew, then the retain rows, as in
the authors' code for CIFAR-10.

Deviations: a row's own label is never drawn, as in the paper's formula, where the code may draw it (`exclude_true`); the two terms of the
paper's sum are taken in turn, as in the code, or in mixed batches (`order`), hence without the weight alpha, which is 1 there; the
saliency sums the gradients of rows, not of batches' means, so that it does not depend on the batch size (equal batches give the same
mask); the rate is constant; optimizer and weight decay are those of the original's training; batch-norm is frozen by default, where the
code trains with moving statistics, which no mask holds. The variant SalUn-soft is left out.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.mechanisms.relabelling import Relabelling
from unlearnbench.mechanisms.saliency import masked, saliency, top_share
from unlearnbench.training import make_optimizer


class SalUn(Relabelling):
    """Random labelling of the weights that are salient for the forget set. Epochs pass over forget and retain rows."""

    paper = "arXiv:2310.12508"

    mask_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of all weights that may move; 1 is random labelling."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.013
    """Learning rate, constant."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Rows of a batch."""
    order: Literal["joint", "sequential"] = "sequential"
    """sequential: in each epoch first the forget rows, then the retain rows; joint: mixed."""
    redraw: bool = True
    """Draw the forget rows' labels anew for each epoch; otherwise once."""
    lora_rank: None = None
    """The mask is one of all weights: no adapter."""

    def masks(self, model: nn.Module, view: MethodView) -> dict[str, Tensor]:
        """Name -> bool, where the weight may move: the largest magnitudes of the forget loss's gradient."""
        rows = view.forget.train

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return -view.loss(model, batch).sum()

        batches = (rows.batch(index) for index in torch.split(torch.arange(len(rows)), self.batch_size))
        return top_share(saliency(model, loss, batches), self.mask_ratio)

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        masks = self.masks(model, view)
        parameters = {name: weight for name, weight in model.named_parameters() if name in masks}
        optimizer = make_optimizer(list(parameters.values()), self.recipe(view))
        steps, n = self.schedule(view, seed=seed)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return view.loss(model, batch).mean()

        with masked(parameters, masks, optimizer) as restore:
            return self.minimise(model, view, loss, steps, n=n, seed=seed, optimizer=optimizer, on_step=restore)
