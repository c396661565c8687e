"""The base of language scenarios on real texts, whose models are made from scratch, fine-tuned or ready (`model_sources`).

Knows how a source of models and a template of prompts become the parts of a scenario; knows no data set.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from dataclasses import asdict, replace
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import Field
from torch import nn

from unlearnbench.adapters import attach, merged
from unlearnbench.api import Plan, Split, UserError
from unlearnbench.recipe import Recipe
from unlearnbench.scenarios.hub_data import digest
from unlearnbench.scenarios.language import Encoder, TextData
from unlearnbench.scenarios.language_scenario import LanguageScenario
from unlearnbench.scenarios.model_sources import Finetuned, Models, Plain, Prompts, Ready, Scratch

S = TypeVar("S", bound="SourcedScenario")


class SourcedScenario(LanguageScenario):
    """A language scenario with a field for where its models come from, and one for how they are prompted.

    Plans leave out clusters. Shadow requests forget as many other clusters, drawn by their number.
    """

    models: Models = Scratch()
    """Where models come from: source scratch, finetuned or ready, and its settings."""
    prompts: Prompts = Plain()
    """How questions are put: style plain or chat, and its settings."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """How many rows of every split are scored, its first; None for all."""
    shadow: int | None = None
    """Number of another random forget set of the request's size; None is the request's own."""
    step: Annotated[int, Field(ge=0)] = 0
    """Step of a sequence of requests."""

    @abstractmethod
    def texts(self) -> tuple[str, ...]:
        """All texts of the scenario, whatever is asked: what a tokenizer from scratch is trained on."""

    @abstractmethod
    def steps(self) -> tuple[tuple[str, ...], ...]:
        """The clusters that each step of the request names."""

    @abstractmethod
    def retained_clusters(self) -> tuple[str, ...]:
        """The clusters that a model is trained on and that nothing asks to forget, all steps so far considered, in a fixed order."""

    def scored_rows(self) -> int | None:
        """See `LanguageScenario.scored_rows`."""
        return self.limit

    # ------------------------------------------------------------------------------------------------------------------ requests

    def at(self: S, step: int) -> S:
        """See `Scenario.at`."""
        super().at(step)
        return replace(self, step=step)

    def shadow_request(self: S, index: int) -> S:
        """See `Scenario.shadow_request`."""
        return replace(self, shadow=index)

    def kind_of(self, cluster: str) -> str:
        """What a cluster is; a shadow forgets as many of each kind."""
        return "cluster"

    def named_clusters(self) -> tuple[str, ...]:
        """The clusters that this step names.

        Raises:
            UserError: a shadow wants more clusters than are retained.
        """
        steps = self.steps()
        if self.shadow is None:
            return steps[self.step]
        last = replace(self, shadow=None, step=len(steps) - 1)
        others = last.retained_clusters()
        drawn = []
        for kind in dict.fromkeys(self.kind_of(cluster) for step in steps for cluster in step):
            sizes = [sum(self.kind_of(cluster) == kind for cluster in step) for step in steps]
            pool = [cluster for cluster in others if self.kind_of(cluster) == kind]
            if len(pool) < sum(sizes):
                many = f"{sum(sizes)} {kind}s" if sum(sizes) > 1 else f"a {kind}"
                raise UserError(f"a shadow of {self.request!r} forgets {many} besides those of the request; only {len(pool)} are retained")
            order = random.Random(f"shadow/{self.split_seed}/{self.shadow}").sample(pool, sum(sizes))
            start = sum(sizes[: self.step])
            drawn += order[start : start + sizes[self.step]]
        return tuple(drawn)

    def forget_rows(self) -> frozenset[str]:
        """See `Scenario.forget_rows`: the clusters of all steps so far."""
        earlier = replace(self, step=self.step - 1).forget_rows() if self.step else frozenset()
        return earlier | frozenset(self.named_clusters())

    def held_clusters(self) -> frozenset[str]:
        """The clusters that an attacker holds: half of those forgotten; none where there is a single one."""
        forgotten = sorted(self.forget_rows())
        return frozenset(random.Random(f"attack/{self.split_seed}").sample(forgotten, len(forgotten) // 2))

    def judged(self) -> frozenset[str]:
        """See `Scenario.judged`."""
        held, data = self.held_clusters(), self.split("forget")
        return frozenset(row for row, cluster in zip(data.ids, data.clusters, strict=True) if cluster not in held) if held else frozenset()

    # -------------------------------------------------------------------------------------------------------------------- models

    @property
    def recipe(self) -> Recipe:
        """See `LanguageScenario.recipe`."""
        return self.models.recipe

    def encoder(self) -> Encoder:
        """See `LanguageScenario.encoder`."""
        return _encoder(self.models, self.prompts, self.texts() if isinstance(self.models, Scratch) else ())

    def build(self, seed: int) -> nn.Module:
        """See `Scenario.build`."""
        return self.models.build(self.encoder().tokenizer, seed)

    def training_settings(self, plan: Plan) -> dict[str, Any]:
        """See `Scenario.training_settings`."""
        data = self.trained_on(plan).train
        assert isinstance(data, TextData)  # all rows of these scenarios are texts
        settings = {"rows": digest([[row.question, row.answer] for row in data.examples]), "models": self.models.settings()}
        return {**settings, "prompts": asdict(self.prompts), "texts": digest(self.texts()) if isinstance(self.models, Scratch) else None}

    def train_one(self, plan: Plan, seed: int) -> nn.Module:
        """See `LanguageScenario.train_one`; a ready model is loaded.

        Raises:
            UserError: no ready model is that of the plan.
        """
        if not isinstance(self.models, Ready):
            return super().train_one(plan, seed)
        if self.shadow is not None or self.step:
            raise UserError(f"the ready models are those of the first step of a request, not of shadow {self.shadow}, step {self.step}")
        return self.models.load(plan.role, self.request, seed)

    def fitted(self, model: nn.Module, plan: Plan, seed: int) -> nn.Module:
        """See `LanguageScenario.fitted`; adapters are trained alone and then merged."""
        lora = self.models.lora if isinstance(self.models, Finetuned) else None
        if lora is None:
            return super().fitted(model, plan, seed)
        return merged(super().fitted(attach(model, rank=lora.rank, alpha=lora.alpha, seed=seed), plan, seed))


def halves(data: TextData) -> Split:
    """A split whose rows are trained on and scored alike."""
    return Split(train=data, eval=data)


@cache
def _encoder(models: Scratch | Finetuned | Ready, prompts: Any, texts: tuple[str, ...]) -> Encoder:
    tokenizer = models.tokenizer(texts)
    return Encoder(tokenizer, prompts.template(tokenizer), models.length())
