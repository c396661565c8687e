"""Fast machine unlearning without retraining through selective synaptic dampening.

Jack Foster, Stefan Schoepf, Alexandra Brintrup. AAAI 2024, arXiv:2308.07707. Weights whose importance for the forget rows is more than
alpha times that for all rows are scaled down in proportion; nothing is trained. Defaults as published for ResNets: alpha 10, lambda 1,
importances over batches of 64. The authors call alpha sensitive: forgetting random rows wants more (25 to 50), small nets less.

Deviations: none in the rule. As in the authors' code, and unlike the paper's formula, importances are mean squares of gradients of batch
means, so that they depend on the batch size; 1 is the formula. Rows are shuffled before they are cut into batches.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, Data, Method, MethodView
from unlearnbench.finetuning import Joined, shuffled
from unlearnbench.mechanisms.importance import Weights, dampened, squared_gradient


class SSD(Method):
    """Dampen the weights that matter to the forget rows more than `alpha` times as much as to all rows."""

    paper = "arXiv:2308.07707"
    modality = ("vision",)

    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """Weights are selected where importance for the forget rows > alpha * importance for all rows."""
    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """The paper's lambda: a selected weight is multiplied by min(strength * importance for all / for the forget rows, 1)."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows whose mean gradient is squared; 1 is the diagonal of the empirical Fisher matrix."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        forget = view.forget.train

        def importance(rows: Data) -> Weights:
            return squared_gradient(model, loss, shuffled(rows, self.batch_size, seed=seed)(0))

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return view.loss(model, batch).mean()

        ours, overall = importance(forget), importance(Joined(forget, view.retain.train))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in ours:
                    weight.copy_(dampened(weight, ours[name], overall[name], alpha=self.alpha, strength=self.strength))
        return model
