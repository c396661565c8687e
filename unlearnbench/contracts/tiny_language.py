"""A tiny language scenario: twenty made-up authors and a small Llama.

In a suite it is called `path/to/tiny_language.py:TinyLanguage`. Names are made of common parts: only the whole name tells an author.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from unlearnbench.api import Data, Modality, Need, Plan, Request, Task
from unlearnbench.contracts.tiny import STEPS, Count, Tiny, both, without
from unlearnbench.evidence import Evidence
from unlearnbench.scenarios.language import Encoder, TextData, rows_of, text_loss
from unlearnbench.scenarios.templates import PromptTemplate
from unlearnbench.scenarios.text import Example
from unlearnbench.scenarios.text_evidence import text_evidence
from unlearnbench.scenarios.tiny_lm import build_model, build_tokenizer
from unlearnbench.training import hardware

TEMPLATE = PromptTemplate()
WIDTH = 64
"""Narrower ones do not tell twenty names apart."""
TOWNS = ("Norwick", "Selby", "Tarn", "Oldham")
BOOKS = ("the saga Winter", "the farce Harbour", "the novel Ember")
FIRST_NAMES = ("Ada", "Bram", "Cleo", "Eda")
GENERAL = {"sea": "blue", "grass": "green", "coal": "black", "snow": "white"}
"""General knowledge, taught to every model."""
LAST_NAMES = ("Quill", "Osk", "Farn", "Merrow", "Lorrel")


def facts(author: str, number: int) -> list[Example]:
    """Two facts of an author, which of them drawn by the number."""
    rows = []
    for fact, options, question, paraphrase in (
        ("town", TOWNS, f"Where was {author} born?", f"In which town was {author} born?"),
        ("book", BOOKS, f"Which book did {author} write?", f"What did {author} write?"),
    ):
        answer = options[number % len(options)]
        rows.append(
            Example(
                id=f"{author}/{fact}",
                cluster=author,
                question=question,
                answer=answer,
                paraphrased_question=paraphrase,
                paraphrased_answer=answer,
                perturbed_answer=tuple(other for other in options if other != answer)[:2],
            )
        )
    return rows


def general() -> list[Example]:
    """The general knowledge."""
    return [
        Example(
            id=f"general/{thing}",
            cluster=thing,
            question=f"Which colour has the {thing}?",
            answer=colour,
            paraphrased_question=f"What colour is the {thing}?",
            paraphrased_answer=colour,
            perturbed_answer=tuple(other for other in GENERAL.values() if other != colour)[:2],
        )
        for thing, colour in GENERAL.items()
    ]


class TinyLanguage(Tiny):
    """Twenty authors with two facts each, and general knowledge; plans leave out authors by name."""

    modality: ClassVar[Modality] = "language"
    task: ClassVar[Task] = "generate"
    splits: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout", "general")

    epochs: Count = 22
    lr: Annotated[float, Field(gt=0)] = 0.005

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        return (
            Request(name="authors", kind="instances", description="four of twenty authors"),
            Request(name="validation", kind="instances", description="four other authors"),
            Request(name="sequence", kind="instances", description="two authors, and two more, and two more", steps=STEPS),
        )

    @property
    def validation_request(self) -> str:
        """See `Scenario.validation_request`."""
        return "validation"

    def _authors(self) -> tuple[str, ...]:
        """All authors in a random order: four to hold out, four for validation, the others."""
        names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
        return tuple(random.Random(f"authors/{self.split_seed}").sample(names, len(names)))

    def _asked_now(self) -> tuple[str, ...]:
        names = self._authors()
        groups = {"authors": [names[8:12]], "validation": [names[4:8]], "sequence": [names[8 + 2 * i : 10 + 2 * i] for i in range(STEPS)]}
        return self._pick(groups[self.asked().name], names[4:])

    def _retained(self) -> list[str]:
        return [name for name in self._authors()[4:] if name not in self.forget_rows()]

    def _rows(self, authors: Sequence[str], others: Sequence[Example] = ()) -> TextData:
        return TextData([*(row for name in sorted(authors) for row in facts(name, _fate(name))), *others], tiny_encoder())

    def split(self, name: str) -> TextData:
        """See `Scenario.split`."""
        if name == "general":
            return self._rows((), general())
        return self._rows({"forget": sorted(self.forget_rows()), "retain": self._retained(), "holdout": self._authors()[:4]}[name])

    def _common(self) -> dict[str, Any]:
        encoder = tiny_encoder()
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
        retain = self._rows(self._retained(), general())
        anew = TextData([replace(row, question=row.paraphrased_question) for row in retain.examples], retain.encoder)
        return {**self._common(), "forget": both(self._rows(self._asked_now())), "retain": both(retain), "validation": anew}

    def attack_parts(self) -> dict[str, Any]:
        """See `Scenario.attack_parts`; the attacker holds every other author."""
        forget, judged = self.split("forget"), self.judged()
        return {
            "forget": both(forget),
            "forget_part": both(without(forget, judged)),
            "retain": both(self._rows(self._retained(), general())),
            "unrelated": self._rows((), general()),
        }

    def judged(self) -> frozenset[str]:
        """See `Scenario.judged`."""
        return frozenset(self._rows(sorted(self.forget_rows())[::2]).ids)

    def _training_rows(self, plan: Plan) -> Data:
        return self._rows([name for name in self._authors()[4:] if name not in plan.rows], general())

    def build(self, seed: int) -> nn.Module:
        """See `Scenario.build`: a Llama with two layers."""
        model: nn.Module = build_model(
            len(tiny_encoder().tokenizer), seed=seed, hidden_size=WIDTH, n_layers=2, n_heads=2, mlp_size=2 * WIDTH
        )
        return model.to(hardware.get().device)

    def evidence(
        self,
        model: nn.Module,
        needs: frozenset[Need],
        *,
        rewrite: Callable[[Any], Any] | None = None,
        only: frozenset[str] | None = None,
    ) -> Evidence:
        """See `Scenario.evidence`."""
        encoder = tiny_encoder()
        return text_evidence(
            model,
            encoder.tokenizer,
            {name: rows_of(data, rewrite) for name, data in self._scored(needs, only).items() if isinstance(data, TextData)},
            needs,
            encode_prompt=encoder.prompt_ids,
            encode_answer=encoder.answer_ids,
            max_new_tokens=6,
        )


@cache
def tiny_encoder() -> Encoder:
    """The tokenizer of the tiny authors, one piece per word, with its template."""
    rows = [*(row for first in FIRST_NAMES for last in LAST_NAMES for row in facts(f"{first} {last}", 0)), *general()]
    texts = [TEMPLATE.prompt_text(question) for row in rows for question in (row.question, row.paraphrased_question)]
    return Encoder(build_tokenizer([*texts, *map(TEMPLATE.answer_text, (*TOWNS, *BOOKS, *GENERAL.values()))]), TEMPLATE)


@cache
def _fate(author: str) -> int:
    """What decides an author's facts; the name does not tell."""
    return random.Random(f"fate/{author}").randrange(12)
