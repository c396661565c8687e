"""Eternal sunshine of the spotless net: fine-tuning on the retain set, the baseline that hopes for catastrophic forgetting.

Aditya Golatkar, Alessandro Achille, Stefano Soatto. CVPR 2020, arXiv:1911.04933 (there a baseline).

Deviations: the rate is constant; optimizer and weight decay are those of the original's training; batch-norm is frozen by default. The
default rate is that of the language baselines; published vision runs use 10 epochs at 0.01 to 0.04.
"""

from __future__ import annotations

from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.finetuning import TrainedMethod, shuffled


class Finetune(TrainedMethod):
    """Minimise the loss of the retain rows. Never reads forget rows; epochs pass over the retain rows."""

    paper = "arXiv:1911.04933"
    tasks = ("generate", "classify", "diffuse")

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        rows = view.retain.train

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return view.loss(model, batch).mean()

        return self.descend(model, view, loss, shuffled(rows, self.batch_size, seed=seed), n=len(rows), seed=seed)
