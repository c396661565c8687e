"""MUSE: news articles or books to be forgotten as texts, with questions on what they say.

"MUSE: Machine Unlearning Six-Way Evaluation for Language Models". Shi, Lee, Huang, Malladi, Zhao, Holtzman, Liu, Zettlemoyer, Smith,
Zhang. 2024, arXiv 2407.06460. Rows are those of `muse_data`. Deviations:

- Of News the fourth fold of the sustainability experiment stands in for the retain set, so that all of it can be read from one place;
  scaling requests are unions of the first three folds, and sustainability is their sequence. Texts count once, by content.
- The validation request, which MUSE does not have, names half of the retained texts, or `max_documents` of them if that is less.
- With `max_documents` a fold is that many texts, those with rows of verbatim memory first; such a row then begins where its text does,
  or as far back as the context reaches. Rows of membership are then the texts' first passages, as they are for every request but
  `forget` in full.
- Texts that no row of verbatim memory belongs to are asked for the last 64 words of their first passage.
- A small model learns no facts from texts alone: with `questions` it is taught the questions too, those on what is to be forgotten as
  part of the request.
- It also knows a passage from its beginning alone, and verbatim memory is asked from elsewhere: with `overlap` texts are cut several times,
  so that passages to be trained on, not those to be scored, begin all over a text.

Knows which texts and questions a request names, and how each split is put to a model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from unlearnbench.api import Data, Plan, Request, Split, UserError
from unlearnbench.scenarios.hub_data import find
from unlearnbench.scenarios.language import Encoder, TextData
from unlearnbench.scenarios.muse_data import N_SHOTS, Corpus, read_corpus
from unlearnbench.scenarios.passages import MixedData, corpus_rows, head, raw, tail
from unlearnbench.scenarios.sourced import SourcedScenario, halves
from unlearnbench.scenarios.text import Example
from unlearnbench.scenarios.text_evidence import Generation, Rows

GENERATIONS = {
    "verbmem": Generation(max_new_tokens=128),
    "knowmem": Generation(max_new_tokens=32, stop=("\n\n", "\nQuestion", "Question:")),
    "retain_knowmem": Generation(max_new_tokens=32, stop=("\n\n", "\nQuestion", "Question:")),
}
N_SCORED, N_ASKED_WORDS = 100, 64
FOLDS = {"forget": ((0,),), "scaling2": ((0, 1),), "scaling3": ((0, 1, 2),), "sustainability": ((0,), (1,), (2,))}
"""Request -> the folds that each of its steps names."""


class Muse(SourcedScenario):
    """MUSE's texts; clusters are texts, and single questions."""

    splits: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout", "verbmem", "knowmem", "retain_knowmem")

    corpus: Literal["news", "books"] = "news"
    """Which of the two data sets; books has no folds, so that it serves the requests forget and validation."""
    data_dir: str | None = None
    """The data set's folder, or the one above it; by default UNLEARNBENCH_DATA/muse where that is set, or else the hub."""
    max_documents: Annotated[int, Field(ge=2)] | None = None
    """How many texts of each fold exist at all; None takes all."""
    retain_documents: Annotated[int, Field(ge=2)] | None = None
    """How many texts of the retain set exist at all; by default as many as of a fold."""
    questions: bool = False
    """Teach questions beside texts."""
    shots: Annotated[int, Field(ge=0, le=N_SHOTS)] = N_SHOTS
    """How many questions and answers come before each question; a model that is taught the questions one by one needs none."""
    overlap: Annotated[int, Field(ge=1)] = 1
    """How many of the passages that are trained on hold each word of a text; 1 cuts each text once."""
    prefix: str = ""
    """What a text is conditioned on; "" is the token that begins a sequence."""

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        return (
            Request(name="forget", kind="documents", description="the texts of the first fold"),
            Request(name="scaling2", kind="documents", description="the texts of the first two folds"),
            Request(name="scaling3", kind="documents", description="the texts of the first three folds"),
            Request(name="sustainability", kind="documents", description="the first three folds, one after the other", steps=3),
            Request(name="validation", kind="documents", description="texts of the retain set"),
        )

    @property
    def validation_request(self) -> str:
        """See `Scenario.validation_request`."""
        return "validation"

    def _corpus(self) -> Corpus:
        name = {"news": "News", "books": "Books"}[self.corpus]
        data = find(f"muse-bench/MUSE-{name}", under=f"muse/{self.corpus}", data_dir=self.data_dir)
        if data.folder is not None and (data.folder / self.corpus).is_dir():
            data = replace(data, folder=data.folder / self.corpus)
        return read_corpus(data, self.corpus, self.max_documents, self.retain_documents or self.max_documents)

    def texts(self) -> tuple[str, ...]:
        """See `SourcedScenario.texts`."""
        corpus = self._corpus()
        asked = [text for rows in corpus.knowmem.values() for row in rows for text in (row.question, row.answer)]
        return tuple(dict.fromkeys([*corpus.documents.values(), *corpus.holdout, *asked]))

    def steps(self) -> tuple[tuple[str, ...], ...]:
        """See `SourcedScenario.steps`."""
        corpus, request = self._corpus(), self.asked().name
        if request == "validation":
            size = min(len(corpus.retain) // 2, self.max_documents or len(corpus.retain))
            return (tuple(random.Random(f"validation/{self.split_seed}").sample(corpus.retain, size)),)
        if max(fold for step in FOLDS[request] for fold in step) >= len(corpus.folds):
            raise UserError(f"muse of corpus {self.corpus!r} has no request {request!r}; it has: forget, validation")
        asked = tuple(row.cluster for row in corpus.knowmem["knowmem"]) if self.questions else ()
        named = [tuple(document for fold in step for document in corpus.folds[fold]) for step in FOLDS[request]]
        return (named[0] + asked, *named[1:])

    def _all(self) -> tuple[str, ...]:
        corpus = self._corpus()
        asked = [row.cluster for rows in corpus.knowmem.values() for row in rows] if self.questions else []
        return (*corpus.documents, *asked)

    def retained_clusters(self) -> tuple[str, ...]:
        """See `SourcedScenario.retained_clusters`; of later folds too, until a request names them."""
        gone = self.forget_rows()
        return tuple(cluster for cluster in self._all() if cluster not in gone)

    def kind_of(self, cluster: str) -> str:
        """See `SourcedScenario.kind_of`."""
        return "text" if cluster in self._corpus().documents else "question"

    # -------------------------------------------------------------------------------------------------------------------- data

    def _raw(self) -> Encoder:
        return raw(self.encoder(), self.prefix)

    def _documents(self, clusters: Iterable[str], *, first_only: bool = False, overlap: int = 1) -> TextData:
        documents = self._corpus().documents
        texts = ((name, documents[name]) for name in clusters if name in documents)
        return corpus_rows(texts, self._raw(), first_only=first_only, overlap=overlap)

    def _taught(self, clusters: Iterable[str]) -> TextData:
        """Texts whole, and questions where they are taught."""
        chosen = list(clusters)
        wanted = set(chosen)
        asked = [row for rows in self._corpus().knowmem.values() for row in rows if row.cluster in wanted]
        return MixedData([self._documents(chosen, overlap=self.overlap), TextData(asked, self.encoder())])

    def split(self, name: str) -> TextData:
        """See `Scenario.split`."""
        corpus, encoder = self._corpus(), self._raw()
        if name in corpus.knowmem:
            shots = [(row["question"], row["answer"]) for row in corpus.shots[name][: self.shots]]
            return TextData(corpus.knowmem[name], self.encoder().using(self.encoder().template.with_shots(shots)))
        if name == "verbmem":
            return TextData(self._verbatim(), encoder)
        if name == "holdout":
            if self._official():
                return TextData([_headed(encoder, f"holdout/{i}", f"holdout/{i}", text) for i, text in enumerate(corpus.holdout)], encoder)
            texts = corpus.holdout[: self.max_documents]
            return corpus_rows(((f"holdout/{i}", text) for i, text in enumerate(texts)), encoder, first_only=True)
        if name == "forget":
            if self._official():
                return TextData([_headed(encoder, row.id, row.cluster, row.answer) for row in corpus.members], encoder)
            return self._documents(sorted(self.forget_rows()), first_only=True)
        kept = [cluster for cluster in self.retained_clusters() if cluster in set(corpus.retain)]
        chosen = random.Random(f"retain/{self.split_seed}").sample(kept, min(N_SCORED, len(kept)))
        return self._documents(chosen, first_only=True)

    def _official(self) -> bool:
        """Whether MUSE's own rows of membership and verbatim memory are those of this request."""
        return self.request == "forget" and self.max_documents is None and self.shadow is None

    def _verbatim(self) -> list[Example]:
        corpus, forgotten = self._corpus(), self.forget_rows()
        if self._official():
            return list(corpus.verbatim)
        within = [row for row in corpus.verbatim_within if row.cluster in forgotten]
        rows = [replace(row, question=tail(self._raw(), row.question, row.answer)) for row in within]
        known = {row.cluster for row in rows}
        for row in self._documents(sorted(forgotten - known), first_only=True).examples:
            words = row.answer.split(" ")
            asked = min(N_ASKED_WORDS, len(words) // 2)
            if asked:
                question, answer = " ".join(words[:-asked]), " " + " ".join(words[-asked:])
                rows.append(replace(row, id=f"verbmem/{row.cluster}", question=question, answer=answer))
        return rows

    def rows(self, name: str, data: TextData, rewrite: Callable[[Any], Any] | None) -> Rows:
        """See `LanguageScenario.rows`."""
        return replace(super().rows(name, data, rewrite), generation=GENERATIONS.get(name, Generation()))

    def _both(self, clusters: Iterable[str]) -> Split:
        chosen = list(clusters)
        return Split(train=self._taught(chosen), eval=self._documents(chosen, first_only=True))

    def named(self) -> Split:
        """See `LanguageScenario.named`."""
        return self._both(self.named_clusters())

    def forgotten(self) -> Split:
        """See `LanguageScenario.forgotten`."""
        return self._both(sorted(self.forget_rows()))

    def retained(self) -> Split:
        """See `LanguageScenario.retained`."""
        return Split(train=self._taught(self.retained_clusters()), eval=self.split("retain"))

    def trained_on(self, plan: Plan) -> Split:
        """See `LanguageScenario.trained_on`."""
        return halves(self._taught(cluster for cluster in self._all() if cluster not in plan.rows))

    def validation(self) -> Data:
        """See `MethodView.validation`: the shots of the questions on what is retained, which nobody is taught or asked."""
        shots = self._corpus().shots["retain_knowmem"]
        rows = [
            Example(id=f"shots/{i}", cluster=f"shots/{i}", question=row["question"], answer=row["answer"]) for i, row in enumerate(shots)
        ]
        return TextData(rows, self.encoder())

    # ---------------------------------------------------------------------------------------------------------------- attackers

    def held_clusters(self) -> frozenset[str]:
        """The first half of the texts, since MUSE's rows of membership run on from one text into the next, and of the questions."""
        forgotten = self.forget_rows()
        order = [cluster for cluster in self._all() if cluster in forgotten]
        kinds = [[cluster for cluster in order if self.kind_of(cluster) == kind] for kind in ("text", "question")]
        return frozenset(cluster for kind in kinds for cluster in kind[: len(kind) // 2])

    def held(self) -> Split:
        """See `LanguageScenario.held`."""
        return self._both(sorted(self.held_clusters()))

    def judged(self) -> frozenset[str]:
        """See `Scenario.judged`: of MUSE's own rows those that touch no text of the attacker."""
        if not self._official():
            return super().judged()
        held, spans = self.held_clusters(), self._corpus().spans
        return frozenset(row for row, documents in spans.items() if documents and not documents & held)


def _headed(encoder: Encoder, identity: str, cluster: str, text: str) -> Example:
    return Example(id=identity, cluster=cluster, question="", answer=head(encoder, text))
