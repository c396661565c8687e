"""Activation patching: what the original still reads out of the unlearned model's states, layer by layer.

Unlearning Depth Score. 2026, arXiv:2605.24614. The model's states at a layer replace the original's, which goes on from there: where its
answer stays likely, that layer's states still hold what the output no longer shows. The same attack on an oracle says how much of it
the original makes up from states that never held it, most of all at early layers, through which every text passes.

The curve goes from the model as deployed (step 0) over its last block's output read by the original's norm and head (step 1) to its first
block's output read by all later blocks of the original (the last step); with L blocks, step s reads block L - s. `depth_score` (core:
`mechanisms.patching`) makes one number per example of these curves: of the model's and the oracle's, with the original's own as what
there is to lose, since the original patched into itself stays the original.

Two models trained from other initial weights have no coordinates in common: patched with the states of another training that knows
everything, the original says nothing (on a tiny Llama of this project a mean log-probability of -5.2 instead of -0.2), and the depth score
would call all of it erased. So the attack looks at retained rows first, which every model knows: where the original loses them too, its
silence on the forget set is no finding, and the cells are N/A. That is the case for oracles which were trained from scratch.

Deviations. That control, which the paper's fine-tunings of one pretrained model do not need. The states of all positions are exchanged,
the prompt's too, where the released code exchanges those that predict the scored span alone and lets the original's own prompt states
speak beside them: what is read here comes from the model alone. The last block gives its own output, not one that was normalised already.
Whole answers are scored, by the suite's metrics, not annotated spans.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from unlearnbench.api import Attack, AttackView, Batch, NotMeasurable, Stage, Threat, UserError
from unlearnbench.layers import blocks, evaluating
from unlearnbench.mechanisms.patching import handed_over


class ActivationPatching(Attack):
    """Let the original go on from the model's states, at ever earlier layers."""

    paper = "arXiv:2605.24614"
    level = Threat.T3
    needs = frozenset({"original", "retain"})

    control_rows: Annotated[int, Field(ge=1)] = 64
    """Retained rows on which the original must be able to read the model; all there are, if they are fewer."""
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """What these rows may lose by patching, at any layer, in nats (for language per token), over the model's own loss."""

    def stages(self, model: nn.Module, view: AttackView, *, seed: int) -> Iterator[Stage]:
        """See `Attack.stages`: the model as deployed, then one stage for each block; nothing is random.

        Raises:
            NotMeasurable: the model has no list of blocks, or the original cannot read its states on retained rows either.
            UserError: the original has another architecture, or there are no retained rows.
        """
        try:
            blocks(model)
        except ValueError as error:
            raise NotMeasurable(str(error)) from error
        original = view.original.to(next(model.parameters()).device).eval()
        self._control(copy.deepcopy(model), copy.deepcopy(original), view)
        yield Stage(step=0, model=model.eval())
        for step, layer in enumerate(handed_over(model, original), start=1):
            yield Stage(step=step, model=model, final=layer == 0)

    def _control(self, model: nn.Module, original: nn.Module, view: AttackView) -> None:
        """Raise unless retained rows survive the patching at every layer; uses both models up."""
        rows = view.retain.eval
        if not len(rows):
            raise UserError("activation_patching: there are no retained rows to tell whether the original can read the model's states")
        batch = on(rows.batch(range(min(self.control_rows, len(rows)))), next(model.parameters()).device)
        with torch.no_grad(), evaluating(model):
            own = float(view.loss(model, batch).mean())
            for layer in handed_over(model, original):
                lost = float(view.loss(model, batch).mean()) - own
                if not lost <= self.tolerance:
                    raise NotMeasurable(
                        f"the original cannot read this model's states at block {layer}: retained rows lose {lost:.2f} nats by it, "
                        f"more than {self.tolerance:g}; the two have no coordinates in common there"
                    )


def on(batch: Batch, device: torch.device) -> Batch:
    """A batch whose tensors are on the device."""
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
