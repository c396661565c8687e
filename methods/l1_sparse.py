"""Model sparsity can simplify machine unlearning: fine-tuning on the retain set under a penalty of the weights' L1 norm.

Jinghan Jia, Jiancheng Liu, Parikshit Ram, Yuguang Yao, Gaowen Liu, Yang Liu, Pranay Sharma, Sijia Liu. NeurIPS 2023, arXiv:2304.04934.
The method of its section on sparsity-aware unlearning: the penalty's weight falls linearly over the epochs. As in the authors' code it
covers all weights, biases and norms included, and has not yet reached 0 in the last penalised epoch. Defaults: 10 epochs at 0.01 with the
code's batch 256; gamma 1e-4, the upper end of the range that the authors search.

Deviations: the rate is constant; optimizer and weight decay are those of the original's training; batch-norm is frozen by default.
Pruning before unlearning, the paper's other proposal, is not this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.finetuning import TrainedMethod
from unlearnbench.training import batches


class Penalised(NamedTuple):
    """Retain rows of one step, their positions int64 [B], and the penalty's weight then."""

    retain: Batch
    rows: Tensor
    gamma: float


def penalty_weight(gamma: float, epoch: int, penalised: int) -> float:
    """The weight gamma (1 - epoch / penalised), and 0 from there on.

    Args:
        gamma: weight in epoch 0.
        epoch: from 0.
        penalised: epochs with a penalty.

    >>> [penalty_weight(1.0, epoch, 4) for epoch in range(6)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    return gamma * (1 - epoch / penalised) if epoch < penalised else 0.0


def l1_norm(model: nn.Module) -> Tensor:
    """Sum of the magnitudes of all weights that have ``requires_grad``, a scalar."""
    return torch.stack([weight.abs().sum() for weight in model.parameters() if weight.requires_grad]).sum()


class L1Sparse(TrainedMethod):
    """Minimise L(retain) + gamma_t |weights|_1. Never reads forget rows; epochs pass over the retain rows."""

    paper = "arXiv:2304.04934"
    modality = ("vision",)

    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    """Weight of the L1 norm in the first epoch; 0 is fine-tuning."""
    plain_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs without a penalty at the end; over the others its weight falls linearly."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    """Learning rate, constant."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Rows of a batch."""
    lora_rank: None = None
    """The penalty is one of all weights: no adapter."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        retain = view.retain.train

        def steps(epoch: int) -> Iterator[Penalised]:
            gamma = penalty_weight(self.gamma, epoch, self.epochs - self.plain_epochs)
            for index in batches(len(retain), self.batch_size, seed=seed, epoch=epoch):
                yield Penalised(retain.batch(index), index, gamma)

        def loss(model: nn.Module, step: Penalised) -> Tensor:
            kept = view.loss(model, step.retain).mean()
            return kept + step.gamma * l1_norm(model) if step.gamma else kept

        return self.minimise(model, view, loss, steps, n=len(retain), seed=seed)
