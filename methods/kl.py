"""TOFU: a task of fictitious unlearning for LLMs; its baseline KL minimisation: ascent on the forget set, the rest held by KL.

Pratyush Maini, Zhili Feng, Avi Schwarzschild, Zachary C. Lipton, J. Zico Kolter. COLM 2024, arXiv:2401.06121. The retain term is the
divergence from the model as it came in, which is held as a frozen copy. Defaults as in open-unlearning: both weights 1, lr 1e-5, 10
epochs, batch 32.

Deviations: the divergence is taken at answer tokens and averaged over each row, where open-unlearning averages over all positions,
prompts and padding included; the ascent too is a mean of rows, not of the batch's tokens. Retain rows come in shuffled passes, where
open-unlearning draws a random one for each forget row; the rate is constant, without warm-up; optimizer and weight decay are those of
the original's training.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.causal import answer_logits
from unlearnbench.finetuning import RetainedMethod
from unlearnbench.losses import answer_mean
from unlearnbench.unlearning_losses import kl


class KLMinimization(RetainedMethod):
    """Minimise retain_weight * KL(reference || model) on retain rows - forget_weight * L(forget)."""

    paper = "arXiv:2401.06121"
    modality = ("language",)

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        reference = copy.deepcopy(model).requires_grad_(False)

        def ascent(model: nn.Module, batch: Batch) -> Tensor:
            return -view.loss(model, batch)

        def held(model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                known, _ = answer_logits(reference, batch)
            logits, labels = answer_logits(model, batch)
            return answer_mean(kl(known, logits, labels), labels)

        return self.balance(model, view, ascent, held, seed=seed)
