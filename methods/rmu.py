"""The WMDP benchmark: measuring and reducing malicious use with unlearning; RMU, representation misdirection for unlearning.

Nathaniel Li et al. ICML 2024, arXiv:2403.03218. At one layer, the hidden states of forget answers are drawn to one fixed random
direction, those of retain answers to where they were. Defaults are open-unlearning's for TOFU: coefficient 2, both weights 1, all weights
trained, lr 1e-5, 10 epochs, batch 32. The paper's own setting is `trained="down_proj"`, a larger coefficient (6.5 for a 7B model), a
larger retain weight (1200) and lr 5e-5 [recalled].

Deviations: the layer is given as a share of the depth, by default layer 7 of 32; the distance is a mean over each row's answer tokens and
then over rows, where open-unlearning multiplies the rows' mean sum with the mean of their inverse lengths; retain rows come in shuffled
passes; the rate is constant, without warm-up; optimizer and weight decay are those of the original's training.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView, UserError
from unlearnbench.causal import hidden_states
from unlearnbench.finetuning import Pair, TrainedMethod, paired
from unlearnbench.layers import blocks
from unlearnbench.losses import IGNORE_INDEX
from unlearnbench.mechanisms.representation import at_depth, control_vector, squared_distance


class RMU(TrainedMethod):
    """Minimise forget_weight * |h - c u|^2 on forget answers + retain_weight * |h - h_before|^2 on retain answers, at one layer."""

    paper = "arXiv:2403.03218"
    modality = ("language",)

    layer: Annotated[int, Field(ge=0)] | None = None
    """The block whose output is moved, counted from 0; by default that at 7/32 of the depth."""
    coefficient: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """Euclidean norm of the target; it must exceed that of usual hidden states to scramble them."""
    trained: Literal["all", "down_proj"] = "all"
    """all: every weight up to the layer; down_proj: the second MLP matrix of the layer and the two before it."""
    forget_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the distance to the target."""
    retain_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the distance to the activations before."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`.

        Raises:
            UserError: the model lacks the layer or the matrices, or `lora_rank` is set beside `trained="down_proj"`.
        """
        if self.lora_rank is not None and self.trained != "all":
            raise UserError(f"rmu: lora_rank {self.lora_rank} adapts all linear layers; allowed with it: trained='all'")
        layer = at_depth(7 / 32, len(blocks(model))) if self.layer is None else self.layer
        forget, retain = view.forget.train, view.retain.train
        reference = copy.deepcopy(model).eval().requires_grad_(False)
        embeddings: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
        target = control_vector(embeddings.shape[1], self.coefficient, seed=seed).to(embeddings)

        def loss(model: nn.Module, pair: Pair) -> Tensor:
            away = squared_distance(hidden_states(model, pair.forget, [layer])[layer], target, answers(pair.forget))
            before, now = (hidden_states(net, pair.retain, [layer])[layer] for net in (reference, model))
            kept = squared_distance(now, before, answers(pair.retain))
            return self.forget_weight * away.mean() + self.retain_weight * kept.mean()

        steps = paired(forget, retain, self.batch_size, seed=seed)
        if self.trained == "all":
            return self.descend(model, view, loss, steps, n=len(forget), seed=seed)
        return self.minimise(model, view, loss, steps, n=len(forget), seed=seed, parameters=down_projections(model, layer))


def answers(batch: Batch) -> Tensor:
    """Which positions hold answer tokens, bool [B, T]."""
    scored: Tensor = batch["labels"] != IGNORE_INDEX
    return scored


def down_projections(model: nn.Module, layer: int) -> list[nn.Parameter]:
    """The weights of `down_proj` in a block and the two before it, fewer where the model begins.

    Raises:
        UserError: the model has no such block, or the block no such weight.
    """
    found = blocks(model)
    if not layer < len(found):
        raise UserError(f"{type(model).__name__} has no block {layer}; its blocks are 0 to {len(found) - 1}")
    near = found[max(layer - 2, 0) : layer + 1]
    weights = [weight for _, block in near for name, weight in block.named_parameters() if name.endswith("down_proj.weight")]
    if not weights:
        raise UserError(f"rmu: {type(model).__name__} has no down_proj in its blocks; allowed: trained='all'")
    return weights
