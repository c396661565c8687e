"""TOFU: 200 fictitious authors with 20 questions each, of whom 1, 5 or 10 % are to be forgotten.

"TOFU: A Task of Fictitious Unlearning for LLMs". Maini, Feng, Schwarzschild, Lipton, Kolter. 2024, arXiv 2401.06121; data set
`locuslab/TOFU` with the paraphrases and the held-out authors that open-unlearning (2025, arXiv 2506.12618) added. Deviations: a model
trained from scratch is taught the questions on real authors and world facts too, which a published model knows, or its utility would
say nothing; requests that TOFU does not have (validation, sequence) are drawn here.

Knows the files, which of their rows belong together, and which authors a request names.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from unlearnbench.api import Data, Plan, Request, Split
from unlearnbench.scenarios.hub_data import Column, DataSet, Row, find, same_rows
from unlearnbench.scenarios.language import TextData
from unlearnbench.scenarios.model_sources import Scratch
from unlearnbench.scenarios.sourced import SourcedScenario, halves
from unlearnbench.scenarios.text import Example

HUB = "locuslab/TOFU"
PER_AUTHOR = 20
SIZES = {"forget01": ("01", 2), "forget05": ("05", 10), "forget10": ("10", 20)}
"""Request -> the number in its files' names, and how many authors it names: the last of them."""
N_AUTHORS, N_STEPS, N_PARAPHRASED = 200, 4, 20
QA: dict[str, Column] = {"question": "text", "answer": "text"}
WRONG: dict[str, Column] = {**QA, "perturbed_answer": "texts"}
FULL: dict[str, Column] = {**WRONG, "paraphrased_question": "text", "paraphrased_answer": "text"}


