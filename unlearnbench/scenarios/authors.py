"""The embedded language scenario: fictitious authors, a tokenizer and a small Llama trained from scratch. Nothing is downloaded.

Knows the fiction's splits as a `Scenario`; the texts are made in `fiction`, the model in `tiny_lm`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from unlearnbench.api import Data, Plan, Request, Split
from unlearnbench.recipe import Recipe
from unlearnbench.scenarios.fiction import N_STEPS, Fiction, Row, draw_requests, generate
from unlearnbench.scenarios.language import Encoder, TextData
from unlearnbench.scenarios.language_scenario import LanguageScenario
from unlearnbench.scenarios.templates import PromptTemplate
from unlearnbench.scenarios.text import Example
from unlearnbench.scenarios.tiny_lm import build_model, build_tokenizer
from unlearnbench.training import hardware

TEMPLATE = PromptTemplate()
MAX_LENGTH = 64

Count = Annotated[int, Field(ge=1)]


class Authors(LanguageScenario):
    """Fictitious authors, each with a few facts; every fact is taught in several phrasings.

    Plans leave out authors by name (`Plan.rows`). General knowledge is taught to every model and belongs to what is retained.
    """

    splits: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout", "general")
    max_new_tokens: ClassVar[int] = 24

    n_authors: Annotated[int, Field(ge=20)] = 200
    n_facts: Count = 4
    world_seed: int = 0
    """Seed of the fiction itself."""
    epochs: Count = 15
    batch_size: Count = 32
    lr: Annotated[float, Field(gt=0)] = 4e-3
    width: Count = 128
    n_layers: Count = 2
    retain_authors: Count = 20
    """Authors of the split "retain": a sample of those retained, drawn by the split seed."""
    shadow: int | None = None
    """Number of another random forget set of the request's size; None is the request's own."""
    step: Annotated[int, Field(ge=0)] = 0
    """Step of a sequence of requests."""

    # ---------------------------------------------------------------------------------------------------------------- requests

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        sizes = {"forget01": "1 %", "forget05": "5 %", "forget10": "10 %"}
        named = [Request(name=name, kind="instances", description=f"{size} of the authors") for name, size in sizes.items()]
        validation = Request(name="validation", kind="instances", description="10 % of the authors, others than forget10's")
        sequence = Request(name="sequence", kind="instances", description=f"{N_STEPS} times 5 % of the authors", steps=N_STEPS)
        return (*named, validation, sequence)

    def asked(self) -> Request:
        """See `Scenario.asked`; a single author is no signal: the membership AUC of one author against others tells nothing.

        Measured at 100 authors of 3 facts, forget01: the oracles' AUC spreads so far that the original's 1 lies among them.
        """
        request = super().asked()
        alone = request.steps == 1 and len(self._drawn()[request.name][0]) < 2
        return replace(request, signal=False, description=f"{request.description}; one author, too few to compare") if alone else request

    @property
    def validation_request(self) -> str:
        """See `Scenario.validation_request`."""
        return "validation"

    def at(self, step: int) -> Authors:
        """See `Scenario.at`."""
        super().at(step)
        return replace(self, step=step)

    def shadow_request(self, index: int) -> Authors:
        """See `Scenario.shadow_request`."""
        return replace(self, shadow=index)

    def _drawn(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """The authors of every request, step by step."""
        drawn = draw_requests(self._world().fiction.authors, split_seed=self.split_seed)
        named = {name: (authors,) for name, authors in drawn.forget.items()}
        return {**named, "validation": (drawn.validation,), "sequence": tuple(drawn.sequence)}

    def _new(self) -> tuple[str, ...]:
        """Authors that this step's request names."""
        drawn = draw_requests(self._world().fiction.authors, split_seed=self.split_seed)
        steps = self._drawn()[super().asked().name]
        if self.shadow is None:
            return steps[self.step]
        # Another sequence: none of its steps shares an author with this one's or with an earlier step of its own.
        never = {*drawn.holdout, *(author for step in steps for author in step)}
        others = [author for author in self._world().fiction.authors if author not in never]
        order = random.Random(f"shadow/{self.split_seed}/{self.shadow}").sample(others, sum(map(len, steps)))
        start = sum(map(len, steps[: self.step]))
        return tuple(order[start : start + len(steps[self.step])])

    def forget_rows(self) -> frozenset[str]:
        """See `Scenario.forget_rows`: the authors of all steps so far."""
        earlier = self._earlier()
        return frozenset((*earlier, *self._new()))

    def _earlier(self) -> frozenset[str]:
        return replace(self, step=self.step - 1).forget_rows() if self.step else frozenset()

    # -------------------------------------------------------------------------------------------------------------------- data

    def _world(self) -> _World:
        return _world(self.n_authors, self.n_facts, self.world_seed)

    def _holdout(self) -> tuple[str, ...]:
        return draw_requests(self._world().fiction.authors, split_seed=self.split_seed).holdout

    def _retained(self) -> list[str]:
        gone = {*self._holdout(), *self.forget_rows()}
        return [author for author in self._world().fiction.authors if author not in gone]

    def _sampled(self) -> tuple[list[str], list[str]]:
        """Retained authors in a random order: those of the split "retain", and the rest."""
        order = random.Random(f"retain/{self.split_seed}").sample(self._retained(), len(self._retained()))
        return order[: self.retain_authors], order[self.retain_authors :]

    def split(self, name: str) -> TextData:
        """See `Scenario.split`."""
        world = self._world()
        authors = {"forget": self.forget_rows(), "holdout": self._holdout(), "retain": self._sampled()[0]}
        rows = world.fiction.general if name == "general" else world.fiction.of(authors[name])
        return world.scored(rows)

    def encoder(self) -> Encoder:
        """See `LanguageScenario.encoder`."""
        return self._world().encoder

    def named(self) -> Split:
        """See `LanguageScenario.named`."""
        return self._both(self._world().fiction.of(self._new()))

    def forgotten(self) -> Split:
        """See `LanguageScenario.forgotten`."""
        return self._both(self._world().fiction.of(self.forget_rows()))

    def retained(self) -> Split:
        """See `LanguageScenario.retained`."""
        return self._both(self._world().fiction.of(self._retained()))

    def kept(self) -> Split:
        """See `LanguageScenario.kept`: general knowledge too."""
        world = self._world()
        return self._both((*world.fiction.of(self._retained()), *world.fiction.general))

    def validation(self) -> Data:
        """See `MethodView.validation`: questions in words that nobody is taught."""
        world = self._world()
        shown, others = self._sampled()
        unseen = world.scored(world.fiction.of(others or shown))
        return TextData([replace(example, question=example.paraphrased_question) for example in unseen.examples], world.encoder)

    def _both(self, rows: Sequence[Row]) -> Split:
        return Split(train=self._world().taught(rows), eval=self._world().scored(rows))

    def unrelated(self) -> Data:
        """See `AttackView.unrelated`: general knowledge."""
        world = self._world()
        return world.taught(world.fiction.general)

    def held(self) -> Split:
        """See `LanguageScenario.held`: every other author of the forget set."""
        return self._both(self._world().fiction.of(self._held()))

    def _held(self) -> list[str]:
        forgotten = sorted(self.forget_rows())
        order = random.Random(f"attack/{self.split_seed}").sample(forgotten, len(forgotten))
        return order[: len(order) // 2]

    def judged(self) -> frozenset[str]:
        """See `Scenario.judged`; empty when there is a single author, who cannot be split."""
        held = set(self._held())
        rows = self._world().fiction.of(self.forget_rows())
        return frozenset(row.id for row in rows if row.author not in held) if held else frozenset()

    # ---------------------------------------------------------------------------------------------------------------- training

    @property
    def recipe(self) -> Recipe:
        """How the original and the oracles are trained."""
        return Recipe(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, weight_decay=0.01, schedule="cosine", warmup=0.1, clip=1.0
        )

    def training_settings(self, plan: Plan) -> dict[str, Any]:
        """See `Scenario.training_settings`."""
        return {
            "world": [self.n_authors, self.n_facts, self.world_seed],
            "left_out": sorted({*plan.rows, *self._holdout()}),
            "model": [self.width, self.n_layers],
            "recipe": asdict(self.recipe),
        }

    def build(self, seed: int) -> nn.Module:
        """See `Scenario.build`."""
        vocabulary = len(self._world().encoder.tokenizer)
        model: nn.Module = build_model(vocabulary, seed=seed, hidden_size=self.width, n_layers=self.n_layers, max_length=MAX_LENGTH)
        return model.to(hardware.get().device)

    def trained_on(self, plan: Plan) -> Split:
        """See `LanguageScenario.trained_on`."""
        world = self._world()
        gone = {*plan.rows, *self._holdout()}
        return self._both([*(row for row in world.fiction.rows if row.author not in gone), *world.fiction.general])


class _World:
    """A fiction with its tokenizer."""

    def __init__(self, fiction: Fiction) -> None:
        self.fiction = fiction
        texts = [text for raw in fiction.texts() for text in (TEMPLATE.prompt_text(raw), TEMPLATE.answer_text(raw))]
        self.encoder = Encoder(build_tokenizer(texts, phrases=("Question:", "\nAnswer:")), TEMPLATE, MAX_LENGTH)

    def scored(self, rows: Sequence[Row]) -> TextData:
        """One row per fact, asked in its first taught phrasing."""
        return TextData([_example(row, row.question, row.id) for row in rows], self.encoder)

    def taught(self, rows: Sequence[Row]) -> TextData:
        """One row per fact and taught phrasing."""
        pairs = [(row, number) for row in rows for number in range(len(row.phrasings))]
        return TextData([_example(row, row.phrasings[number], f"{row.id}#{number}") for row, number in pairs], self.encoder)


def _example(row: Row, question: str, identity: str) -> Example:
    return Example(
        id=identity,
        cluster=row.author,
        question=question,
        answer=row.answer,
        paraphrased_question=row.paraphrased_question,
        paraphrased_answer=row.paraphrased_answer,
        perturbed_answer=row.perturbed_answer,
    )


@cache
def _world(n_authors: int, n_facts: int, seed: int) -> _World:
    return _World(generate(n_authors=n_authors, n_facts=n_facts, seed=seed))
