"""Gradient ascent with weights on tokens: WGA and SatImp.

WGA: Rethinking LLM unlearning objectives: a gradient perspective and go beyond. Qizhou Wang, Jin Peng Zhou, Zhanke Zhou, Saebyeol Shin,
Bo Han, Kilian Q. Weinberger. ICLR 2025, arXiv:2502.19301. SatImp: Exploring criteria of loss reweighting to enhance LLM unlearning.
Puning Yang, Qizhou Wang, Zhuo Huang, Tongliang Liu, Chengqi Zhang, Bo Han. ICML 2025, arXiv:2505.11953. Defaults as in open-unlearning:
lr 1e-5, 5 epochs, batch 32; WGA beta 1, both weights 1; SatImp beta1 5, beta2 1, forget weight 0.1, retain weight 1 (its configuration;
its class and its documentation have the two weights the other way round).

Deviations: losses are means of rows, not of the batch's tokens. Retain rows come in shuffled passes, where open-unlearning draws a random
one for each forget row; the rate is constant, without warm-up; optimizer and weight decay are those of the original's training.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.causal import answer_logits
from unlearnbench.finetuning import RetainedMethod
from unlearnbench.losses import answer_mean, token_nll
from unlearnbench.unlearning_losses import satimp, wga


class _WeightedAscent(RetainedMethod):
    """Minimise forget_weight * weighted ascent(forget) + retain_weight * L(retain)."""

    modality = ("language",)

    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the forget rows."""

    @abstractmethod
    def ascent(self, nll: Tensor) -> Tensor:
        """The loss of each token, out of its negative log-likelihood."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""

        def weighted(model: nn.Module, batch: Batch) -> Tensor:
            logits, labels = answer_logits(model, batch)
            return answer_mean(self.ascent(token_nll(logits, labels)), labels)

        return self.balance(model, view, weighted, seed=seed)


class WGA(_WeightedAscent):
    """Weighted gradient ascent: tokens count by their probability to the power beta. Epochs pass over the forget rows."""

    paper = "arXiv:2502.19301"

    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """0 is gradient difference; more spares tokens that are unlikely already."""

    def ascent(self, nll: Tensor) -> Tensor:
        """See `unlearning_losses.wga`."""
        return wga(nll, self.beta)


class SatImp(_WeightedAscent):
    """Saturation and importance: tokens count by p^beta1 (1 - p)^beta2. Epochs pass over the forget rows."""

    paper = "arXiv:2505.11953"

    beta1: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """Saturation: spares tokens that are unlikely already."""
    beta2: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Importance: spares tokens that follow from their context alone."""
    forget_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight of the forget term."""

    def ascent(self, nll: Tensor) -> Tensor:
        """See `unlearning_losses.satimp`."""
        return satimp(nll, self.beta1, self.beta2)
