"""The base of language scenarios: from a handful of row sets to the views, the training and the evidence pass.

Knows how a causal LM is trained on question and answer pairs and scored on them; a subclass says which rows there are, how texts are
encoded and where an untrained model comes from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import nn

from unlearnbench.api import Data, Modality, Need, Plan, Scenario, Split, Task, TrainView
from unlearnbench.evidence import Evidence
from unlearnbench.recipe import Recipe
from unlearnbench.scenarios.language import Encoder, TextData, rows_of, text_loss
from unlearnbench.scenarios.text_evidence import Rows, text_evidence
from unlearnbench.training import batches, fit, step_count


class LanguageScenario(Scenario):
    """A scenario whose models are causal LMs that learned answers to prompts."""

    modality: ClassVar[Modality] = "language"
    task: ClassVar[Task] = "generate"
    max_new_tokens: ClassVar[int] = 200
    """Bound of a generation, where a split sets none of its own; TOFU's."""

    # -------------------------------------------------------------------------------------------------------- what a subclass says

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """How the original and the oracles are trained."""

    @abstractmethod
    def encoder(self) -> Encoder:
        """Tokenizer and the template of questions; splits with other templates derive theirs from it (`Encoder.using`)."""

    @abstractmethod
    def split(self, name: str) -> TextData:
        """See `Scenario.split`."""

    @abstractmethod
    def named(self) -> Split:
        """What this step's request names."""

    @abstractmethod
    def forgotten(self) -> Split:
        """What the requests of all steps so far name."""

    @abstractmethod
    def retained(self) -> Split:
        """What is to be kept, of the kind that is forgotten: what an attacker sees as retain data."""

    def kept(self) -> Split:
        """What a method is given to keep: what is retained, and other knowledge that a subclass adds."""
        return self.retained()

    @abstractmethod
    def validation(self) -> Data:
        """See `MethodView.validation`."""

    @abstractmethod
    def held(self) -> Split:
        """The part of `forgotten` that an attacker holds."""

    def unrelated(self) -> Data | None:
        """See `AttackView.unrelated`; None where a scenario has no such rows."""
        return None

    @abstractmethod
    def trained_on(self, plan: Plan) -> Split:
        """What a model of a plan is trained on."""

    # --------------------------------------------------------------------------------------------------------------------- views

    def _common(self) -> dict[str, Any]:
        encoder = self.encoder()
        return {
            "modality": self.modality,
            "task": self.task,
            "kind": self.asked().kind,
            "classes": None,
            "tokenizer": encoder.tokenizer,
            "recipe": self.recipe,
            "loss": text_loss,
            "encode": encoder.pairs,
        }

    def method_view(self) -> dict[str, Any]:
        """See `Scenario.method_view`."""
        return {**self._common(), "forget": self.named(), "retain": self.kept(), "validation": self.validation()}

    def attack_parts(self) -> dict[str, Any]:
        """See `Scenario.attack_parts`."""
        parts = {"forget": self.forgotten(), "forget_part": self.held(), "retain": self.retained(), "unrelated": self.unrelated()}
        return {name: part for name, part in parts.items() if part is not None}

    def train_view(self, plan: Plan) -> TrainView:
        """See `Scenario.train_view`."""
        return TrainView(**self._common(), data=self.trained_on(plan), build=self.build)

    # ------------------------------------------------------------------------------------------------------------------ training

    def train(self, plans: Sequence[Plan], seeds: Sequence[int]) -> list[nn.Module]:
        """See `Scenario.train`."""
        return [self.train_one(plan, seed) for plan, seed in zip(plans, seeds, strict=True)]

    def train_one(self, plan: Plan, seed: int) -> nn.Module:
        """A trained model."""
        return self.fitted(self.build(seed), plan, seed)

    def fitted(self, model: nn.Module, plan: Plan, seed: int) -> nn.Module:
        """Train a model in place by the recipe and give it back."""
        data = self.trained_on(plan).train
        fit(
            model,
            lambda net, batch: text_loss(net, batch).mean(),
            partial(_epoch, data, self.recipe.batch_size, seed),
            self.recipe,
            seed=seed,
            total_steps=step_count(len(data), self.recipe),
            label=f"{plan.role}, seed {seed}",
        )
        return model

    # ------------------------------------------------------------------------------------------------------------------ evidence

    def scored_rows(self) -> int | None:
        """How many rows of a split are scored, its first; None for all."""
        return None

    def rows(self, name: str, data: TextData, rewrite: Callable[[Any], Any] | None) -> Rows:
        """The rows of a split as the evidence pass wants them, checked to fit the model's context.

        Raises:
            UserError: a prompt or an answer has no tokens, or both together have too many.
        """
        rows = rows_of(data, rewrite)
        for prompt, answers in zip(rows.prompts["question"], rows.answers["answer"], strict=True):
            data.encoder.pair(prompt, answers[0])
        return rows

    def evidence(
        self,
        model: nn.Module,
        needs: frozenset[Need],
        *,
        rewrite: Callable[[Any], Any] | None = None,
        only: frozenset[str] | None = None,
    ) -> Evidence:
        """See `Scenario.evidence`."""
        encoder = self.encoder()
        splits = {}
        for name in sorted({need.split for need in needs}):
            data = self.split(name)
            if name == "forget" and only is not None:
                data = data.take([i for i, row in enumerate(data.ids) if row in only])
            if (first := self.scored_rows()) is not None:
                data = data.take(range(min(first, len(data))))
            splits[name] = self.rows(name, data, rewrite)
        return text_evidence(
            model,
            encoder.tokenizer,
            splits,
            needs,
            encode_prompt=encoder.prompt_ids,
            encode_answer=encoder.answer_ids,
            max_new_tokens=self.max_new_tokens,
        )


def _epoch(data: Data, batch_size: int, seed: int, epoch: int) -> Any:
    return (data.batch(index) for index in batches(len(data), batch_size, seed=seed, epoch=epoch))
