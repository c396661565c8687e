"""Improving alignment and robustness with circuit breakers: representation rerouting (RR).

Andy Zou, Long Phan, Justin Wang, Derek Duenas, Maxwell Lin, Maksym Andriushchenko, Rowan Wang, Zico Kolter, Matt Fredrikson, Dan
Hendrycks. NeurIPS 2024, arXiv:2406.04313. An adapter turns the hidden states of forget answers to a right angle with what they were, and
holds those of retain rows where they were; the weight moves from the first term to the second. Defaults are the authors' [recalled]: LoRA
of rank 16 on the layers up to the last target, targets at layers 10 and 20 of 32, coefficient 10, lr 1e-4, 150 steps of 16 rows (here 6
epochs, which is that for 400 rows), the share of the retain term rising from 0 to a half.

Deviations: the cosine has no slope at the start, where the adapter does nothing, and the authors leave the first step to rounding and
Adam; here the adapter's second factor starts with small seeded noise. Layers are given as shares of the depth. The forget term counts the
tokens of answers alone, since questions share their form with those to keep; both terms are means over each row. No dropout in the
adapter; the rate is constant; optimizer and weight decay are those of the original's training.

The adapter is merged in the end, as in the authors' released models. With `merge` off it is left on, can be stripped, and goes on being
trained by the next request of a sequence, its reference still the model below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.adapters import attach, merged
from unlearnbench.api import Batch, MethodView
from unlearnbench.causal import hidden_states
from unlearnbench.finetuning import TrainedMethod, paired
from unlearnbench.layers import blocks
from unlearnbench.losses import IGNORE_INDEX
from unlearnbench.mechanisms.representation import at_depth, cosine_hinge, drift

Share = Annotated[float, Field(ge=0, le=1)]
NOISE = 1e-3
"""Standard deviation of the adapter's second factor at the start."""


class _Step(NamedTuple):
    """Forget and retain rows of one batch, and the share of the retain term by then; `rows` are positions of the forget rows [B]."""

    forget: Batch
    retain: Batch
    rows: Tensor
    share: float


class RepresentationRerouting(TrainedMethod):
    """Minimise coefficient * ((1 - p) max(0, cos(h, h_before)) on forget answers + p |h - h_before| on retain rows), p rising."""

    paper = "arXiv:2406.04313"
    modality = ("language",)

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Learning rate, constant."""
    epochs: Annotated[int, Field(ge=1)] = 6
    """Passes over the forget rows."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows of a batch, of each set that a step uses."""
    lora_rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the adapter; its alpha is the same."""
    depths: Annotated[tuple[Share, ...], Field(min_length=1)] = (10 / 32, 20 / 32)
    """Where the forget states are turned, as shares of the depth."""
    coefficient: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Weight of both terms together."""
    final_share: Share = 0.5
    """Share of the retain term to which p rises, linearly from 0."""
    merge: bool = True
    """Add the adapter to the weights in the end."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        forget = view.forget.train
        every = range(len(blocks(model)))
        targets = sorted({at_depth(depth, len(every)) for depth in self.depths})
        adapted: Any = model
        if not hasattr(model, "peft_config"):
            among = range(targets[-1] + 1)
            adapted = attach(model, rank=self.lora_rank, alpha=self.lora_rank, seed=seed, among=among, noise=NOISE)

        def loss(model: Any, step: _Step) -> Tensor:
            turned, held = terms(model, step.forget, step.retain, targets, every)
            return self.coefficient * ((1 - step.share) * turned + step.share * held)

        pairs = paired(forget, view.retain.train, self.batch_size, seed=seed)
        per_epoch = ceil(len(forget) / self.batch_size)

        def steps(epoch: int) -> Iterator[_Step]:
            for number, pair in enumerate(pairs(epoch), start=epoch * per_epoch):
                yield _Step(pair.forget, pair.retain, pair.rows, self.final_share * number / (self.epochs * per_epoch))

        self.minimise(adapted, view, loss, steps, n=len(forget), seed=seed)
        return merged(adapted) if self.merge else adapted


def terms(adapted: Any, forget: Batch, retain: Batch, targets: list[int], every: range) -> tuple[Tensor, Tensor]:
    """The forget and the retain term of an adapted model against itself with the adapter switched off.

    Args:
        adapted: a peft model.
        forget: its answer tokens count.
        retain: all its tokens count.
        targets: blocks whose output is turned.
        every: blocks whose output is held.

    Returns:
        Two scalars: the mean cosine hinge, at most 1, and the mean distance.
    """
    with torch.no_grad(), adapted.disable_adapter():
        away, kept = hidden_states(adapted, forget, targets), hidden_states(adapted, retain, every)
    now, then = hidden_states(adapted, forget, targets), hidden_states(adapted, retain, every)
    answers, tokens = forget["labels"] != IGNORE_INDEX, retain["attention_mask"].bool()
    turned = torch.stack([cosine_hinge(now[layer], away[layer], answers) for layer in targets]).mean()
    held = torch.stack([drift(then[layer], kept[layer], tokens) for layer in every]).mean()
    return turned, held
