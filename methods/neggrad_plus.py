"""NegGrad+: descent on the retain set and ascent on the forget set in one loss.

Meghdad Kurmanji, Peter Triantafillou, Jamie Hayes, Eleni Triantafillou. Towards unbounded machine unlearning. NeurIPS 2023,
arXiv:2302.09880 (there a baseline, after Golatkar et al., arXiv:1911.04933). Each batch of retain rows comes with the next batch of
forget rows, which start again as often as needed. Defaults as in the authors' code: alpha 0.95, 10 epochs at 0.01.

Deviations: the forget rows run on over the epochs, where the code begins each epoch with their first batch; the rate is constant;
optimizer and weight decay are those of the original's training; batch-norm is frozen by default. With moving statistics a step runs both
batches through the net one after the other, as the code does, so that the running statistics see forget rows even where alpha is 1. The
pull towards the original's weights that one implementation adds is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import MethodView
from unlearnbench.finetuning import Pair, TrainedMethod, endless
from unlearnbench.training import batches


class NegGradPlus(TrainedMethod):
    """Minimise alpha * L(retain) - (1 - alpha) * L(forget). Epochs pass over the retain rows."""

    paper = "arXiv:2302.09880"
    modality = ("vision",)

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Weight of the retain rows; 1 is fine-tuning on them."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    """Learning rate, constant."""
    forget_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Forget rows of a step; by default as many as retain rows."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        forget, retain = view.forget.train, view.retain.train
        forget_size = self.forget_batch_size or self.batch_size
        per_epoch = ceil(len(retain) / self.batch_size)

        def steps(epoch: int) -> Iterator[Pair]:
            # A seed of their own, as in `finetuning.paired`: sets of equal size do not meet in the same pairs in each epoch.
            others = endless(len(forget), forget_size, seed=seed + 2**32, skip=epoch * per_epoch)
            for rows, index in zip(batches(len(retain), self.batch_size, seed=seed, epoch=epoch), others, strict=False):
                yield Pair(forget.batch(index), retain.batch(rows), rows)

        def loss(model: nn.Module, pair: Pair) -> Tensor:
            kept = view.loss(model, pair.retain).mean()
            return self.alpha * kept - (1 - self.alpha) * view.loss(model, pair.forget).mean()

        return self.descend(model, view, loss, steps, n=len(retain), seed=seed)
