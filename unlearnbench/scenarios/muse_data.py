"""MUSE's files as texts, questions and rows of verbatim memory, joined by content.

Published rows of verbatim memory and of membership were cut from the stream of all texts, so that most begin in one text and end in
another; what belongs together is found by content. Knows no model and no request.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import NamedTuple

from unlearnbench.scenarios.hub_data import Column, DataSet, Row
from unlearnbench.scenarios.text import Example

TEXT: dict[str, Column] = {"text": "text"}
QA: dict[str, Column] = {"question": "text", "answer": "text"}
PASSAGE: dict[str, Column] = {"prompt": "text", "gt": "text"}
N_ROWS, N_SHOTS = 100, 10
N_NEWS = (889, 889, 889, 887)
"""Texts of the four folds of News."""
_EDGE = 150
"""Letters at either end of a row by which the text it begins or ends in is recognised."""


class Corpus(NamedTuple):
    """The rows of one corpus."""

    documents: dict[str, str]
    """Identity -> text; fold by fold, each text once."""
    folds: tuple[tuple[str, ...], ...]
    """Identities of the texts that requests name."""
    retain: tuple[str, ...]
    holdout: tuple[str, ...]
    verbatim: tuple[Example, ...]
    """The published rows; the cluster is the text in which the passage asked for lies, or the row itself."""
    verbatim_within: tuple[Example, ...]
    """Those whose passage goes on in the same text as the end of its prompt, with the prompt cut to where that text begins."""
    members: tuple[Example, ...]
    """The published rows of membership; the cluster is the first text that one touches, or the row itself."""
    spans: dict[str, frozenset[str]]
    """Rows of membership -> the texts that they touch."""
    knowmem: dict[str, tuple[Example, ...]]
    """Questions on what is to be forgotten (knowmem) and retained (retain_knowmem)."""
    shots: dict[str, tuple[Row, ...]]


@cache
def read_corpus(data: DataSet, corpus: str, max_documents: int | None, retain_documents: int | None) -> Corpus:
    """Read a corpus.

    Args:
        data: where it is.
        corpus: news or books.
        max_documents: how many texts of each fold are taken, those with rows of verbatim memory first.
        retain_documents: how many texts of the retain set are taken.

    Raises:
        UserError: a part is missing or has another number of rows.
    """

    def read(configuration: str, split: str, columns: dict[str, Column], count: int | None, name: str | None = None) -> tuple[Row, ...]:
        return data.rows(configuration, split, file=f"{configuration}/{name or split}.json", columns=columns, count=count)

    def texts(configuration: str, split: str, count: int | None) -> list[str]:
        return [row["text"] for row in read(configuration, split, TEXT, count)]

    kinds = {"knowmem": ("forget_qa", "forget_qa"), "retain_knowmem": ("retain_qa", "retain2_qa")}
    asked = {kind: read("knowmem", split, QA, N_ROWS, name) for kind, (split, name) in kinds.items()}
    shots = {kind: read("knowmem", f"{split}_icl", QA, N_SHOTS, f"{name}_icl") for kind, (split, name) in kinds.items()}
    if corpus == "news":
        parts = [texts("raw", "forget", N_NEWS[0]), *(texts("sust", f"forget_{i}", N_NEWS[i - 1]) for i in (2, 3, 4))]
    else:
        parts = [texts("raw", "forget", None), texts("raw", "retain2", None)]
    published = read("verbmem", "forget", PASSAGE, N_ROWS)
    folds, seen = [], set[str]()
    for part in parts:
        new = list(dict.fromkeys(text for text in part if text.strip() and text not in seen))
        seen.update(new)
        folds.append(new)
    if max_documents is not None:
        asked_for = [_home(row, folds[0]) for row in published]
        first = [text for text in folds[0] if any(text == home for home, _ in filter(None, asked_for))]
        folds[0] = list(dict.fromkeys([*first, *folds[0]]))
    folds = [*(fold[:max_documents] for fold in folds[:-1]), folds[-1][:retain_documents]]
    names = [
        tuple(f"fold{number}-{hashlib.sha256(text.encode()).hexdigest()[:12]}" for text in fold) for number, fold in enumerate(folds, 1)
    ]
    documents = {name: text for fold, found in zip(folds, names, strict=True) for name, text in zip(found, fold, strict=True)}
    verbatim, within = _verbatim(published, dict(zip(names[0], folds[0], strict=True)))
    members, spans = _members(
        texts("privleak", "forget", N_ROWS) if max_documents is None else [], dict(zip(names[0], folds[0], strict=True))
    )
    return Corpus(
        documents=documents,
        folds=tuple(names[:-1]),
        retain=names[-1],
        holdout=tuple(texts("privleak", "holdout", N_ROWS)),
        verbatim=verbatim,
        verbatim_within=within,
        members=members,
        spans=spans,
        knowmem={
            kind: tuple(
                Example(id=f"{kind}/{i}", cluster=f"{kind}/{i}", question=row["question"], answer=row["answer"])
                for i, row in enumerate(rows)
            )
            for kind, rows in asked.items()
        },
        shots=shots,
    )


def _home(row: Row, texts: list[str]) -> tuple[str, int] | None:
    """The text in which a row's passage follows the end of its prompt, and where in it the passage begins; None where there is none."""
    end, passage = row["prompt"].rstrip()[-_EDGE:], row["gt"].strip()
    for text in texts:
        start = text.find(passage)
        while start >= 0:
            if text[:start].rstrip().endswith(end):
                return text, start
            start = text.find(passage, start + 1)
    return None


def _verbatim(published: tuple[Row, ...], fold: dict[str, str]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    names = {text: name for name, text in fold.items()}
    whole, within = [], []
    for number, row in enumerate(published):
        identity, answer = f"verbmem/{number}", " " + row["gt"].strip()
        holder = next((name for name, text in fold.items() if row["gt"].strip() in text), identity)
        whole.append(Example(id=identity, cluster=holder, question=row["prompt"].rstrip(), answer=answer))
        home = _home(row, list(fold.values()))
        if home is not None:
            text, start = home
            before, prompt = text[:start].rstrip(), row["prompt"].rstrip()
            question = prompt if before.endswith(prompt) else before
            # As the text goes on: many passages were cut inside a word, where no space belongs.
            going_on = text[len(before) : start + len(row["gt"].strip())]
            within.append(Example(id=identity, cluster=names[text], question=question, answer=going_on))
    return tuple(whole), tuple(within)


def _members(published: list[str], fold: dict[str, str]) -> tuple[tuple[Example, ...], dict[str, frozenset[str]]]:
    rows, spans = [], {}
    for number, text in enumerate(published):
        identity, touched = f"privleak/{number}", []
        for name, document in fold.items():
            if document.strip() in text or text.strip()[:_EDGE] in document or text.strip()[-_EDGE:] in document:
                touched.append(name)
        spans[identity] = frozenset(touched)
        rows.append(Example(id=identity, cluster=touched[0] if touched else identity, question="", answer=text))
    return tuple(rows), spans