class Tofu(SourcedScenario):
    """TOFU's authors; clusters are authors, and in other splits single rows.

    Rows of authors that the data set paraphrases (the last and the first twenty) can be scored in all ways, those of others by question
    and answer alone.
    """

    splits: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout", "real_authors", "world_facts")

    data_dir: str | None = None
    """The data set's folder; by default UNLEARNBENCH_DATA/tofu where that is set, or else the hub."""
    retain_authors: Annotated[int, Field(ge=N_PARAPHRASED, le=N_AUTHORS - N_PARAPHRASED)] = N_AUTHORS - N_PARAPHRASED
    """How many of the 180 authors that forget10 leaves exist at all: a small number makes a small suite."""

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        named = [Request(name=name, kind="instances", description=f"the last {n} of 200 authors") for name, (_, n) in SIZES.items()]
        validation = Request(name="validation", kind="instances", description="10 of the first 20 authors")
        sequence = Request(name="sequence", kind="instances", description=f"{N_STEPS} times 5 of the last 20 authors", steps=N_STEPS)
        return (*named, validation, sequence)

    @property
    def validation_request(self) -> str:
        """See `Scenario.validation_request`."""
        return "validation"

    def _files(self) -> Files:
        number = SIZES[self.request][0] if self.request in SIZES else "10"
        return _files(find(HUB, under="tofu", data_dir=self.data_dir), number)

    def texts(self) -> tuple[str, ...]:
        """See `SourcedScenario.texts`."""
        return self._files().texts

    def steps(self) -> tuple[tuple[str, ...], ...]:
        """See `SourcedScenario.steps`."""
        request, last = self.asked().name, _authors(N_AUTHORS - N_PARAPHRASED, N_AUTHORS)
        if request == "validation":
            return (tuple(random.Random(f"validation/{self.split_seed}").sample(_authors(0, N_PARAPHRASED), N_PARAPHRASED // 2)),)
        if request == "sequence":
            size = len(last) // N_STEPS
            return tuple(last[start : start + size] for start in range(0, len(last), size))
        return (last[-SIZES[request][1] :],)

    def _exist(self) -> tuple[str, ...]:
        return (*_authors(0, self.retain_authors), *_authors(N_AUTHORS - N_PARAPHRASED, N_AUTHORS))

    def retained_clusters(self) -> tuple[str, ...]:
        """See `SourcedScenario.retained_clusters`."""
        gone = self.forget_rows()
        return tuple(author for author in self._exist() if author not in gone)

    # -------------------------------------------------------------------------------------------------------------------- data

    def _of(self, authors: Iterable[str]) -> TextData:
        """All rows of authors, in the data set's order."""
        wanted = set(authors)
        return TextData([row for row in self._files().full if row.cluster in wanted], self.encoder())

    def _scored(self, authors: Iterable[str]) -> TextData:
        """The rows of authors with what the data set has for scoring, the same for all of them."""
        wanted, files = set(authors), self._files()
        rows = files.paraphrased if wanted <= {row.cluster for row in files.paraphrased} else files.full
        return TextData([row for row in rows if row.cluster in wanted], self.encoder())

    def _both(self, authors: Iterable[str]) -> Split:
        chosen = list(authors)
        return Split(train=self._of(chosen), eval=self._scored(chosen))

    def split(self, name: str) -> TextData:
        """See `Scenario.split`; retain: the authors kept of the first twenty, as in TOFU; holdout: as many rows as are forgotten."""
        files = self._files()
        if name == "forget":
            return self._scored(self.forget_rows())
        if name == "retain":
            return self._scored(author for author in self.retained_clusters() if author in set(_authors(0, N_PARAPHRASED)))
        if name == "holdout":
            return TextData(files.holdout[: PER_AUTHOR * len(self.forget_rows())], self.encoder())
        return TextData(files.facts[name], self.encoder())

    def named(self) -> Split:
        """See `LanguageScenario.named`."""
        return self._both(self.named_clusters())

    def forgotten(self) -> Split:
        """See `LanguageScenario.forgotten`."""
        return self._both(self.forget_rows())

    def held(self) -> Split:
        """See `LanguageScenario.held`."""
        return self._both(self.held_clusters())

    def retained(self) -> Split:
        """See `LanguageScenario.retained`."""
        return Split(train=self._of(self.retained_clusters()), eval=self.split("retain"))

    def _taught(self) -> tuple[Example, ...]:
        """General knowledge that is trained on."""
        facts = self._files().facts
        return (*facts["real_authors"], *facts["world_facts"]) if isinstance(self.models, Scratch) else ()

    def kept(self) -> Split:
        """See `LanguageScenario.kept`: with what models from scratch are taught beside the authors."""
        plain, scored = self._of(self.retained_clusters()), self.split("retain")
        train, scored = (TextData([*rows.examples, *self._taught()], self.encoder()) for rows in (plain, scored))
        return Split(train=train, eval=scored)

    def trained_on(self, plan: Plan) -> Split:
        """See `LanguageScenario.trained_on`."""
        authors = [author for author in self._exist() if author not in plan.rows]
        return halves(TextData([*self._of(authors).examples, *self._taught()], self.encoder()))

    def validation(self) -> Data:
        """See `MethodView.validation`: retained rows in other words, question and answer."""
        rows = self.split("retain").examples
        return TextData(
            [Example(id=row.id, cluster=row.cluster, question=row.paraphrased_question, answer=row.paraphrased_answer) for row in rows],
            self.encoder(),
        )

    def unrelated(self) -> Data:
        """See `AttackView.unrelated`: the questions on real authors."""
        return self.split("real_authors")


class Files(NamedTuple):
    """The data set's rows, joined by content and checked against each other."""

    full: tuple[Example, ...]
    paraphrased: tuple[Example, ...]
    """Rows of the first and the last twenty authors, with other words and wrong answers."""
    holdout: tuple[Example, ...]
    facts: dict[str, tuple[Example, ...]]
    texts: tuple[str, ...]


@cache
def _files(data: DataSet, number: str) -> Files:
    """The rows that a request with files of this number is made of.

    Raises:
        UserError: a file is missing, or its rows are not those that TOFU has there.
    """
    n_all, n_known = N_AUTHORS * PER_AUTHOR, N_PARAPHRASED * PER_AUTHOR

    def read(name: str, count: int, columns: dict[str, Column], same: tuple[Row, ...] | None = None, of: str = "") -> tuple[Row, ...]:
        rows = data.rows(name, file=f"{name}.json", columns=columns, count=count)
        if same is not None:
            same_rows(rows, same, ("question", "answer"), what=name, of=of)
        return rows

    full = read("full", n_all, QA)
    size = PER_AUTHOR * next(n for found, n in SIZES.values() if found == number)
    forget = read(f"forget{number}", size, QA, full[-size:], f"the last {size} of full")
    read(f"forget{number}_perturbed", size, FULL, forget, f"forget{number}")
    read(f"retain{100 - int(number)}", n_all - size, QA, full[:-size], f"the first {n_all - size} of full")
    first = read("retain_perturbed", n_known, FULL, full[:n_known], f"the first {n_known} of full")
    last = read("forget10_perturbed", n_known, FULL, full[-n_known:], f"the last {n_known} of full")
    held_out = read("holdout10", n_known, QA)
    read(f"holdout{number}", size, QA, held_out[:size], f"the first {size} of holdout10")
    facts = {}
    for name, count in (("real_authors", 100), ("world_facts", 117)):
        found = read(f"{name}_perturbed", count, WRONG, read(name, count, QA), name)
        facts[name] = tuple(_example(f"{name}/{i}", f"{name}/{i}", row) for i, row in enumerate(found))
    known = {**dict(enumerate(first)), **dict(enumerate(last, n_all - n_known))}
    groups = (full, first, last, held_out, *([vars(row) for row in rows] for rows in facts.values()))
    return Files(
        full=tuple(_example(f"full/{i}", _author(i // PER_AUTHOR), row) for i, row in enumerate(full)),
        paraphrased=tuple(_example(f"full/{i}", _author(i // PER_AUTHOR), row) for i, row in sorted(known.items())),
        holdout=tuple(_example(f"holdout/{i}", f"holdout-{i // PER_AUTHOR:03d}", row) for i, row in enumerate(held_out)),
        facts=facts,
        texts=tuple(dict.fromkeys(row[key] for rows in groups for row in rows for key in ("question", "answer"))),
    )


def _example(identity: str, cluster: str, row: Row) -> Example:
    columns: dict[str, Any] = {key: tuple(row[key]) if key == "perturbed_answer" else row[key] for key in row}
    return Example(id=identity, cluster=cluster, **columns)


def _author(number: int) -> str:
    return f"author-{number:03d}"


def _authors(start: int, stop: int) -> tuple[str, ...]:
    return tuple(map(_author, range(start, stop)))
