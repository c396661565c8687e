"""Activation patching: what the original still reads out of the unlearned model's states, layer by layer.

Unlearning Depth Score. 2026, arXiv:2605.24614. The model's states at a layer replace the original's, which goes on from there: where its
answer stays likely, that layer's states still hold what the output no longer shows. The same attack on an oracle says how much of it
the original makes up from states that never held it, most of all at early layers, through which every text passes.

The curve goes from the model as deployed (step 0) over its last block's output read by the original's norm and head (step 1) to its first
block's output read by all later blocks of the original (the last step); with L blocks, step s reads block L - s. `depth_score` (core:
`mechanisms.patching`) makes one number per example of these curves: of the model's and the oracle's, with the original's own as what
there is to lose, since the original patched into itself stays the original.

Deviations. The states of all positions are exchanged, the prompt's too, where the released code exchanges those that predict the scored
span alone and lets the original's own prompt states speak beside them: what is read here comes from the model alone. The last block
gives its own output, not one that was normalised already. Whole answers are scored, by the suite's metrics, not annotated spans.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from unlearnbench.api import Attack, AttackView, NotMeasurable, Stage, Threat
from unlearnbench.layers import blocks
from unlearnbench.mechanisms.patching import handed_over


class ActivationPatching(Attack):
    """Let the original go on from the model's states, at ever earlier layers."""

    paper = "arXiv:2605.24614"
    level = Threat.T3
    needs = frozenset({"original"})

    def stages(self, model: nn.Module, view: AttackView, *, seed: int) -> Iterator[Stage]:
        """See `Attack.stages`: the model as deployed, then one stage for each block; nothing is random.

        Raises:
            NotMeasurable: the model has no list of blocks.
            UserError: the original has another architecture.
        """
        try:
            blocks(model)
        except ValueError as error:
            raise NotMeasurable(str(error)) from error
        yield Stage(step=0, model=model.eval())
        original = view.original.to(next(model.parameters()).device).eval()
        for step, layer in enumerate(handed_over(model, original), start=1):
            yield Stage(step=step, model=model, final=layer == 0)
