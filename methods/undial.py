"""UNDIAL: self-distillation with adjusted logits for robust unlearning in large language models.

Yijiang River Dong, Hongzhou Lin, Mikhail Belkin, Ramon Huerta, Ivan Vulić. NAACL 2025, arXiv:2402.10052. The model learns its own former
prediction with the answer token's logit lowered by beta; the former model is held as a frozen copy. Defaults as in open-unlearning:
beta 10, no retain term, lr 1e-4, 10 epochs, batch 32.

Deviations: the loss is a mean over each row's answer tokens; open-unlearning averages over all positions and, where nothing is scored,
lowers the logit of an unrelated token (index -100 from the vocabulary's end). All weights are trained, as in open-unlearning; the paper
trains LoRA of rank 8 (`lora_rank: 8`). The rate is constant, without warm-up; optimizer and weight decay are those of the original's
training. With a retain weight, retain rows come in shuffled passes.
"""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.causal import answer_logits
from unlearnbench.finetuning import RetainedMethod
from unlearnbench.losses import answer_mean
from unlearnbench.unlearning_losses import undial


class UNDIAL(RetainedMethod):
    """Minimise forget_weight * UNDIAL(forget) + retain_weight * L(retain)."""

    paper = "arXiv:2402.10052"
    modality = ("language",)

    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """How far the target lowers the logit of each answer token; 0 holds the model where it is."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Learning rate, constant."""
    retain_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of a retain term, which the paper does without; at 0 retain rows are not read."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        reference = copy.deepcopy(model).requires_grad_(False)

        def distilled(model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                known, _ = answer_logits(reference, batch)
            logits, labels = answer_logits(model, batch)
            return answer_mean(undial(known, logits, labels, self.beta), labels)

        return self.balance(model, view, distilled, seed=seed)
