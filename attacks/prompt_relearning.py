"""Relearning a dropped prompt: one fresh vector for a forgotten class, from k images of it, all else frozen.

No paper: it is the attack that the guarantee of "Pre-forgettable models: prompt learning as a native mechanism for unlearning"
(arXiv:2509.15230) asks for, whose head and low-rank updates still hold the class after its prompt is gone. The attacker holds the
artefact and k images; the same attack on a model that never saw the class says how much a vector can teach anew. It is of level T5
although nothing is stripped: what T5 strips from others is what this mechanism has already given away.

The whole bank stands in front while the vector is learned, as deployed. A class whose prompt is still there (an original's) goes on from
it. Numbers of images beyond what the attacker holds become one last point with all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from unlearnbench.api import Attack, AttackView, Batch, Data, NotMeasurable, Scenario, Stage, Threat, UserError
from unlearnbench.finetuning import endless
from unlearnbench.layers import insert
from unlearnbench.nets.prompts import ClassPrompts, prompt_bank, without_prompts
from unlearnbench.training import Recipe, fit


def rising(examples: tuple[int, ...]) -> tuple[int, ...]:
    """The points of a curve, checked.

    Raises:
        ValueError: there are none, the first is below 1, or they do not rise.

    >>> rising((1, 5))
    (1, 5)
    """
    if not examples or examples[0] < 1 or any(later <= earlier for earlier, later in pairwise(examples)):
        raise ValueError(f"examples are {list(examples)}; allowed: rising whole numbers from 1 on")
    return examples


class PromptRelearning(Attack):
    """Learn one prompt for the forgotten class from k of its images, all other weights frozen."""

    paper = "arXiv:2509.15230"
    modality = ("vision",)
    level = Threat.T5
    strips = False
    needs = frozenset({"forget_part"})

    examples: Annotated[tuple[int, ...], AfterValidator(rising)] = (1, 5, 10, 50)
    """Numbers of images of the class; each begins anew from the model as deployed."""
    steps: Annotated[int, Field(ge=1)] = 100
    """Steps of Adam for each."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Learning rate, constant; a prompt's entries are of size 1."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Images of a step; fewer where fewer are given."""

    def supports(self, scenario: Scenario) -> str | None:
        """Classes alone, of scenarios whose net is a vision transformer."""
        return super().supports(scenario) or without_prompts(scenario)

    def stages(self, model: nn.Module, view: AttackView, *, seed: int) -> Iterator[Stage]:
        """See `Attack.stages`: the model as deployed, then one stage for each of `examples`.

        Raises:
            NotMeasurable: the model has no prompts.
            UserError: `examples` do not rise from 1 on, or the attacker's part of the forget set is empty.
            DivergedError: a loss or a vector is not finite.
        """
        try:
            rising(self.examples)
        except ValueError as error:
            raise UserError(f"prompt_relearning: {error}") from error
        if prompt_bank(model) is None:
            raise NotMeasurable(f"{type(model).__name__} has no class prompts that could be learned again")
        rows = view.forget_part.train
        if not len(rows):
            raise UserError("prompt_relearning: the attacker's part of the forget set has no rows")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        budgets = sorted({min(k, len(rows)) for k in self.examples})
        yield Stage(step=0, model=model.eval())
        for k in budgets:
            attacked = copy.deepcopy(model)
            self._relearn(attacked, view, rows.take(order[:k]), seed)
            yield Stage(step=k, model=attacked.eval(), final=k == budgets[-1])

    def _relearn(self, model: nn.Module, view: AttackView, rows: Data, seed: int) -> None:
        """Put prompts learned from `rows` into the model's bank, one for each of their classes."""
        found = prompt_bank(model)
        assert found is not None  # stages() has looked
        path, bank = found
        labels = sorted(set(rows.batch(range(len(rows)))["labels"].tolist()))
        known, generator = bank.drop(labels), torch.Generator().manual_seed(seed)
        fresh = ClassPrompts(bank, labels=labels, width=bank.width).to(bank.vectors.device, bank.vectors.dtype)
        with torch.no_grad():
            for row, label in enumerate(labels):
                drawn = torch.randn(bank.width, generator=generator)
                fresh.vectors[row] = known.get(label, drawn.to(fresh.vectors))
        # In front of the bank, and into it when they are learned: so nothing of the bank can move meanwhile.
        insert(model, path, fresh)
        recipe = Recipe(epochs=1, batch_size=self.batch_size, lr=self.lr, optimizer="adam", batch_norm="frozen", dropout=False)
        batches = islice(endless(len(rows), self.batch_size, seed=seed), self.steps)

        def loss(net: nn.Module, batch: Batch) -> Tensor:
            return view.loss(net, batch).mean()

        def coming(epoch: int) -> Iterator[Batch]:
            return (rows.batch(index) for index in batches)

        fit(model, loss, coming, recipe, seed=seed, total_steps=self.steps, parameters=[fresh.vectors], label="prompt_relearning")
        bank.put(dict(zip(labels, fresh.vectors.detach(), strict=True)))
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, bank)
