"""A user's own texts: files of rows to forget, to retain and, optionally, to hold out.

Rows are {question, answer} or {text}, one kind in each file, as JSON lines or one JSON list; a column `cluster` says which rows belong
together (by default each row by itself). A text longer than the model's context is cut into passages, a question never is. Knows rows;
where models come from is up to `model_sources`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from unlearnbench.api import Data, Plan, Request, Split, UserError
from unlearnbench.scenarios.hub_data import read_json_rows
from unlearnbench.scenarios.language import TextData
from unlearnbench.scenarios.passages import MixedData, passages, raw
from unlearnbench.scenarios.sourced import SourcedScenario, halves
from unlearnbench.scenarios.text import Example


class Text(SourcedScenario):
    """Texts or questions of one's own; clusters are those of the files.

    Nobody but an anchor is trained on a twentieth of the clusters to retain, which are for early stopping.
    """

    splits: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout")

    forget: str
    """File of the rows to forget."""
    retain: str
    """File of the rows to retain: at least three clusters."""
    holdout: str | None = None
    """File of rows of the same kind that no model was trained on; without it nothing that needs such rows can be measured."""
    prefix: str = ""
    """What a text is conditioned on; "" is the token that begins a sequence."""
    retain_rows: Annotated[int, Field(ge=1)] = 400
    """The most rows of the split "retain", drawn by the split seed."""

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        return (
            Request(name="forget", kind="instances", description="the rows of the file to forget"),
            Request(name="validation", kind="instances", description="as many of the clusters to retain, or a third of them"),
        )

    @property
    def validation_request(self) -> str:
        """See `Scenario.validation_request`."""
        return "validation"

    def _files(self) -> Files:
        return _files(self.forget, self.retain, self.holdout)

    def texts(self) -> tuple[str, ...]:
        """See `SourcedScenario.texts`."""
        return tuple(dict.fromkeys(text for rows in self._files() for row in rows for text in (row.question, row.answer) if text))

    def steps(self) -> tuple[tuple[str, ...], ...]:
        """See `SourcedScenario.steps`."""
        files = self._files()
        named = _clusters(files.forget)
        if self.asked().name == "forget":
            return (named,)
        kept = _clusters(files.retain)
        return (tuple(random.Random(f"validation/{self.split_seed}").sample(kept, min(len(named), len(kept) // 3))),)

    def retained_clusters(self) -> tuple[str, ...]:
        """See `SourcedScenario.retained_clusters`."""
        gone, files = self.forget_rows(), self._files()
        return tuple(cluster for cluster in _clusters((*files.forget, *files.retain)) if cluster not in gone)

    # -------------------------------------------------------------------------------------------------------------------- data

    def _encoded(self, rows: Iterable[Example]) -> TextData:
        questions, pieces = [], []
        encoder = raw(self.encoder(), self.prefix)
        for row in rows:
            if row.question:
                questions.append(row)
                continue
            for number, piece in enumerate(passages(encoder, row.answer)):
                pieces.append(Example(id=f"{row.id}#{number}", cluster=row.cluster, question="", answer=piece))
        parts = [TextData(questions, self.encoder()), TextData(pieces, encoder)]
        filled = [part for part in parts if len(part)] or parts[:1]
        return filled[0] if len(filled) == 1 else MixedData(filled)

    def _of(self, clusters: Iterable[str]) -> TextData:
        wanted, files = set(clusters), self._files()
        return self._encoded(row for row in (*files.forget, *files.retain) if row.cluster in wanted)

    def split(self, name: str) -> TextData:
        """See `Scenario.split`.

        Raises:
            UserError: rows to hold out are asked for and no file was given, or texts and questions would be scored as one split.
        """
        files = self._files()
        if name == "holdout" and not files.holdout:
            raise UserError("text has no rows to hold out: give their file as `holdout`, rows that no model was trained on")
        if name != "retain":
            data = self._encoded(files.holdout) if name == "holdout" else self._of(self.forget_rows())
            if len({bool(row.question) for row in data.examples}) > 1:
                raise UserError(f"shadow {self.shadow} of {self.request!r} draws texts and questions, which cannot be scored as one split")
            return data
        data, questions = self._retained(), bool(files.retain[0].question)
        alike = [i for i, row in enumerate(data.examples) if bool(row.question) == questions]
        chosen = random.Random(f"retain/{self.split_seed}").sample(alike, min(self.retain_rows, len(alike)))
        return data.take(sorted(chosen))

    def _retained(self) -> TextData:
        spared = self._spared()
        return self._of(cluster for cluster in self.retained_clusters() if cluster not in spared)

    def _spared(self) -> frozenset[str]:
        """Retained clusters that no method and no attacker is given, and that are not scored."""
        kept = [cluster for cluster in self.retained_clusters() if cluster.startswith("retain/")]
        return frozenset(random.Random(f"spared/{self.split_seed}").sample(kept, max(1, len(kept) // 20)))

    def named(self) -> Split:
        """See `LanguageScenario.named`."""
        return halves(self._of(self.named_clusters()))

    def forgotten(self) -> Split:
        """See `LanguageScenario.forgotten`."""
        return halves(self._of(self.forget_rows()))

    def held(self) -> Split:
        """See `LanguageScenario.held`."""
        return halves(self._of(self.held_clusters()))

    def retained(self) -> Split:
        """See `LanguageScenario.retained`."""
        return Split(train=self._retained(), eval=self.split("retain"))

    def validation(self) -> Data:
        """See `MethodView.validation`."""
        return self._of(self._spared())

    def trained_on(self, plan: Plan) -> Split:
        """See `LanguageScenario.trained_on`."""
        files = self._files()
        return halves(self._of(cluster for cluster in _clusters((*files.forget, *files.retain)) if cluster not in plan.rows))


class Files(NamedTuple):
    """The rows of the files; a text is an answer to no question."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    holdout: tuple[Example, ...]


