"""Relearning: fine-tuning the unlearned model on a part of the forget set, judged on the rest.

Retraining on a subset is Shengyuan Hu, Yiwei Fu, Zhiwei Steven Wu, Virginia Smith, "Unlearning or obfuscating? Jogging the memory of
unlearned LLMs via benign relearning", ICLR 2025, arXiv:2406.13356; judging on other facts than those given back is Aghyad Deeb, Fabien
Roger, "Do unlearning methods remove information from language model weights?", arXiv:2410.08827 (RTT). What comes back of rows that
the attacker does not hold was hidden, not gone, as far as it exceeds what the same attack teaches an oracle.

Deviations: every model gets the same number of steps, in the same order of rows, with a fresh optimizer; the default rate is that of
the original's training, where the papers search a grid (give the suite one attack per rate); weights are trained whole, not by LoRA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from torch import Tensor, nn

from unlearnbench.api import Attack, AttackView, Batch, Stage, Threat, UserError
from unlearnbench.finetuning import endless
from unlearnbench.training import fit, make_optimizer


def rising(steps: tuple[int, ...]) -> tuple[int, ...]:
    """The points of a curve, checked.

    Raises:
        ValueError: they do not begin with 0 or do not rise.

    >>> rising((0, 4, 16))
    (0, 4, 16)
    """
    if not steps or steps[0] != 0 or any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"steps are {list(steps)}; allowed: rising whole numbers that begin with 0")
    return steps


class Relearning(Attack):
    """Fine-tune the model as deployed, inserted modules included, on the attacker's part of the forget set."""

    paper = "arXiv:2410.08827"
    level = Threat.T4
    tasks = ("generate", "classify", "diffuse")
    needs = frozenset({"forget_part"})

    steps: Annotated[tuple[int, ...], AfterValidator(rising)] = (0, 4, 16, 64)
    """Steps of the optimizer after which the model is scored; the first is 0."""
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Learning rate, constant; by default the highest of the original's training. 0 is the control: nothing may change."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Rows of a step; the last of a pass may have fewer."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """frozen: batch-norm uses the running statistics it came with and keeps them; train: it moves them."""

    def stages(self, model: nn.Module, view: AttackView, *, seed: int) -> Iterator[Stage]:
        """See `Attack.stages`: one stage for each of `steps`; the order of the rows depends on the seed alone.

        Raises:
            UserError: the attacker's part is empty, or `steps` do not rise from 0.
            DivergedError: a loss or a weight is not finite.
        """
        try:
            rising(self.steps)
        except ValueError as error:
            raise UserError(f"relearning: {error}") from error
        rows = view.forget_part.train
        if not len(rows):
            raise UserError("relearning: the attacker's part of the forget set has no rows")
        recipe = replace(
            view.recipe,
            lr=view.recipe.lr if self.lr is None else self.lr,
            epochs=1,
            batch_size=self.batch_size,
            accumulate=1,
            schedule="constant",
            warmup=0.0,
            batch_norm=self.batch_norm,
            dropout=False,
        )
        # All weights, those of gates and adapters too, whatever a method left frozen: an attacker holds the file.
        weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
        optimizer = make_optimizer(weights, recipe)
        order = endless(len(rows), self.batch_size, seed=seed)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return view.loss(model, batch).mean()

        def stage(done: int) -> Stage:
            return Stage(step=done, model=model.eval(), final=done == self.steps[-1])

        yield stage(0)
        for before, done in pairwise(self.steps):

            def coming(epoch: int, number: int = done - before) -> Iterator[Batch]:
                return (rows.batch(index) for index in islice(order, number))

            # The optimizer goes on from stage to stage: scoring in between must not change the attack.
            total = done - before
            fit(model, loss, coming, recipe, seed=seed, total_steps=total, parameters=weights, optimizer=optimizer, label="relearning")
            yield stage(done)
