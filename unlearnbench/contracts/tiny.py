"""What the tiny scenarios share: groups of rows that requests name, shadows, sequences, and training one model after the other.

For plugin authors. `tiny_language` and `tiny_vision` are complete scenarios whose models train in a fraction of a second, memorise
their training rows and need no download; staged or otherwise odd scenarios subclass them. The file knows no data.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, Data, Need, Plan, Scenario, Split, TrainView
from unlearnbench.finetuning import shuffled
from unlearnbench.training import Recipe, fit, step_count

STEPS = 3
"""Requests of a sequence."""

Count = Annotated[int, Field(ge=1)]


class Tiny(Scenario):
    """What the two share: groups of rows that requests name, shadows, and training one model after the other."""

    epochs: Count = 25
    batch_size: Annotated[int, Field(ge=2)] = 8
    lr: Annotated[float, Field(gt=0)] = 0.02
    shadow: int | None = None
    """Number of another random forget set of the request's size; None is the request's own."""
    step: Annotated[int, Field(ge=0, lt=STEPS)] = 0
    """Step of a sequence of requests."""

    def at(self, step: int) -> Scenario:
        """See `Scenario.at`."""
        super().at(step)
        return replace(self, step=step)

    def shadow_request(self, index: int) -> Scenario:
        """See `Scenario.shadow_request`."""
        return replace(self, shadow=index)

    def _pick(self, groups: Sequence[Sequence[str]], others: Sequence[str]) -> tuple[str, ...]:
        """What this step's request names: its own group, or for a shadow as many of the others at random."""
        own = groups[min(self.step, len(groups) - 1)]
        if self.shadow is None:
            return tuple(own)
        free = [other for other in others if other not in {name for group in groups for name in group}]
        return tuple(random.Random(f"shadow/{self.split_seed}/{self.shadow}/{self.step}").sample(free, len(own)))

    def forget_rows(self) -> frozenset[str]:
        """See `Scenario.forget_rows`: all steps so far."""
        earlier = replace(self, step=self.step - 1).forget_rows() if self.step else frozenset[str]()
        return earlier | frozenset(self._asked_now())

    def _asked_now(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def recipe(self) -> Recipe:
        """How the original and the oracles are trained."""
        return Recipe(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, schedule="cosine", warmup=0.1)

    def _common(self) -> dict[str, Any]:
        """The fields of `View`."""
        raise NotImplementedError

    def _training_rows(self, plan: Plan) -> Data:
        raise NotImplementedError

    def train_view(self, plan: Plan) -> TrainView:
        """See `Scenario.train_view`."""
        return TrainView(**self._common(), data=both(self._training_rows(plan)), build=self.build)

    def training_settings(self, plan: Plan) -> dict[str, Any]:
        """See `Scenario.training_settings`."""
        return {"rows": sorted(self._training_rows(plan).ids), "split_seed": self.split_seed, "recipe": asdict(self.recipe)}

    def train(self, plans: Sequence[Plan], seeds: Sequence[int]) -> list[nn.Module]:
        """See `Scenario.train`."""
        return [self.fitted(self.build(seed), self._training_rows(plan), seed) for plan, seed in zip(plans, seeds, strict=True)]

    def fitted(self, model: nn.Module, data: Data, seed: int) -> nn.Module:
        """The model, trained on the rows by the recipe, in eval mode."""
        loss: Callable[[nn.Module, Batch], Tensor] = self._common()["loss"]
        fit(
            model,
            lambda net, batch: loss(net, batch).mean(),
            shuffled(data, self.batch_size, seed=seed),
            self.recipe,
            seed=seed,
            total_steps=step_count(len(data), self.recipe),
        )
        return model.eval()

    def _scored(self, needs: frozenset[Need], only: frozenset[str] | None) -> dict[str, Data]:
        splits = {name: self.split(name) for name in sorted({need.split for need in needs})}
        if only is not None and "forget" in splits:
            splits["forget"] = without(splits["forget"], frozenset(splits["forget"].ids) - only)
        return splits


def both(data: Data) -> Split:
    """A split whose training rows are the scored ones."""
    return Split(train=data, eval=data)


def without(data: Data, rows: frozenset[str]) -> Data:
    """All rows but these, order kept."""
    return data.take([i for i, row in enumerate(data.ids) if row not in rows])