@cache
def _files(forget: str, retain: str, holdout: str | None) -> Files:
    """Read and check the files.

    Raises:
        UserError: a row has other columns, one row is in two files, or there is too little to retain.
    """
    read = {name: _read(name, path) if path else () for name, path in (("forget", forget), ("retain", retain), ("holdout", holdout))}
    seen: dict[tuple[str, str], str] = {}
    for name, rows in read.items():
        for row in rows:
            other = seen.setdefault((row.question, row.answer), name)
            if other != name:
                raise UserError(
                    f"{row.id} ({(row.question or row.answer)[:60]!r}) is among the rows to {other} too; a row belongs to one file"
                )
    if len(_clusters(read["retain"])) < 3:
        raise UserError(f"{retain} has {len(_clusters(read['retain']))} clusters to retain; at least 3 are needed")
    return Files(**read)


def _read(name: str, path: str) -> tuple[Example, ...]:
    rows = read_json_rows(Path(path).expanduser())
    if not rows:
        raise UserError(f"{path} has no rows; a row is {{question, answer}} or {{text}}")
    examples = []
    for number, row in enumerate(rows, 1):
        row = {"text": row} if isinstance(row, str) else row
        place = f"{path}, row {number}"
        if not isinstance(row, dict) or not ({"question", "answer"} <= set(row) or "text" in row):
            raise UserError(f"{place} is {row!r:.60}; a row is {{question, answer}} or {{text}}, in a file all alike")
        question, answer = ("", row["text"]) if "text" in row else (row["question"], row["answer"])
        cluster = row.get("cluster", number)
        if (
            not isinstance(question, str)
            or not isinstance(answer, str)
            or not answer.strip()
            or ("text" not in row and not question.strip())
        ):
            raise UserError(f"{place} is {row!r:.60}; its columns must be texts with at least one word")
        examples.append(Example(id=f"{name}/{number}", cluster=f"{name}/{cluster}", question=question, answer=answer))
    if len({bool(row.question) for row in examples}) > 1:
        raise UserError(f"{path} has rows of both kinds, {{question, answer}} and {{text}}; in a file all must be alike")
    return tuple(examples)


def _clusters(rows: Iterable[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.cluster for row in rows))
