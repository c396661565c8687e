"""Amnesiac machine learning: training on wrong labels for the forget set, together with the retain set.

Laura Graves, Vineel Nagisetty, Vijay Ganesh. AAAI 2021, arXiv:2010.10981. Each forget row gets one wrong label, drawn once, uniformly
from the other classes; then the model is trained on forget and retain rows mixed. Defaults: 3 epochs at 1e-4, as in the SSD
repository's "amnesiac" baseline.

With `order` sequential and `redraw` it is the random labelling that "SalUn" (arXiv:2310.12508) compares with, and SalUn with a mask
that lets all weights move; that paper's released code draws labels with `exclude_true` off.

Deviations: the rate is constant; the optimizer and weight decay are those of the original's training (there Adam); batch-norm is
frozen by default. The paper's other method, undoing recorded updates of sensitive batches, is not this one.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.mechanisms.relabelling import Relabelling


class RandomLabels(Relabelling):
    """Train on the forget rows with wrong labels and on the retain rows. Epochs pass over both."""

    paper = "arXiv:2010.10981"

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Learning rate, constant."""
    epochs: Annotated[int, Field(ge=1)] = 3
    """Passes over forget and retain rows."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        steps, n = self.schedule(view, seed=seed)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return view.loss(model, batch).mean()

        return self.descend(model, view, loss, steps, n=n, seed=seed)
